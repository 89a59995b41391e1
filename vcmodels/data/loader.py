"""Samples from worker processes, in order, and their last steps on the training device."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vcmodels.augment import LabelCrop, apply_spatial
from vcmodels.data.dataset import PatchDataset, Place, Sample
from vcmodels.data.labels import derived, sample_key
from vcmodels.data.workers import read_ahead
from vcmodels.geometry.boxes import Shape
from vcmodels.targets import AnyTarget
from vcmodels.targets.base import Spacing

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
    places: tuple[Place, ...]
    weight: dict[str, Tensor | None] = field(default_factory=dict)
    """(B, 1, 1, 1, 1) float32 per target, how much each sample counts in the loss; None: all alike.
    """


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
        read_ahead(dataset, numbers, workers, batch_size, timeout_s)
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
    device: torch.device,
) -> Batch:
    """Move samples to the device, apply their geometric transforms there, and stack them.

    Labels that are derived from others are computed here, from what those look like by then.
    """
    images: list[Tensor] = []
    labels: dict[str, list[Tensor]] = {name: [] for name in targets}
    valid: dict[str, list[Tensor]] = {name: [] for name in targets}
    for sample in samples:
        image = sample.image.to(device, non_blocking=True)
        crops = {key: _on(label, device) for key, label in sample.labels.items()}
        if not sample.transform.is_identity:
            image, crops = apply_spatial(sample.transform, image, crops, patch, sample.spacing)
        images.append(image)
        for name, target in targets.items():
            label, counts = _label(target, crops[sample_key(name, target)], sample.spacing)
            labels[name].append(label)
            valid[name].append(counts & (sample.weights.get(name, 1.0) > 0))
    return Batch(
        torch.stack(images),
        {name: torch.stack(parts) for name, parts in labels.items()},
        {name: torch.stack(parts) for name, parts in valid.items()},
        tuple(sample.place for sample in samples),
        {name: _weight(name, samples, device) for name in targets},
    )


def _label(target: AnyTarget, crop: LabelCrop, spacing: Spacing) -> tuple[Tensor, Tensor]:
    """Label and valid voxels of a patch, from its own crop or derived from that of ids."""
    if target.derive is None:
        return crop.values, crop.valid
    return derived(target, crop.values, crop.valid, crop.margin, spacing)


def _weight(name: str, samples: Sequence[Sample], device: torch.device) -> Tensor | None:
    if not any(name in sample.weights for sample in samples):
        return None
    weights = [sample.weights.get(name, 1.0) for sample in samples]
    return torch.tensor(weights, device=device).view(-1, 1, 1, 1, 1)


def _on(label: LabelCrop, device: torch.device) -> LabelCrop:
    return replace(
        label,
        values=label.values.to(device, non_blocking=True),
        valid=label.valid.to(device, non_blocking=True),
    )
