"""One sampled geometry for image, labels, valid masks and vector components."""

from collections.abc import Mapping, Sequence

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
from vcmodels.geometry.boxes import Shape
from vcmodels.geometry.symmetries import IDENTITY, Symmetry
from vcmodels.targets.base import Target

Arrays = dict[str, Tensor]


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
    labels: Mapping[str, Tensor],
    valid: Mapping[str, Tensor],
    targets: Mapping[str, Target],
    patch: Shape,
    spacing: Spacing,
) -> tuple[Tensor, Arrays, Arrays]:
    """Turn a crop into the patch, values of vector labels included. Nothing is written in place.

    The image is interpolated linearly, each label as its target says. A label that is interpolated
    linearly is averaged over the valid neighbours alone (normalised convolution; Knutsson and
    Westin 1993, CVPR). A voxel is valid when the voxel nearest to where it was read is.

    Args:
        transform: from `sample_spatial`.
        image: (C, *crop) float32; crop is `transform.input_shape(patch, spacing)`.
        labels: (L, *crop) float32 by target name, 0 where not valid.
        valid: (1, *crop) bool by target name.
        targets: the kind of each label.
        patch: shape of the result, (z, y, x).
        spacing: length of a voxel along (z, y, x), in any one unit.

    Returns:
        image, labels and valid of shape `patch`, on the device of the arguments.

    Raises:
        ValueError: the arrays do not have the shape of the crop.
    """
    crop = transform.input_shape(patch, spacing)
    for array in (image, *labels.values(), *valid.values()):
        if tuple(array.shape[1:]) != crop:
            raise ValueError(f"the crop must have shape {crop}, got {tuple(array.shape[1:])}")
    labels, valid = dict(labels), dict(valid)
    if not transform.is_exact:
        image, labels, valid = _warp(transform, image, labels, valid, targets, patch, spacing)
    symmetry = transform.symmetry
    if symmetry.is_identity:
        return image, labels, valid
    jacobian = torch.as_tensor(symmetry.matrix, dtype=torch.float32, device=image.device)
    return (
        turn_tensor(symmetry, image),
        {
            name: targets[name].turn(turn_tensor(symmetry, label), jacobian)
            for name, label in labels.items()
        },
        {name: turn_tensor(symmetry, mask) for name, mask in valid.items()},
    )


def turn_tensor(symmetry: Symmetry, tensor: Tensor) -> Tensor:
    """The symmetry on the last three axes (z, y, x) of a tensor; values are not changed."""
    lead = tensor.ndim - 3
    axes = (*range(lead), *(lead + axis for axis in symmetry.permutation))
    flips = [lead + axis for axis, flip in enumerate(symmetry.flips) if flip]
    return tensor.permute(axes).flip(flips).contiguous()


def _warp(
    transform: SpatialTransform,
    image: Tensor,
    labels: Arrays,
    valid: Arrays,
    targets: Mapping[str, Target],
    patch: Shape,
    spacing: Spacing,
) -> tuple[Tensor, Arrays, Arrays]:
    """Resample everything on one grid, then turn the values of the labels."""
    shape = transform.warped_shape(patch)
    grid = _sampling_grid(transform, shape, image.shape[1:], spacing, image.device)
    smooth = {n: label for n, label in labels.items() if targets[n].interpolation == "linear"}
    rough = {n: label for n, label in labels.items() if n not in smooth}
    # Most masks are true everywhere: sampling them would cost as much as a label.
    holed = {n: mask.float() for n, mask in valid.items() if not mask.all()}
    weights = {n: mask for n, mask in holed.items() if n in smooth}

    (image_only, smooth, weights) = _sample(({"": image}, smooth, weights), grid, "bilinear")
    (rough, holed) = _sample((rough, holed), grid, "nearest")
    whole = torch.ones((1, *shape), dtype=torch.bool, device=image.device)
    masks = {n: holed[n] > 0.5 if n in holed else whole for n in valid}
    for n, weight in weights.items():
        # The nearest of eight neighbours weighs at least 1/8.
        smooth[n] = torch.where(masks[n], smooth[n] / weight.clamp_min(1 / 16), 0.0)

    warped = {n: smooth[n] if n in smooth else rough[n] for n in labels}
    turning = [n for n in labels if type(targets[n]).turn is not Target.turn]
    if turning:
        jacobian = _jacobian(transform, shape, spacing, image.device)
        warped |= {n: targets[n].turn(warped[n], jacobian) for n in turning}
    return image_only[""], warped, masks


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
