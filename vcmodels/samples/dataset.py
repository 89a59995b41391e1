"""From a draw number to a sample: read, check, normalise, augment, and say which voxels count.

Augmentation runs where the crops are: in a worker when the training device is the CPU, else on the
device.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from math import prod
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vcmodels.augment import (
    AnyAugmentation,
    ImageInterpolation,
    LabelCrop,
    SpatialTransform,
    apply_intensity,
    apply_spatial,
    sample_spatial,
)
from vcmodels.config import TrainingParams
from vcmodels.data.labels import (
    StoredLabel,
    derived,
    empty_crop,
    sample_key,
    shared_labels,
    widest_margin,
)
from vcmodels.data.normalization import Normalization, check_finite
from vcmodels.data.predictions import PredictedLabel
from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import RunError
from vcmodels.fields.distance import Labelled
from vcmodels.geometry.boxes import Box, Shape, Spacing, triple
from vcmodels.geometry.coordinates import COORDINATES, with_coordinates
from vcmodels.reporting import list_some
from vcmodels.samples.order import (
    DrawOrder,
    Jitter,
    LossWeightedOrder,
    Stream,
    generator,
    pushed_inside,
)
from vcmodels.targets import AnyTarget
from vcmodels.targets.base import Target
from vcmodels.volumes import Volume
from vcmodels.volumes.chunk_cache import CachedVolume, ChunkCache


@dataclass(frozen=True)
class PatchOrigin:
    """Where a sample is from."""

    volume: str
    origin: Shape
    """Of the patch, (z, y, x) in voxels of the volume."""

    def __str__(self) -> str:
        return f"volume {self.volume} at (z, y, x) = {self.origin}"


@dataclass(frozen=True)
class RawSample:
    """One patch as read: its augmentation is still to come (`finish_sample`)."""

    draw: int
    image: Tensor
    """(C, *crop) float32, normalised."""
    labels: dict[str, LabelCrop]
    """By `sample_key`: the label of each target that is stored, and the ids that others are derived
    from, with the widest margin that any of these needs."""
    transform: SpatialTransform
    place: PatchOrigin
    spacing: Spacing
    """Of the volume."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Per target with a pseudo-label, how much it counts; 0 is not at all. Others count as 1."""


@dataclass(frozen=True)
class Variation:
    """How training patches are drawn, shifted and augmented."""

    seed: int
    """Of all randomness."""
    order: DrawOrder | LossWeightedOrder
    jitter: Jitter | None = None
    augmentations: tuple[AnyAugmentation, ...] = ()
    interpolation: ImageInterpolation = "linear"
    """Of the image, where a transform resamples it."""


class PatchItem(TypedDict):
    """A sample as `torch.utils.data.default_collate` stacks it."""

    image: Tensor
    """(C, *patch) float32."""
    labels: dict[str, Tensor]
    """(L, *patch) float32 per target."""
    valid: dict[str, Tensor]
    """(V, *patch) bool per target, V being 1 or L."""
    weight: dict[str, Tensor]
    """Scalar float32 per target: how much the sample counts in its loss."""


