"""Samples from worker processes, in order, and their last steps on the training device."""

import multiprocessing
import os
import pickle
import signal
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import wait

import torch
from torch import Tensor

from vcmodels.augment import apply_spatial
from vcmodels.data.dataset import PatchDataset, Place, Sample, describe_places
from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Shape
from vcmodels.targets import AnyTarget

TIMEOUT_S = 900.0
"""A patch that takes longer than this hangs (a dead file server, for instance)."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHARED_MEMORY = "if /dev/shm is full, enlarge it or set tr_params.num_dataloader_workers to 0"


@dataclass(frozen=True)
class Batch:
    """What a step takes, on the training device."""

    image: Tensor
    """(B, C, *patch) float32."""
    labels: dict[str, Tensor]
    """(B, L, *patch) float32 per target."""
    valid: dict[str, Tensor]
    """(B, 1, *patch) bool per target."""
    places: tuple[Place, ...]


def batches(
    dataset: PatchDataset,
    *,
    batch_size: int,
    first_draw: int,
    draws: int,
    workers: int,
    timeout_s: float = TIMEOUT_S,
) -> Iterator[list[Sample]]:
    """Draws `first_draw ... first_draw + draws` in order, `batch_size` at a time (the last may be short).

    The samples do not depend on the number of workers. Workers start at the first call and stay
    for later calls, until the dataset is let go.

    Args:
        dataset: where samples come from.
        batch_size: samples per list.
        first_draw: where to begin; a resumed run begins at the draw it had reached.
        draws: how many samples in all.
        workers: processes that read ahead; 0 reads here, when asked.
        timeout_s: how long one sample may take a worker.

    Raises:
        RunError: a worker died, hangs, or met data that cannot be used; names the patch.
    """
    numbers = range(first_draw, first_draw + draws)
    samples = (
        _ahead(dataset, numbers, workers, batch_size, timeout_s)
        if workers
        else (dataset[number] for number in numbers)
    )
    batch: list[Sample] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def finish_batch(
    samples: Sequence[Sample],
    targets: Mapping[str, AnyTarget],
    patch: Shape,
    spacing: tuple[float, float, float],
    device: torch.device,
) -> Batch:
    """Move samples to the device, apply their geometric transforms there, and stack them."""
    images: list[Tensor] = []
    labels: dict[str, list[Tensor]] = {name: [] for name in targets}
    valid: dict[str, list[Tensor]] = {name: [] for name in targets}
    for sample in samples:
        image, its_labels, its_valid = (
            sample.image.to(device, non_blocking=True),
            {name: label.to(device, non_blocking=True) for name, label in sample.labels.items()},
            {name: mask.to(device, non_blocking=True) for name, mask in sample.valid.items()},
        )
        if not sample.transform.is_identity:
            image, its_labels, its_valid = apply_spatial(
                sample.transform, image, its_labels, its_valid, targets, patch, spacing
            )
        images.append(image)
        for name in targets:
            labels[name].append(its_labels[name])
            valid[name].append(its_valid[name])
    return Batch(
        torch.stack(images),
        {name: torch.stack(parts) for name, parts in labels.items()},
        {name: torch.stack(parts) for name, parts in valid.items()},
        tuple(sample.place for sample in samples),
    )


# --------------------------------------------------------------------------- in the main process


class _Workers:
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
            context.set_forkserver_preload(["vcmodels.data.loader"])
        # Started first, because it unblocks the signals that we hold back.
        resource_tracker.ensure_running()
        self.count = count
        self.pool = ProcessPoolExecutor(
            # As bytes: the pool must not keep the dataset alive, which stops it when it goes.
            count,
            mp_context=context,
            initializer=_start_worker,
            initargs=(pickle.dumps(dataset),),
        )

    def submit(self, draw: int) -> Future[Sample]:
        with _blocked_signals():  # what a new process inherits
            return self.pool.submit(_sample, draw)

    def stop(self, *, kill: bool = False) -> None:
        """Let the workers go; with `kill`, also those that hang."""
        processes = list((self.pool._processes or {}).values()) if kill else []
        for process in processes:
            process.kill()
        self.pool.shutdown(wait=kill, cancel_futures=True)


_running: "weakref.WeakKeyDictionary[PatchDataset, _Workers]" = weakref.WeakKeyDictionary()


def _workers_of(dataset: PatchDataset, count: int) -> _Workers:
    """The workers of a dataset, started at the first call."""
    workers = _running.get(dataset)
    if workers is None or workers.count != count:
        if workers is not None:
            workers.stop()
        workers = _running[dataset] = _Workers(dataset, count)
        weakref.finalize(dataset, workers.stop)
    return workers


def _ahead(
    dataset: PatchDataset, draws: range, count: int, batch_size: int, timeout_s: float
) -> Iterator[Sample]:
    """Samples in order, read by workers that are kept busy up to two rounds ahead."""
    waiting: deque[tuple[int, Future[Sample]]] = deque()
    depth = 2 * max(count, batch_size)
    try:
        workers = _workers_of(dataset, count)
        for draw in draws:
            waiting.append((draw, workers.submit(draw)))
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


# ------------------------------------------------------------------------- in a worker process

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


def _sample(draw: int) -> Sample:
    assert _dataset is not None, "the worker was not started"
    return _dataset[draw]
