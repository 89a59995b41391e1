"""Processes that read samples ahead of the training step."""

import multiprocessing
import os
import pickle
import signal
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait

import torch

from vcmodels.data.dataset import PatchDataset, Sample, describe_places
from vcmodels.errors import RunError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHARED_MEMORY = "if /dev/shm is full, enlarge it or set tr_params.num_dataloader_workers to 0"


class Workers:
    """Processes that hold a copy of a dataset and answer draw numbers with samples.

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

    def submit(self, draw: int, row: int) -> Future[Sample]:
        with _blocked_signals():  # what a new process inherits
            return self.pool.submit(_sample, draw, row)

    def stop(self, *, kill: bool = False) -> None:
        """Let the workers go; with `kill`, also those that hang."""
        processes = list((self.pool._processes or {}).values()) if kill else []
        for process in processes:
            process.kill()
        self.pool.shutdown(wait=kill, cancel_futures=True)


# A pool that nobody holds any more lets its workers go.
_running: "weakref.WeakKeyDictionary[PatchDataset, Workers]" = weakref.WeakKeyDictionary()


def _workers_of(dataset: PatchDataset, count: int) -> Workers:
    """The workers of a dataset, started at the first call."""
    workers = _running.get(dataset)
    if workers is None or workers.count != count:
        if workers is not None:
            workers.stop()
        workers = _running[dataset] = Workers(dataset, count)
    return workers


def read_ahead(
    dataset: PatchDataset, draws: range, count: int, batch_size: int, timeout_s: float
) -> Iterator[Sample]:
    """Samples in order, read by workers that are kept busy up to two rounds ahead.

    The workers start at the first call and stay for later calls, until the dataset is let go.

    Args:
        dataset: where samples come from; it must survive pickling.
        draws: which samples.
        count: worker processes.
        batch_size: samples that are taken at a time.
        timeout_s: how long one sample may take.

    Raises:
        RunError: a worker died or hangs, or shared memory is full; or what the dataset raised.
    """
    waiting: deque[tuple[int, Future[Sample]]] = deque()
    depth = 2 * max(count, batch_size)
    try:
        workers = _workers_of(dataset, count)
        for draw in draws:
            # The row from here: the workers' copy does not know the losses of later epochs.
            waiting.append((draw, workers.submit(draw, dataset.row(draw))))
            if len(waiting) >= depth:
                yield waiting[0][1].result(timeout_s)
                waiting.popleft()
        while waiting:
            yield waiting[0][1].result(timeout_s)
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


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Hold back stop signals while processes start; ours are delivered after.

    The processes inherit the mask, so that a signal to the whole group reaches none of them, not
    even during their imports.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
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
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """Exit when the main process is gone, however it went: a pool's worker would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _sample(draw: int, row: int) -> Sample:
    assert _dataset is not None, "the worker was not started"
    return _dataset.sample(draw, row)
