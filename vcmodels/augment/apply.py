"""A list of augmentations applied to a sample: one geometry for all of it, then changes of values.

All except `Albumentation` are plain torch, so that they run where the image is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import exp, log
from typing import Self

import numpy as np
import torch
from torch import Tensor

from vcmodels.augment.base import (
    Augmentation,
    ElasticAugmentation,
    ExactAugmentation,
    IntensityAugmentation,
    LinearAugmentation,
)
from vcmodels.augment.resample import read_nearest, read_smooth, turn_tensor
from vcmodels.augment.slices import flat_lattice, flat_matrix
from vcmodels.augment.transform import (
    ImageInterpolation,
    SpatialTransform,
    centred,
    jacobian_field,
    read_positions,
)
from vcmodels.geometry.boxes import Shape, Spacing, grow_shape
from vcmodels.geometry.symmetries import IDENTITY, Symmetry, generated_group
from vcmodels.targets.base import Target


@dataclass(frozen=True)
class LabelCrop:
    """A label on its way from the volume to the patch.

    Attributes:
        values: (L, *crop) float32, 0 where not valid; crop is `SpatialTransform.input_shape` of the
            patch and its margin.
        valid: (V, *crop) bool, V being 1 or L.
        target: whose rules the values follow; None for ids, which are moved as they are.
        margin: voxels around the patch, on each side, that are wanted too.
    """

    values: Tensor
    valid: Tensor
    target: Target | None
    margin: Shape = (0, 0, 0)


def changed(label: LabelCrop, jacobian: Tensor, spacing: Spacing) -> LabelCrop:
    """A label whose voxels have been moved, with its values turned."""
    if label.target is None:
        return label
    values, valid = label.target.turn(label.values, label.valid, jacobian, spacing)
    return replace(label, values=values, valid=valid)


@dataclass(frozen=True)
class Sources:
    """What is read from one crop: images smoothly, labels as their targets say.

    Attributes:
        images: each (C, *crop) float32.
        interpolation: of the images.
        labels: by name, of the same crop.
        spread: of the labels that are averaged, what is averaged.
        holed: valid masks that are not true everywhere. Most are: reading them would cost as much
            as a label.
        weights: (1, *crop) float32, which voxels of an averaged label with holes count.
    """

    images: Sequence[Tensor]
    interpolation: ImageInterpolation
    labels: Mapping[str, LabelCrop]
    spread: dict[str, Tensor]
    holed: dict[str, Tensor]
    weights: dict[str, Tensor]

    @classmethod
    def prepared(
        cls,
        images: Sequence[Tensor],
        labels: Mapping[str, LabelCrop],
        interpolation: ImageInterpolation,
    ) -> Self:
        """What is done once for each crop."""
        spread = {
            name: label.target.spread(label.values)
            for name, label in labels.items()
            if label.target is not None and label.target.interpolation == "linear"
        }
        holed = {n: c.valid for n, c in labels.items() if not c.valid.view(torch.uint8).amin()}
        weights = {n: holed[n].all(0, keepdim=True).float() for n in spread if n in holed}
        return cls(images, interpolation, labels, spread, holed, weights)

    def read(self, position: Tensor) -> tuple[list[Tensor], dict[str, LabelCrop]]:
        """Images and labels at places (3, z, y, x) of the crop; vectors have not been turned yet."""
        linear = [*self.spread.values(), *self.weights.values()]
        if self.interpolation == "linear":
            read = read_smooth([*self.images, *linear], position)
        else:
            read = read_smooth(self.images, position, "cubic") + read_smooth(linear, position)
        first, last = len(self.images), len(self.images) + len(self.spread)
        means = dict(zip(self.spread, read[first:last], strict=True))
        shares = dict(zip(self.weights, read[last:], strict=True))
        whole = torch.ones((1, *position.shape[1:]), dtype=torch.bool, device=position.device)
        moved: dict[str, LabelCrop] = {}
        for name, label in self.labels.items():
            valid = whole.expand(len(label.valid), -1, -1, -1)
            if name in self.holed:
                valid = read_nearest(label.valid, position)
            if name in means:
                values = _settled(label, means[name], shares.get(name), valid)
            else:
                values = read_nearest(label.values, position)
            moved[name] = replace(label, values=values, valid=valid)
        return read[:first], moved


def _settled(label: LabelCrop, mean: Tensor, share: Tensor | None, valid: Tensor) -> Tensor:
    """A label from its averages; `share` is how much of each average was valid, None for all."""
    assert label.target is not None
    if share is None:
        return label.target.settle(mean)
    # The nearest of eight neighbours weighs at least 1/8.
    return torch.where(valid, label.target.settle(mean / share.clamp_min(1 / 16)), 0.0)


BLOCK = 48
"""Side of the blocks that are resampled one by one on the CPU.

