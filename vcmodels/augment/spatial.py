"""One sampled geometry for image, labels, valid masks and vector components."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vcmodels.augment.base import (
    Augmentation,
    ElasticAugmentation,
    ExactAugmentation,
    LinearAugmentation,
)
from vcmodels.augment.lattice import centred
from vcmodels.augment.transform import Spacing, SpatialTransform
from vcmodels.geometry.boxes import Shape, grow_shape
from vcmodels.geometry.symmetries import IDENTITY, Symmetry
from vcmodels.targets.base import Target

Arrays = dict[str, Tensor]


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


def sample_spatial(
    augmentations: Sequence[Augmentation],
    rng: np.random.Generator,
    patch: Shape,
    spacing: Spacing,
) -> SpatialTransform:
    """Draw the geometry of one sample from the geometric augmentations in the list.

    All maps of one kind are composed in the order of the list. Whatever the order of kinds, the
    patch is resampled at most once, and mirrored and turned after that.

    Args:
        augmentations: the task's list; those of other families are passed over.
        rng: the only source of randomness.
        patch: shape of the patch that the network sees, (z, y, x) voxels.
        spacing: length of a voxel along (z, y, x), in any one unit.
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
    return SpatialTransform(symmetry, matrix, tuple(lattices))


@torch.no_grad()
def apply_spatial(
    transform: SpatialTransform,
    image: Tensor,
    labels: Mapping[str, LabelCrop],
    patch: Shape,
    spacing: Spacing,
) -> tuple[Tensor, dict[str, LabelCrop]]:
    """Turn a crop into the patch, values of vector labels included. Nothing is written in place.

    The image is interpolated linearly, each label as its target says. A label that is interpolated
    linearly is averaged over the valid neighbours alone (normalised convolution; Knutsson and
    Westin 1993, CVPR). A voxel is valid when the voxel nearest to where it was read is.

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
    if label.target is not None:
        values, valid = label.target.turn(values, valid, jacobian, spacing)
    return replace(label, values=values, valid=valid)


def turn_tensor(symmetry: Symmetry, tensor: Tensor) -> Tensor:
    """The symmetry on the last three axes (z, y, x) of a tensor; values are not changed."""
    lead = tensor.ndim - 3
    axes = (*range(lead), *(lead + axis for axis in symmetry.permutation))
    flips = [lead + axis for axis, flip in enumerate(symmetry.flips) if flip]
    return tensor.permute(axes).flip(flips).contiguous()


def _warp(
    transform: SpatialTransform,
    image: Tensor,
    labels: dict[str, LabelCrop],
    patch: Shape,
    spacing: Spacing,
) -> tuple[Tensor, dict[str, LabelCrop]]:
    """Resample everything, then turn the values of the labels: one grid for each margin."""
    no_margin = (0, 0, 0)
    warped: dict[str, LabelCrop] = {}
    for margin in {no_margin, *(label.margin for label in labels.values())}:
        shape = transform.warped_shape(grow_shape(patch, margin))
        crop = transform.input_shape(grow_shape(patch, margin), spacing)
        grid = _sampling_grid(transform, shape, crop, spacing, image.device)
        here = {name: label for name, label in labels.items() if label.margin == margin}
        pictures = {"": image} if margin == no_margin else {}
        pictures, moved = _resample(pictures, here, grid)
        if margin == no_margin:
            image = pictures[""]
        turning = [n for n, label in moved.items() if _changes_values(label.target)]
        jacobian = _jacobian(transform, shape, spacing, image.device) if turning else None
        for name in turning:
            label, target = moved[name], moved[name].target
            assert target is not None
            assert jacobian is not None
            values, valid = target.turn(label.values, label.valid, jacobian, spacing)
            moved[name] = replace(label, values=values, valid=valid)
        warped |= moved
    return image, {name: warped[name] for name in labels}


def _changes_values(target: Target | None) -> bool:
    return target is not None and type(target).turn is not Target.turn


def _resample(
    pictures: Arrays, labels: Mapping[str, LabelCrop], grid: Tensor
) -> tuple[Arrays, dict[str, LabelCrop]]:
    """Sample pictures linearly and labels as their targets say, all on one grid."""
    smooth, rough, holed = {}, {}, {}
    for name, label in labels.items():
        if label.target is not None and label.target.interpolation == "linear":
            smooth[name] = label.target.spread(label.values)
        else:
            rough[name] = label.values
        # Most masks are true everywhere: sampling them would cost as much as a label.
        if not label.valid.all():
            holed[name] = label.valid.float()
    weights = {name: mask.amin(0, keepdim=True) for name, mask in holed.items() if name in smooth}
    pictures, smooth, weights = _sample((pictures, smooth, weights), grid, "bilinear")
    rough, holed = _sample((rough, holed), grid, "nearest")
    result: dict[str, LabelCrop] = {}
    for name, label in labels.items():
        whole = torch.ones((1, *grid.shape[1:4]), dtype=torch.bool, device=grid.device)
        valid = holed[name] > 0.5 if name in holed else whole.expand(len(label.valid), -1, -1, -1)
        if name in smooth:
            assert label.target is not None
            if name in weights:
                # The nearest of eight neighbours weighs at least 1/8.
                smooth[name] = smooth[name] / weights[name].clamp_min(1 / 16)
            values = torch.where(valid, label.target.settle(smooth[name]), 0.0)
        else:
            values = rough[name]
        result[name] = replace(label, values=values, valid=valid)
    return pictures, result


def _sample(groups: Sequence[Arrays], grid: Tensor, mode: str) -> list[Arrays]:
    """Sample all the (C, *crop) float32 arrays in some dictionaries in one call."""
    arrays = [array for group in groups for array in group.values()]
    if not arrays:
        return [{} for _ in groups]
    stacked = torch.cat(arrays)[None]
    sampled = F.grid_sample(stacked, grid, mode=mode, padding_mode="border", align_corners=True)[0]
    parts = iter(sampled.split([array.shape[0] for array in arrays]))
    return [{name: next(parts) for name in group} for group in groups]


def _sampling_grid(
    transform: SpatialTransform,
    shape: Shape,
    crop: Sequence[int],
    spacing: Spacing,
    device: torch.device,
) -> Tensor:
    """Where each voxel reads the crop, as `grid_sample` wants it: (1, Z, Y, X, 3), last axis x, y, z."""
    matrix = torch.as_tensor(transform.voxel_matrix(spacing), dtype=torch.float32, device=device)
    voxels = [centred(n) for n in shape]
    z, y, x = (
        torch.outer(column, torch.as_tensor(places, dtype=torch.float32, device=device))
        for column, places in zip(matrix.T, voxels, strict=True)
    )
    position = (z[:, :, None, None] + y[:, None, :, None]) + x[:, None, None, :]
    for lattice in transform.lattices:
        position += _spline(lattice.offsets, lattice.basis(voxels), device)
    # From voxels off the centre to -1 ... 1 between the centres of the outermost voxels.
    for axis, extent in enumerate(crop):
        position[axis] *= 2 / max(extent - 1, 1)
    return position.flip(0).movedim(0, -1)[None]


def _jacobian(
    transform: SpatialTransform, shape: Shape, spacing: Spacing, device: torch.device
) -> Tensor:
    """Of the sampling map in physical units: (3, 3), or (3, 3, Z, Y, X) with a lattice."""
    linear = np.eye(3) if transform.matrix is None else transform.matrix
    matrix = torch.as_tensor(linear, dtype=torch.float32, device=device)
    if not transform.lattices:
        return matrix
    field = matrix.view(3, 3, 1, 1, 1).repeat(1, 1, *shape)
    side = np.asarray(spacing, dtype=np.float32)
    voxels = [centred(n) for n in shape]
    for lattice in transform.lattices:
        for axis in range(3):
            offsets = lattice.offsets * (side / side[axis])[:, None, None, None]
            field[:, axis] += _spline(offsets, lattice.basis(voxels, along=axis), device)
    return field


def _spline(offsets: np.ndarray, basis: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """The separable product of control values (3, kz, ky, kx) with a basis: (3, Z, Y, X) float32."""
    z, y, x = (torch.as_tensor(matrix, device=device) for matrix in basis)
    partial = torch.as_tensor(offsets, device=device) @ x.T
    partial = y @ partial
    planes = z @ partial.flatten(2)
    return planes.unflatten(2, partial.shape[2:])