class PatchDataset(Dataset[PatchItem]):
    """Samples by draw number: `dataset[k]` is a pure function of the seed, k and its row.

    The row is one of the seed and k, too, unless losses have a say (`LossWeightedOrder`). For
    training, patches come in random order, shifted and augmented, and draws go on without end: draws
    `n` to `2n - 1` are the patches of a second epoch, changed otherwise. Else they come row after
    row, as they are. No voxel outside of a volume's region is ever read: the image is continued
    there by reflection, and labels do not count.

    A `DataLoader` takes it as it is. For other draws in the second epoch, give it those as its
    `sampler`; with worker processes, `multiprocessing_context="forkserver"`, as Zarr's threads do
    not survive a fork.

    Args:
        volumes: all volumes of the task.
        rows: (n, 4) patches to draw from: volume number, z, y, x.
        regions: per volume, what may be read.
        targets: what labels are made for.
        patch: voxels of a patch along (z, y, x).
        normalization: statistics, as fitted on the training regions.
        variation: of training patches; None for row after row.
    """

    def __init__(
        self,
        volumes: Sequence[TaskVolume],
        rows: np.ndarray,
        regions: Sequence[Box | None],
        targets: Mapping[str, AnyTarget],
        patch: Shape,
        normalization: Normalization,
        variation: Variation | None = None,
    ) -> None:
        self.rows, self.patch, self.variation = rows, patch, variation
        self.targets: dict[str, AnyTarget] = dict(targets)
        self._volumes, self._regions = tuple(volumes), tuple(regions)
        self.coordinates = COORDINATES * any(volume.coordinates for volume in volumes)
        """How many of an image's channels, the last ones, say where its voxels lie."""
        self._normalization = normalization
        self._labels_of = shared_labels(self.targets)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def order(self) -> DrawOrder | LossWeightedOrder | None:
        """By which training patches are drawn; None for row after row."""
        return self.variation.order if self.variation else None

    def row(self, draw: int) -> int:
        """The row of the patch list that a draw takes."""
        return self.order.row(draw) if self.order else draw

    def place(self, draw: int) -> PatchOrigin:
        """Where a draw reads, without reading it."""
        volume, _, patch = self._patch(draw, self.row(draw))
        return PatchOrigin(volume.name, patch.origin)

    def __getitem__(self, draw: int) -> PatchItem:
        """The tensors of a draw, any number from 0 on.

        Raises:
            RunError: as `read`.
        """
        sample = make_sample(self, draw, self.row(draw))
        weight = {name: torch.tensor(sample.weights.get(name, 1.0)) for name in sample.labels}
        return {
            "image": sample.image,
            "labels": sample.labels,
            "valid": sample.valid,
            "weight": weight,
        }

    def read(self, draw: int, row: int) -> RawSample:
        """What a draw that takes this row reads: the same in every process.

        Raises:
            RunError: a value that is not finite or not allowed, or a chunk that cannot be read;
                names volume and place.
        """
        volume, region, patch = self._patch(draw, row)
        place = PatchOrigin(volume.name, patch.origin)
        try:
            transform, patch = self._move(draw, volume.spacing, region, patch)
            image = self._image(volume, region, transform.input_box(patch, volume.spacing))
            labels = {
                key: self._label(key, sharing, volume, region, transform, patch)
                for key, sharing in self._labels_of.items()
            }
        except OSError as error:
            raise RunError(str(place), f"{type(error).__name__}: {error}", "run again") from error
        except MemoryError as error:
            remedy = "lower num_dataloader_workers or chunk_cache_gb; the same command continues"
            raise RunError(str(place), "out of memory while it was read", remedy) from error
        # What a network has said is nothing to measure another by, unless someone asks for it.
        counts = self.variation is not None or volume.pseudo_in_val
        weights = {n: w if counts else 0.0 for n, w in volume.pseudo.items()}
        return RawSample(draw, _tensor(image), labels, transform, place, volume.spacing, weights)

    def _patch(self, draw: int, row: int) -> tuple[TaskVolume, Box, Box]:
        """Volume, region and patch of a draw."""
        number, *origin = self.rows[row].tolist()
        region = self._regions[number]
        assert region is not None, "a patch in a volume that this side does not use"
        patch = Box(triple(origin), self.patch)
        if self.variation and self.variation.jitter:
            rng = generator(self.variation.seed, draw, Stream.JITTER)
            patch = self.variation.jitter.moved(number, patch, region, rng)
        return self._volumes[number], region, patch

    def _move(
        self, draw: int, spacing: Spacing, region: Box, patch: Box
    ) -> tuple[SpatialTransform, Box]:
        """The geometric augmentation of a draw, and the patch moved for it.

        A crop that would reach out of the region is moved into it where it fits: real voxels teach
        more than padding. (Turned patches of unequal sides would otherwise be padded at borders.)
        """
        given = self.variation
        if given is None or not given.augmentations:
            return SpatialTransform.IDENTITY, patch
        rng = generator(given.seed, draw, Stream.SPACE)
        transform = sample_spatial(
            given.augmentations, rng, self.patch, spacing, given.interpolation
        )
        crop = transform.input_box(patch, spacing)
        moved = pushed_inside(crop, region)
        z, y, x = (
            o + new - old
            for o, new, old in zip(patch.origin, moved.origin, crop.origin, strict=True)
        )
        return transform, Box((z, y, x), patch.shape)

    def _image(self, volume: TaskVolume, region: Box, crop: Box) -> np.ndarray:
        """The normalised crop (C, Z, Y, X) float32; slices are stacked once they are normalised.

        Coordinates come last.
        """
        stack = volume.stack
        box = crop if stack is None else stack.needed(crop, region)
        parts = [v.read(box, within=region, pad="reflect") for v in volume.inputs]
        for part, source in zip(parts, volume.inputs, strict=True):
            check_finite(part, box, source.shown, inside=region, is_nan_void=source.is_nan_void)
        image = parts[0] if len(parts) == 1 else np.concatenate(parts)
        image = self._normalization.apply(image, self._normalization.volumes.get(volume.name))
        if stack is not None:
            image = stack.stacked(image, crop, region)
        if not volume.coordinates:
            return image
        return with_coordinates(image, len(image), crop, volume.inputs[0].extent)

    def _label(
        self,
        key: str,
        sharing: Sequence[Target],
        volume: TaskVolume,
        region: Box,
        transform: SpatialTransform,
        patch: Box,
    ) -> LabelCrop:
        """What the label of one target, or of all that share a source, is made from."""
        target = sharing[0]
        margin = widest_margin(sharing, volume.spacing)
        crop = transform.input_box(patch.grow(margin), volume.spacing)
        array = volume.labels.get(target.derive or key)
        if array is None:
            values, valid = empty_crop(target, crop.shape)
        elif target.derive is None:
            values, valid = StoredLabel(volume.name, array, region).values(target, crop)
        else:
            values, valid = StoredLabel(volume.name, array, region).ids(target, crop)
        rules = target if target.derive is None else None
        return LabelCrop(_tensor(values), _tensor(valid), rules, margin)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def describe_places(places: Sequence[PatchOrigin], most: int = 3) -> str:
    """Some places as text, for a message."""
    return list_some(places, most, between="; ")


