"""One sampled geometry for image, labels, valid masks and vector components."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from vcmodels.augment.base import (
    Augmentation,
    ElasticAugmentation,
    ExactAugmentation,
    LinearAugmentation,
)
from vcmodels.augment.crops import LabelCrop, Sources, changed
from vcmodels.augment.field import jacobian_field, read_positions
from vcmodels.augment.lattice import centred
from vcmodels.augment.reading import turn_tensor
from vcmodels.augment.transform import ImageInterpolation, Spacing, SpatialTransform
from vcmodels.geometry.boxes import Shape, grow_shape
from vcmodels.geometry.symmetries import IDENTITY, Symmetry
from vcmodels.targets.base import Target

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
    patch is resampled at most once, and mirrored and turned after that.

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
            drawn = free.sample_matrix(rng, shape, spacing)
            matrix = drawn if matrix is None else matrix @ drawn
        elif isinstance(free, ElasticAugmentation) and free.happens(rng):
            lattices.append(free.sample_lattice(rng, shape, spacing))
    return SpatialTransform(symmetry, matrix, tuple(lattices), interpolation)


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
    interpolated linearly is averaged over the valid neighbours alone (normalised convolution;
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
    return target is not None and type(target).turn is not Target.turn