All that one of them needs stays in the cache, and in memory that the process has already: to get
fresh pages for fields of Jacobians of a whole patch took as long as to compute them.
"""


def sample_spatial(
    augmentations: Sequence[Augmentation],
    rng: np.random.Generator,
    patch: Shape,
    spacing: Spacing,
    interpolation: ImageInterpolation = "linear",
) -> SpatialTransform:
    """Draw the geometry of one sample from the geometric augmentations in the list.

    All maps of one kind are composed in the order of the list. Whatever the order of kinds, the
    patch is resampled at most once, and mirrored and turned after that. A patch that is one voxel
    thick is resampled in its plane.

    Args:
        augmentations: the task's list; those of other families are passed over.
        rng: the only source of randomness.
        patch: shape of the patch that the network sees, (z, y, x) voxels.
        spacing: length of a voxel along (z, y, x), in any one unit.
        interpolation: of the image, where it is resampled.
    """
    symmetry = IDENTITY
    for exact in augmentations:
        if isinstance(exact, ExactAugmentation):
            symmetry = exact.sample_symmetry(rng, spacing) @ symmetry
    shape = symmetry.inverse.turned_shape(patch)
    matrix, lattices = None, []
    for free in augmentations:
        if isinstance(free, LinearAugmentation) and free.happens(rng):
            drawn = flat_matrix(free.sample_matrix(rng, shape, spacing), shape)
            matrix = drawn if matrix is None else matrix @ drawn
        elif isinstance(free, ElasticAugmentation) and free.happens(rng):
            lattices.append(flat_lattice(free.sample_lattice(rng, shape, spacing), shape))
    return SpatialTransform(symmetry, matrix, tuple(lattices), interpolation)


def exact_moves(augmentations: Sequence[Augmentation], spacing: Spacing) -> tuple[Symmetry, ...]:
    """Every symmetry that the mirrors and turns in the list may give together, the identity included.

    Args:
        augmentations: the task's list.
        spacing: length of a voxel along (z, y, x).
    """
    moves = [
        move
        for exact in augmentations
        if isinstance(exact, ExactAugmentation)
        for move in exact.moves(spacing)
    ]
    return generated_group(moves)


@torch.no_grad()
def apply_spatial(
    transform: SpatialTransform,
    image: Tensor,
    labels: Mapping[str, LabelCrop],
    patch: Shape,
    spacing: Spacing,
) -> tuple[Tensor, dict[str, LabelCrop]]:
    """Turn a crop into the patch, values of vector labels included. Nothing is written in place.

    The image is interpolated as the transform says, each label as its target says. A label that is
    interpolated linearly is averaged over its valid neighbours only (normalised convolution;
    Knutsson and Westin 1993, CVPR). A voxel is valid when the voxel nearest to where it was read is.

    Args:
        transform: from `sample_spatial`.
        image: (C, *crop) float32; crop is `transform.input_shape(patch, spacing)`.
        labels: by name; each of them cropped for the patch and its own margin.
        patch: shape of the result, (z, y, x).
        spacing: length of a voxel along (z, y, x), in any one unit.

    Returns:
        The image, of shape `patch`, and the labels, of shape `patch` and their margin, on the
        device of the arguments.

    Raises:
        ValueError: an array does not have the shape of its crop.
    """
    _check_crop(transform, patch, spacing, image)
    grown = {margin: grow_shape(patch, margin) for margin in {c.margin for c in labels.values()}}
    for label in labels.values():
        _check_crop(transform, grown[label.margin], spacing, label.values, label.valid)
    moved = dict(labels)
    if not transform.is_exact:
        image, moved = _warp(transform, image, moved, patch, spacing)
    symmetry = transform.symmetry
    if symmetry.is_identity:
        return image, moved
    jacobian = torch.as_tensor(symmetry.matrix, dtype=torch.float32, device=image.device)
    return (
        turn_tensor(symmetry, image),
        {name: _turned(label, symmetry, jacobian, spacing) for name, label in moved.items()},
    )


def _check_crop(
    transform: SpatialTransform, patch: Shape, spacing: Spacing, *arrays: Tensor
) -> None:
    crop = transform.input_shape(patch, spacing)
    for array in arrays:
        if tuple(array.shape[1:]) != crop:
            raise ValueError(f"the crop must have shape {crop}, got {tuple(array.shape[1:])}")


def _turned(label: LabelCrop, symmetry: Symmetry, jacobian: Tensor, spacing: Spacing) -> LabelCrop:
    """A label after an exact move, values included."""
    values, valid = turn_tensor(symmetry, label.values), turn_tensor(symmetry, label.valid)
    return changed(replace(label, values=values, valid=valid), jacobian, spacing)


def _warp(
    transform: SpatialTransform,
    image: Tensor,
    labels: dict[str, LabelCrop],
    patch: Shape,
    spacing: Spacing,
) -> tuple[Tensor, dict[str, LabelCrop]]:
    """Resample everything, and turn the values of the labels: one crop for each margin."""
    no_margin, moved = (0, 0, 0), dict(labels)
    for margin in {no_margin, *(label.margin for label in labels.values())}:
        here = {name: label for name, label in labels.items() if label.margin == margin}
        images = [image] if margin == no_margin else []
        sources = Sources.prepared(images, here, transform.interpolation)
        images, here = _warp_crop(transform, sources, grow_shape(patch, margin), spacing)
        if margin == no_margin:
            (image,) = images
        moved |= here
    return image, moved


def _warp_crop(
    transform: SpatialTransform, sources: Sources, patch: Shape, spacing: Spacing
) -> tuple[list[Tensor], dict[str, LabelCrop]]:
    """Resample one crop, block by block."""
    shape, crop = transform.warped_shape(patch), transform.input_shape(patch, spacing)
    arrays = [*sources.images, *(label.values for label in sources.labels.values())]
    device = arrays[0].device
    turning = any(_changes_values(label.target) for label in sources.labels.values())
    whole: list[Tensor] = []
    for block in _blocks(shape, device):
        voxels = [centred(n)[side] for n, side in zip(shape, block, strict=True)]
        position = read_positions(transform, voxels, crop, spacing, device)
        images, labels = sources.read(position)
        if turning:
            jacobian = jacobian_field(transform, voxels, spacing, device)
            labels = {n: changed(label, jacobian, spacing) for n, label in labels.items()}
        parts = [*images, *(part for c in labels.values() for part in (c.values, c.valid))]
        whole = whole or [part.new_empty(len(part), *shape) for part in parts]
        for result, part in zip(whole, parts, strict=True):
            result[:, *block] = part
    results = iter(whole[len(sources.images) :])
    return whole[: len(sources.images)], {
        name: replace(label, values=next(results), valid=next(results))
        for name, label in sources.labels.items()
    }


def _blocks(shape: Shape, device: torch.device) -> Iterator[tuple[slice, ...]]:
    """Parts of a patch that together are all of it: all at once, but on the CPU."""
    sides = [range(0, n, BLOCK if device.type == "cpu" else n) for n in shape]
    for corner in product(*sides):
        yield tuple(slice(low, low + r.step) for low, r in zip(corner, sides, strict=True))


def _changes_values(target: Target | None) -> bool:
    return target is not None and target.follows_warps


SMALLEST_SPAN = 1e-6
"""A channel whose values span less than this is constant."""


@torch.no_grad()
def apply_intensity(
    augmentations: Sequence[Augmentation], image: Tensor, rng: np.random.Generator
) -> Tensor:
    """Change the values of one image by the intensity augmentations in the list, in its order.

    Args:
        augmentations: the task's list; geometric ones are passed over.
        image: (C, Z, Y, X) float32, normalised, on any device. Never written to.
        rng: the only source of randomness.

    Returns:
        (C, Z, Y, X) float32; `image` itself when nothing was drawn.
    """
    for augmentation in augmentations:
        if isinstance(augmentation, IntensityAugmentation) and augmentation.happens(rng):
            if augmentation.per_channel and len(image) > 1:
                parts = [augmentation.change(channel[None], rng) for channel in image]
                image = torch.cat(parts)
            else:
                image = augmentation.change(image, rng)
    return image


def draw_factor(ends: tuple[float, float], rng: np.random.Generator) -> float:
    """A factor between two, evenly on a log scale: halving is as likely as doubling."""
    return exp(rng.uniform(log(ends[0]), log(ends[1])))


def draw_count(ends: tuple[int, int], rng: np.random.Generator) -> int:
    """A whole number from the first to the last, both included."""
    return int(rng.integers(ends[0], ends[1] + 1))


def value_range(image: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest value of each channel and its distance to the highest, at least `SMALLEST_SPAN`.

    (C, Z, Y, X) -> twice (C, 1, 1, 1).
    """
    # One by one: `aminmax` along a dimension takes 2 ms for 96^3 voxels on one core, this 0.1.
    ends = torch.stack([torch.stack(torch.aminmax(channel)) for channel in image])
    low, high = ends[..., None, None, None].unbind(1)
    return low, (high - low).clamp_min(SMALLEST_SPAN)