@dataclass(frozen=True)
class Sample:
    """One patch as the network gets it."""

    image: Tensor
    """(C, *patch) float32."""
    labels: dict[str, Tensor]
    """(L, *patch) float32 per target."""
    valid: dict[str, Tensor]
    """(V, *patch) bool per target, V being 1 or L."""
    place: PatchOrigin
    weights: Mapping[str, float]
    """As of the sample."""


@torch.no_grad()
def finish_sample(sample: RawSample, dataset: PatchDataset) -> Sample:
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
        if (given := dataset.variation) and given.augmentations:
            rng = generator(given.seed, sample.draw, Stream.INTENSITY)
            image = _changed(image, given.augmentations, rng, dataset.coordinates)
        labels: dict[str, Tensor] = {}
        valid: dict[str, Tensor] = {}
        for name, target in dataset.targets.items():
            label, counts = _label(target, crops[sample_key(name, target)], sample.spacing)
            labels[name] = label
            valid[name] = counts if sample.weights.get(name, 1.0) > 0 else torch.zeros_like(counts)
        return Sample(image, labels, valid, sample.place, sample.weights)


def _changed(
    image: Tensor, augmentations: Sequence[AnyAugmentation], rng: np.random.Generator, kept: int
) -> Tensor:
    """An image with other values, but for the `kept` channels that are last."""
    if not kept:
        return apply_intensity(augmentations, image, rng)
    values, places = image[:-kept], image[-kept:]
    found = apply_intensity(augmentations, values, rng)
    return image if found is values else torch.cat([found, places])


def make_sample(dataset: PatchDataset, draw: int, row: int) -> Sample:
    """The sample of a draw that takes this row, made here; as `PatchDataset.read` otherwise."""
    return finish_sample(dataset.read(draw, row), dataset)


def _label(target: AnyTarget, crop: LabelCrop, spacing: Spacing) -> Labelled:
    """Label and valid voxels of a patch, from its own crop or derived from the crop of ids."""
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


AUTO_BYTES = 500_000_000
"""In all processes together: memory must not grow with the volumes unless someone asks for it."""


def cached_volumes(volumes: Sequence[TaskVolume], budget: int) -> tuple[TaskVolume, ...]:
    """The volumes, read through a cache of `budget` bytes that they share; as they are for 0.

    Each process that gets a copy fills one of its own.
    """
    if not budget:
        return tuple(volumes)
    cache = ChunkCache(budget)

    def cached(volume: Volume) -> Volume:
        if isinstance(volume, PredictedLabel):
            return replace(volume, source=CachedVolume.of(volume.source, cache))
        return CachedVolume.of(volume, cache)

    return tuple(
        replace(
            volume,
            inputs=tuple(map(cached, volume.inputs)),
            labels={name: cached(label) for name, label in volume.labels.items()},
        )
        for volume in volumes
    )


def worker_budget(settings: TrainingParams, volumes: Sequence[TaskVolume]) -> int:
    """Bytes that each reading process may keep, as `chunk_cache_gb` asks for.

    Patches come in random order: of volumes that do not fit, a cache would serve just the share that
    does, so `auto` keeps all or nothing.
    """
    # torchrun says how many trainers share this host's memory.
    trainers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    processes = trainers * max(settings.num_dataloader_workers, 1)
    if settings.chunk_cache_gb != "auto":
        return int(settings.chunk_cache_gb * 1e9) // processes
    needed = _decoded_bytes(volumes)
    return needed if processes * needed <= AUTO_BYTES else 0


def _decoded_bytes(volumes: Iterable[TaskVolume]) -> int:
    """Of all arrays, those that several volumes share counted once."""
    arrays = {
        array.identity: array.channels * prod(array.extent) * array.dtype.itemsize
        for volume in volumes
        for array in (*volume.inputs, *volume.labels.values())
    }
    return sum(arrays.values())
