"""Batches on the training device: read and made by worker processes, one batch ahead of the step.

On a CUDA device batches are copied and finished on a stream next to the one of the training step, by a
thread of their own: copies start from pinned memory and overlap with the step, and what has to wait
for a result, such as a test for valid voxels, waits only for that stream. On the CPU there is
nothing to do, and the same calls do nothing.
"""

import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vcmodels.augment import LabelCrop
from vcmodels.reporting import STOP_SIGNALS
from vcmodels.samples.dataset import (
    PatchDataset,
    PatchOrigin,
    RawSample,
    Sample,
    finish_sample,
    make_sample,
)
from vcmodels.samples.workers import read_ahead, workers_of

Item = TypeVar("Item")


def one_ahead(
    items: Generator[Item, None, None], stop: Callable[[], object]
) -> Generator[Item, None, None]:
    """The items of a generator, each made by a thread while the one before is in use.

    At most two exist at a time. What the generator raises is raised here, at the place of its item;
    when this generator is closed, or is not needed any more, so is that one, and the thread ends.

    Args:
        items: runs in the thread, and nowhere else.
        stop: called first when there are items left; makes a generator that waits give up.
    """
    thread = ThreadPoolExecutor(1, "ahead", _leave_signals)
    coming = thread.submit(next, items, None)
    try:
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
    finally:
        stop()
        thread.shutdown(cancel_futures=True)
        items.close()
        del coming  # an error holds this frame, and must not be held by it


def _leave_signals() -> None:
    """Stop signals are for the main thread, and not for processes that this one starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


@dataclass(frozen=True)
class SideStream:
    """The stream that batches are made on; None where the device has no streams."""

    device: torch.device
    stream: torch.cuda.Stream | None

    @classmethod
    def of(cls, device: torch.device) -> "SideStream":
        """A new one."""
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        return cls(device, stream)

    def working(self) -> AbstractContextManager[object]:
        """In this context the calling thread works on the stream."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def mark(self) -> torch.cuda.Event | None:
        """A mark behind all that the stream was given so far."""
        if self.stream is None:
            return None
        mark = torch.cuda.Event()
        mark.record(self.stream)
        return mark

    def hand_over(self, tensors: Iterable[Tensor], mark: torch.cuda.Event | None) -> None:
        """Let the caller's stream wait for the mark, then use the tensors as its own."""
        if mark is None:
            return
        current = torch.cuda.current_stream(self.device)
        current.wait_event(mark)
        for tensor in tensors:
            tensor.record_stream(current)  # else its memory is given away while it is read

    def moved(self, tensor: Tensor) -> Tensor:
        """The tensor on the device; the host does not wait for the copy."""
        if self.stream is None:
            return tensor.to(self.device)
        # The allocator keeps pinned memory until the copy is done.
        return tensor.contiguous().pin_memory().to(self.device, non_blocking=True)

    def moved_sample(self, sample: RawSample) -> RawSample:
        """A sample with all its tensors on the device."""
        labels = {key: self._moved_label(label) for key, label in sample.labels.items()}
        return replace(sample, image=self.moved(sample.image), labels=labels)

    def _moved_label(self, label: LabelCrop) -> LabelCrop:
        return replace(label, values=self.moved(label.values), valid=self.moved(label.valid))


TIMEOUT_S = 900.0
"""A patch that takes longer than this hangs (a dead file server, for instance)."""


@dataclass(frozen=True)
class Batch:
    """What a step takes, on the training device."""

    image: Tensor
    """(B, C, *patch) float32."""
    labels: dict[str, Tensor]
    """(B, L, *patch) float32 per target."""
    valid: dict[str, Tensor]
    """(B, V, *patch) bool per target, V being 1 or L."""
    places: tuple[PatchOrigin, ...]
    weight: dict[str, Tensor | None] = field(default_factory=dict)
    """(B, 1, 1, 1, 1) float32 per target, how much each sample counts in the loss; None: all alike.
    """

    @property
    def tensors(self) -> Iterator[Tensor]:
        """All of them."""
        weights = (weight for weight in self.weight.values() if weight is not None)
        return chain([self.image], self.labels.values(), self.valid.values(), weights)

    def singles(self) -> Iterator["Batch"]:
        """Its samples, each as a batch of its own."""
        for n in range(len(self.image)):
            row = slice(n, n + 1)
            yield Batch(
                self.image[row],
                {name: label[row] for name, label in self.labels.items()},
                {name: valid[row] for name, valid in self.valid.items()},
                self.places[row],
                {name: None if w is None else w[row] for name, w in self.weight.items()},
            )


