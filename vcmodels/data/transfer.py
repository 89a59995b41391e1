"""From host memory to the training device, without keeping the device's own work waiting.

On a CUDA device batches are copied and finished on a stream beside that of the training step, by a
thread of their own: copies start from pinned memory and overlap with the step, and what has to wait
for a result, such as a test for valid voxels, waits for that stream alone. On the CPU there is
nothing to do, and the same calls do nothing.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vcmodels.augment import LabelCrop
from vcmodels.data.dataset import Sample


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

    def moved_sample(self, sample: Sample) -> Sample:
        """A sample with all its tensors on the device."""
        labels = {key: self._moved_label(label) for key, label in sample.labels.items()}
        return replace(sample, image=self.moved(sample.image), labels=labels)

    def _moved_label(self, label: LabelCrop) -> LabelCrop:
        return replace(label, values=self.moved(label.values), valid=self.moved(label.valid))
