"""Processes that read samples ahead of the training step, and the memory shared with them.

The pages of a 96^3 patch with normals take 19 ms of system time in fresh shared memory and 1.6 ms in
memory that both sides have mapped before (one core of a virtual machine). The memory has no name:
nothing is left behind, however the processes end, and the size of /dev/shm is no limit.
"""

import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, chain, count, islice
from mmap import mmap
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from vcmodels.devices import keep_freed_memory
from vcmodels.errors import RunError
from vcmodels.reporting import STOP_SIGNALS
from vcmodels.samples.dataset import PatchDataset, describe_places
from vcmodels.scratch import name_processes

_ALIGNED = 64


@dataclass(frozen=True)
class Address:
    """How a worker finds a slot."""

    number: int
    path: str
    size: int


@dataclass(frozen=True)
class Packed:
    """An answer on its way: its arrays are in the slot, or in `parts` when it had none that fits."""

    rest: bytes
    sizes: Sequence[int]
    parts: Sequence[bytearray] | None


class Slot:
    """One piece of memory, large enough for one answer."""

    _numbers = count()

    def __init__(self, size: int) -> None:
        self._file = os.memfd_create("vcmodels-patch")
        os.ftruncate(self._file, size)
        self.memory = mmap(self._file, size)
        path = f"/proc/{os.getpid()}/fd/{self._file}"
        self.address = Address(next(self._numbers), path, size)

    def __del__(self) -> None:
        os.close(self._file)


class Slots:
    """The free slots of one pool of workers; all that are made from now on have one size."""

    def __init__(self) -> None:
        self.size = 0
        self._free: list[Slot] = []

    def take(self) -> Slot | None:
        """A free slot or a new one; None while no answer has shown how large they have to be."""
        while self._free:
            slot = self._free.pop()
            if slot.address.size >= self.size:
                return slot
        return Slot(self.size) if self.size and hasattr(os, "memfd_create") else None

    def give(self, slot: Slot | None) -> None:
        """Take a slot back: nobody reads or writes it any more."""
        if slot is not None:
            self._free.append(slot)

    def unpack(self, packed: Packed, slot: Slot | None) -> Any:  # noqa: ANN401
        """The answer; its arrays are those of the slot, if it came through one."""
        starts = _starts(packed.sizes)
        self.size = max(self.size, starts[-1])
        if packed.parts is not None:
            return pickle.loads(packed.rest, buffers=packed.parts)
        assert slot is not None, "an answer without its memory"
        memory = memoryview(slot.memory)
        spans = zip(starts, packed.sizes, strict=False)
        return pickle.loads(packed.rest, buffers=[memory[at : at + size] for at, size in spans])


_mapped: dict[int, mmap] = {}
"""In a worker: the slots that it has seen, by their number."""


def pack(answer: object, address: Address | None) -> Packed:
    """Put an answer into a slot, in a worker."""
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(answer)
    raw = [buffer.raw() for buffer in buffers]
    sizes = [part.nbytes for part in raw]
    starts = _starts(sizes)
    memory = _map(address) if address is not None and starts[-1] <= address.size else None
    if memory is None:
        return Packed(stream.getvalue(), sizes, [bytearray(part) for part in raw])
    for start, part in zip(starts, raw, strict=False):
        memory[start : start + part.nbytes] = part
    return Packed(stream.getvalue(), sizes, None)


def _map(address: Address) -> mmap | None:
    """The memory of a slot, None where the system keeps the files of processes from each other.

    Of slots that were replaced by larger ones it is let go.
    """
    if address.number not in _mapped:
        for number in [n for n, memory in _mapped.items() if len(memory) != address.size]:
            del _mapped[number]
        try:
            file = os.open(address.path, os.O_RDWR)
        except OSError:  # hardened kernels and some containers forbid it
            return None
        try:
            _mapped[address.number] = mmap(file, address.size)
        finally:
            os.close(file)
    return _mapped[address.number]


