"""Processes that read samples ahead of the training step."""

import multiprocessing
import os
import pickle
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from typing import Any, TypeVar

import torch

from vcmodels.data.dataset import PatchDataset, describe_places
from vcmodels.devices import keep_freed_memory
from vcmodels.errors import RunError
from vcmodels.stopping import STOP_SIGNALS

Answer = TypeVar("Answer")
Job = Callable[[PatchDataset, int, int], Answer]
"""What a worker does for a draw and its row; a function of a module, which pickles by its name."""
_SHARED_MEMORY = "if /dev/shm is full, enlarge it or set tr_params.num_dataloader_workers to 0"


class Workers:
    """Processes that hold a copy of a dataset and answer draw numbers with what they make of them.

    A process pool, not torch's DataLoader: a dead worker is noticed at once (with a DataLoader on
    forkserver after its timeout), errors come back with their own type and parts, any draw can be
    asked for next, and the workers stay from epoch to epoch. Tensors travel through shared memory
    all the same, since torch registers them with multiprocessing's pickler.
    """

    def __init__(self, dataset: PatchDataset, count: int) -> None:
        methods = multiprocessing.get_all_start_methods()
        # Not fork: zarr's event loop and OpenMP's threads would not exist in the child.
        method = "forkserver" if "forkserver" in methods else "spawn"
        context = torch.multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["vcmodels.data.workers"])
        # Started first, because it unblocks the signals that we hold back.
        resource_tracker.ensure_running()
        if method == "forkserver":
            with _blocked_signals():  # it passes them on to what it forks
                _start_fork_server()
        self.count = count
        self.pool = ProcessPoolExecutor(
            # As bytes: the pool must not keep the dataset alive, which stops it when it goes.
            count,
            mp_context=context,
            initializer=_start_worker,
            initargs=(pickle.dumps(dataset),),
        )

    def submit(self, job: Job[Answer], draw: int, row: int) -> Future[Answer]:
        with _blocked_signals():  # what a new process inherits
            return self.pool.submit(_do, job, draw, row)

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


def read_ahead(
    job: Job[Answer],
    dataset: PatchDataset,
    draws: Iterable[int],
    count: int,
    ahead: int,
    timeout_s: float,
    stopping: Future[None],
) -> Iterator[Answer]:
    """Answers in order, by workers that are kept busy some draws ahead.

    The workers start at the first call and stay for later calls, until the dataset is let go.

    Args:
        job: what to do for each draw.
        dataset: where samples come from; it must survive pickling.
        draws: which samples.
        count: worker processes.
        ahead: how many draws may be under way.
        timeout_s: how long one of them may take.
        stopping: no answer is waited for any more once this is done.

    Raises:
        RunError: a worker died or hangs, or shared memory is full; or what the job raised.
        CancelledError: `stopping` is done.
    """
    waiting: deque[tuple[int, Future[Answer]]] = deque()
    try:
        workers = workers_of(dataset, count)
        for draw in draws:
            # The row from here: the workers' copy does not know the losses of later epochs.
            waiting.append((draw, workers.submit(job, draw, dataset.row(draw))))
            if len(waiting) >= ahead:
                yield _answer(waiting[0][1], timeout_s, stopping)
                waiting.popleft()
        while waiting:
            yield _answer(waiting[0][1], timeout_s, stopping)
            waiting.popleft()
    except BrokenProcessPool as error:
        _running.pop(dataset, None)
        places = describe_places([dataset.place(draw) for draw, _ in waiting])
        found = f"a worker process died (out of memory, or killed) while reading {places}"
        raise RunError("tr_params.num_dataloader_workers", found, _SHARED_MEMORY) from error
    except TimeoutError as error:
        _running.pop(dataset).stop(kill=True)
        found = f"no answer from a worker for {timeout_s:g} s"
        raise RunError(str(dataset.place(waiting[0][0])), found, "check its storage") from error
    except RuntimeError as error:
        if "shared memory" not in str(error) and "No space" not in str(error):
            raise
        raise RunError("/dev/shm", "no shared memory left for a patch", _SHARED_MEMORY) from error
    finally:
        for _, future in waiting:
            future.cancel()


def _answer(future: Future[Answer], timeout_s: float, stopping: Future[None]) -> Answer:
    """What a worker answers, unless this is to stop."""
    both: list[Future[Any]] = [future, stopping]
    done, _ = wait_for(both, timeout_s, FIRST_COMPLETED)
    if stopping.done():
        raise CancelledError
    if not done:
        raise TimeoutError
    return future.result()


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


def _start_worker(dataset: bytes) -> None:
    """Set a fresh process up: stop signals are for the main process, which then lets us go."""
    global _dataset
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


def _do(job: Job[Answer], draw: int, row: int) -> Answer:
    assert _dataset is not None, "the worker was not started"
    return job(_dataset, draw, row)
