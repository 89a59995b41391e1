"""Processes that read samples ahead of the training step."""

import multiprocessing
import os
import pickle
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

import torch

from vcmodels.data.dataset import PatchDataset, describe_places
from vcmodels.data.slots import Address, Packed, Slot, Slots, pack
from vcmodels.devices import keep_freed_memory
from vcmodels.errors import RunError
from vcmodels.stopping import STOP_SIGNALS

Answer = TypeVar("Answer")
Job = Callable[[PatchDataset, int, int], Answer]
"""What a worker does for a draw and its row; a function of a module, which pickles by its name."""


@dataclass(frozen=True)
class Asked(Generic[Answer]):
    """A draw that a worker is to answer."""

    draw: int
    slot: Slot | None
    future: Future[Packed]


class Workers:
    """Processes that hold a copy of a dataset and answer draw numbers with what they make of them.

    A process pool, not torch's DataLoader: a dead worker is noticed at once (with a DataLoader on
    forkserver after its timeout), errors come back with their own type and parts, any draw can be
    asked for next, and the workers stay from epoch to epoch. Arrays come back through `Slots`.
    """

    def __init__(self, dataset: PatchDataset, count: int) -> None:
        methods = multiprocessing.get_all_start_methods()
        # Not fork: zarr's event loop and OpenMP's threads would not exist in the child.
        method = "forkserver" if "forkserver" in methods else "spawn"
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["vcmodels.data.workers"])
        # Started first, because it unblocks the signals that we hold back.
        resource_tracker.ensure_running()
        if method == "forkserver":
            with _blocked_signals():  # it passes them on to what it forks
                _start_fork_server()
        self.count = count
        self.slots = Slots()
        self.pool = ProcessPoolExecutor(
            # As bytes: the pool must not keep the dataset alive, which stops it when it goes.
            count,
            mp_context=context,
            initializer=_start_worker,
            # Those of the server that forks them are from when it was started.
            initargs=(pickle.dumps(dataset), dict(os.environ)),
        )

    def ask(self, job: Job[Answer], draw: int, row: int) -> Asked[Answer]:
        """Give a draw to the next worker that is free."""
        slot = self.slots.take()
        with _blocked_signals():  # what a new process inherits
            future = self.pool.submit(_do, job, draw, row, slot and slot.address)
        return Asked(draw, slot, future)

    def answer(self, asked: Asked[Answer], timeout_s: float, stopping: Future[None]) -> Answer:
        """What a worker answers, unless this is to stop; in the memory of the slot."""
        both: list[Future[Any]] = [asked.future, stopping]
        done, _ = wait_for(both, timeout_s, FIRST_COMPLETED)
        if stopping.done():
            raise CancelledError
        if not done:
            raise TimeoutError
        try:
            return self.slots.unpack(asked.future.result(), asked.slot)
        finally:
            del asked, both, done  # an error holds this frame, and must not be held by it

    def forget(self, asked: Asked[Answer]) -> None:
        """Do without an answer, or with what was made of it; its slot is free when it is written."""
        slots, slot = self.slots, asked.slot  # not more: the future must not keep the workers alive
        asked.future.cancel()
        asked.future.add_done_callback(lambda _: slots.give(slot))

    def stop(self, *, kill: bool = False) -> None:
        """Let the workers go; with `kill`, also those that hang."""
        processes = list((self.pool._processes or {}).values()) if kill else []
        for process in processes:
            process.kill()
        self.pool.shutdown(wait=kill, cancel_futures=True)


# A pool that nobody holds any more lets its workers go.
_running: "weakref.WeakKeyDictionary[PatchDataset, Workers]" = weakref.WeakKeyDictionary()


def workers_of(dataset: PatchDataset, count: int) -> Workers:
    """The workers of a dataset, started at the first call."""
    workers = _running.get(dataset)
    if workers is None or workers.count != count:
        if workers is not None:
            workers.stop()
        workers = _running[dataset] = Workers(dataset, count)
    return workers


def let_go(dataset: PatchDataset) -> None:
    """End its workers at once, also those that hang: the exit of this process would wait for them."""
    workers = _running.pop(dataset, None)
    if workers is not None:
        workers.stop(kill=True)


def read_ahead(
    job: Job[Answer],
    dataset: PatchDataset,
    groups: Sequence[Sequence[int]],
    count: int,
    timeout_s: float,
    stopping: Future[None],
) -> Generator[list[Answer], None, None]:
    """Answers for groups of draws in order, by workers that are kept busy up to two rounds ahead.

    The workers start at the first call and stay for later calls, until the dataset is let go. The
    arrays of a group are good until the next one is asked for: then their memory is used again.

    Args:
        job: what to do for each draw.
        dataset: where samples come from; it must survive pickling.
        groups: which samples.
        count: worker processes.
        timeout_s: how long one of them may take.
        stopping: no answer is waited for any more once this is done.

    Raises:
        RunError: a worker died or hangs; or what the job raised.
        CancelledError: `stopping` is done.
    """
    waiting: deque[Asked[Answer]] = deque()
    taken: list[Asked[Answer]] = []
    workers = workers_of(dataset, count)
    draws, ahead = chain.from_iterable(groups), 2 * max(count, *map(len, groups), 1)
    try:
        for group in groups:
            answers: list[Answer] = []
            for _ in group:
                # The row from here: the workers' copy does not know the losses of later epochs.
                for draw in islice(draws, ahead - len(waiting)):
                    waiting.append(workers.ask(job, draw, dataset.row(draw)))
                answers.append(workers.answer(waiting[0], timeout_s, stopping))
                taken.append(waiting.popleft())
            yield answers
            while taken:
                workers.forget(taken.pop())
    except BrokenProcessPool as error:
        _running.pop(dataset, None)
        places = describe_places([dataset.place(asked.draw) for asked in waiting])
        found = f"a worker process died (out of memory, or killed) while reading {places}"
        remedy = "lower it, or see what the system's log says about memory"
        raise RunError("tr_params.num_dataloader_workers", found, remedy) from error
    except TimeoutError as error:
        _running.pop(dataset).stop(kill=True)
        found = f"no answer from a worker for {timeout_s:g} s"
        raise RunError(str(dataset.place(waiting[0].draw)), found, "check its storage") from error
    finally:
        while remaining := waiting or taken:
            workers.forget(remaining.pop())


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Hold back stop signals while processes start; ours are delivered after.

    The processes inherit the mask, so that a signal to the whole group reaches none of them, not
    even during their imports.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_fork_server() -> None:
    """Start the server that workers are forked from, unless it runs.

    It is a `python -c`, which would look for what it preloads in the working directory first: a
    clone that lies there would read the patches of another version's training.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


_dataset: PatchDataset | None = None


def _start_worker(dataset: bytes, environment: dict[str, str]) -> None:
    """Set a fresh process up: stop signals are for the main process, which then lets us go."""
    global _dataset
    os.environ.update(environment)  # keys to a store, for instance
    _dataset = pickle.loads(dataset)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    keep_freed_memory()
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """Exit when the main process is gone, however it went: a pool's worker would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _do(job: Job[Any], draw: int, row: int, address: Address | None) -> Packed:
    assert _dataset is not None, "the worker was not started"
    return pack(job(_dataset, draw, row), address)