def _starts(sizes: Sequence[int]) -> list[int]:
    """Where each part begins, and where the last one ends."""
    return [0, *accumulate(-(-size // _ALIGNED) * _ALIGNED for size in sizes)]


class _Pickler(pickle.Pickler):
    """Leaves the numbers of tensors to the buffers; a mask that is true all over has none."""

    def reducer_override(self, thing: object) -> Any:  # noqa: ANN401
        if not isinstance(thing, Tensor):
            return NotImplemented
        if thing.dtype == torch.bool and bool(thing.all()):
            return _all_true, (tuple(thing.shape),)
        return _tensor, (thing.contiguous().numpy(),)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)


def _all_true(shape: tuple[int, ...]) -> Tensor:
    return torch.ones((1,) * len(shape), dtype=torch.bool).expand(shape)


Answer = TypeVar("Answer")
ReadJob = Callable[[PatchDataset, int, int], Answer]
"""What a worker does for a draw and its row; a function of a module, which pickles by its name."""


@dataclass(frozen=True)
class DrawRequest(Generic[Answer]):
    """A draw that a worker is to answer."""

    draw: int
    slot: Slot | None
    future: Future[Packed]


class WorkerPool:
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
            context.set_forkserver_preload(["vcmodels.samples.workers"])
        name_processes()
        # Started first, because it unblocks the signals that we hold back.
        resource_tracker.ensure_running()
        if method == "forkserver":
            with _blocked_signals():  # it passes them on to what it forks
                _start_fork_server()
        self.count = count
        self.slots = Slots()
        data = pickle.dumps(dataset)
        self._needs_main = b"__main__" in data
        self.pool = ProcessPoolExecutor(
            # As bytes: the pool must not keep the dataset alive, which stops it when it goes.
            count,
            mp_context=context,
            initializer=_start_worker,
            # Those of the server that forks them are from when it was started.
            initargs=(data, dict(os.environ)),
        )

    def ask(self, job: ReadJob[Answer], draw: int, row: int) -> DrawRequest[Answer]:
        """Give a draw to the next worker that is free."""
        slot = self.slots.take()
        # What a new process inherits, and runs.
        with _blocked_signals(), nullcontext() if self._needs_main else _main_left_out():
            future = self.pool.submit(_do, job, draw, row, slot and slot.address)
        return DrawRequest(draw, slot, future)

    def answer(
        self, request: DrawRequest[Answer], timeout_s: float, stopping: Future[None]
    ) -> Answer:
        """What a worker answers, unless this is to stop; in the memory of the slot."""
        both: list[Future[Any]] = [request.future, stopping]
        done, _ = wait_for(both, timeout_s, FIRST_COMPLETED)
        if stopping.done():
            raise CancelledError
        if not done:
            raise TimeoutError
        try:
            return self.slots.unpack(request.future.result(), request.slot)
        finally:
            del request, both, done  # an error holds this frame, and must not be held by it

    def forget(self, request: DrawRequest[Answer]) -> None:
        """Do without an answer, or with what was made of it; its slot is free when it is written."""
        # Not more of this: the future must not keep the workers alive.
        slots, slot = self.slots, request.slot
        request.future.cancel()
        request.future.add_done_callback(lambda _: slots.give(slot))

    def stop(self, *, kill: bool = False) -> None:
        """Let the workers go; with `kill`, also those that hang."""
        processes = list((self.pool._processes or {}).values()) if kill else []
        for process in processes:
            process.kill()
        self.pool.shutdown(wait=kill, cancel_futures=True)


# A pool that nobody holds any more lets its workers go.
_running: "weakref.WeakKeyDictionary[PatchDataset, WorkerPool]" = weakref.WeakKeyDictionary()


def workers_of(dataset: PatchDataset, count: int) -> WorkerPool:
    """The workers of a dataset, started at the first call."""
    workers = _running.get(dataset)
    if workers is None or workers.count != count:
        if workers is not None:
            workers.stop()
        workers = _running[dataset] = WorkerPool(dataset, count)
    return workers


def stop_workers(dataset: PatchDataset) -> None:
    """End its workers at once, also those that hang: the exit of this process would wait for them."""
    workers = _running.pop(dataset, None)
    if workers is not None:
        workers.stop(kill=True)


def read_ahead(
    job: ReadJob[Answer],
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
    waiting: deque[DrawRequest[Answer]] = deque()
    taken: list[DrawRequest[Answer]] = []
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
        places = describe_places([dataset.place(request.draw) for request in waiting])
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


@contextmanager
def _main_left_out() -> Iterator[None]:
    """Start processes that do not run the main script: one that trains would train in each of them."""
    main = sys.modules["__main__"]
    names = [name for name in ("__file__", "__spec__") if hasattr(main, name)]
    kept = {name: getattr(main, name) for name in names}
    for name in names:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(main, name, value)


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


def _do(job: ReadJob[Any], draw: int, row: int, address: Address | None) -> Packed:
    assert _dataset is not None, "the worker was not started"
    return pack(job(_dataset, draw, row), address)