def batches(
    dataset: PatchDataset,
    groups: Sequence[Sequence[int]],
    *,
    workers: int,
    device: torch.device,
    timeout_s: float = TIMEOUT_S,
) -> Generator[Batch, None, None]:
    """A batch for each group of draws, in order.

    The samples do not depend on the number of workers. Workers read and, when the device is the CPU,
    make the whole patch; a thread here stacks patches, or moves crops to another device and makes
    patches of them there, one batch ahead. Workers start at the first call and stay for later ones,
    until the dataset is let go. Without workers all this happens when a batch is asked for.

    Args:
        dataset: where samples come from.
        groups: the draws of each batch.
        workers: processes that read ahead; 0 reads here.
        device: of the batches.
        timeout_s: how long one sample may take a worker.

    Raises:
        RunError: a worker died, hangs, or met data that cannot be used; names the patch.
    """
    if not workers:
        yield from _made_here(dataset, groups, device)
        return
    workers_of(dataset, workers)  # started by this thread, which holds back the stop signals
    side, stopping = SideStream.of(device), Future[None]()
    made = _made_by_workers(dataset, groups, workers, side, timeout_s, stopping)
    for batch, mark in one_ahead(made, lambda: stopping.set_result(None)):
        side.hand_over(batch.tensors, mark)
        yield batch


def stacked(patches: Sequence[Sample], side: SideStream) -> Batch:
    """One batch of patches, on the device that they are on."""
    first = patches[0]
    return Batch(
        _stack([patch.image for patch in patches]),
        {name: _stack([patch.labels[name] for patch in patches]) for name in first.labels},
        {name: _stack([patch.valid[name] for patch in patches]) for name in first.valid},
        tuple(patch.place for patch in patches),
        {name: _weight(name, patches, side) for name in first.labels},
    )


def _made_here(
    dataset: PatchDataset, groups: Iterable[Sequence[int]], device: torch.device
) -> Iterator[Batch]:
    """Batches made by the calling thread, on its own stream."""
    here = SideStream(device, None)
    for draws in groups:
        samples = (here.moved_sample(dataset.read(draw, dataset.row(draw))) for draw in draws)
        yield stacked([finish_sample(sample, dataset) for sample in samples], here)


def _made_by_workers(
    dataset: PatchDataset,
    groups: Sequence[Sequence[int]],
    workers: int,
    side: SideStream,
    timeout_s: float,
    stopping: Future[None],
) -> Generator[tuple[Batch, torch.cuda.Event | None], None, None]:
    """Batches as they become ready on the side stream, each with the mark to wait for."""
    options = (dataset, groups, workers, timeout_s, stopping)
    if side.device.type == "cpu":
        for patches in read_ahead(make_sample, *options):
            yield stacked(patches, side), None
        return
    for samples in read_ahead(PatchDataset.read, *options):
        with side.working():
            patches = [finish_sample(side.moved_sample(sample), dataset) for sample in samples]
            batch = stacked(patches, side)
            mark = side.mark()
        yield batch, mark


def _stack(parts: Sequence[Tensor]) -> Tensor:
    if parts[0].device.type != "cpu":
        return torch.stack(list(parts))
    # Not torch's: this thread's copy would wake threads of its own next to those of the step.
    return torch.from_numpy(np.stack([part.numpy() for part in parts]))


def _weight(name: str, patches: Sequence[Sample], side: SideStream) -> Tensor | None:
    if not any(name in patch.weights for patch in patches):
        return None
    weights = [patch.weights.get(name, 1.0) for patch in patches]
    return side.moved(torch.tensor(weights)).view(-1, 1, 1, 1, 1)
