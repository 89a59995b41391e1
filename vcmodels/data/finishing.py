"""The last steps of a sample: its geometric transform, labels that are derived, changes of values.

They run where the crops are: in a worker when the training device is the CPU, else on the device.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from vcmodels.augment import LabelCrop, apply_intensity, apply_spatial
from vcmodels.data.dataset import PatchDataset, Place, Sample
from vcmodels.data.labels import derived, sample_key
from vcmodels.data.sampling import Stream, generator
from vcmodels.targets import AnyTarget
from vcmodels.targets.base import Spacing


@dataclass(frozen=True)
class Finished:
    """One patch as the network gets it."""

    image: Tensor
    """(C, *patch) float32."""
    labels: dict[str, Tensor]
    """(L, *patch) float32 per target."""
    valid: dict[str, Tensor]
    """(V, *patch) bool per target, V being 1 or L."""
    place: Place
    weights: Mapping[str, float]
    """As of the sample."""


@torch.no_grad()
def finish(sample: Sample, dataset: PatchDataset) -> Finished:
    """What a sample of the dataset becomes, on the device that it is on.

    Space comes first: labels are derived from what the ids look like by then, and noise that was
    added before would be smoothed by the resampling. On the CPU the result is the same to the bit in
    every process, however many threads it has.
    """
    with _one_thread() if sample.image.device.type == "cpu" else nullcontext():
        image, crops = sample.image, sample.labels
        if not sample.transform.is_identity:
            image, crops = apply_spatial(
                sample.transform, image, crops, dataset.patch, sample.spacing
            )
        if dataset.augmentations:
            rng = generator(dataset.seed, sample.draw, Stream.INTENSITY)
            image = apply_intensity(dataset.augmentations, image, rng)
        labels: dict[str, Tensor] = {}
        valid: dict[str, Tensor] = {}
        for name, target in dataset.targets.items():
            label, counts = _label(target, crops[sample_key(name, target)], sample.spacing)
            labels[name] = label
            valid[name] = counts if sample.weights.get(name, 1.0) > 0 else torch.zeros_like(counts)
        return Finished(image, labels, valid, sample.place, sample.weights)


def finished(dataset: PatchDataset, draw: int, row: int) -> Finished:
    """The patch of a draw that takes this row, made here; as `PatchDataset.sample` otherwise."""
    return finish(dataset.sample(draw, row), dataset)


def _label(target: AnyTarget, crop: LabelCrop, spacing: Spacing) -> tuple[Tensor, Tensor]:
    """Label and valid voxels of a patch, from its own crop or derived from that of ids."""
    if target.derive is None:
        return crop.values, crop.valid
    return derived(target, crop.values, crop.valid, crop.margin, spacing)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums over many voxels are rounded otherwise by another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # takes a tenth of a microsecond
    try:
        yield
    finally:
        torch.set_num_threads(before)
