"""Where each voxel of a patch is read, and the Jacobian of that map, as tensors on any device."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vcmodels.augment.transform import Spacing, SpatialTransform
from vcmodels.geometry.boxes import Shape


def read_positions(
    transform: SpatialTransform,
    voxels: Sequence[np.ndarray],
    crop: Shape,
    spacing: Spacing,
    device: torch.device,
) -> Tensor:
    """Which place of the crop each voxel of a block of the warped patch shows.

    Args:
        transform: its warp; the symmetry comes after it and has no say here.
        voxels: of the block, along z, y and x: offsets from the centre of the patch.
        crop: shape of what is read.
        spacing: length of a voxel along (z, y, x).
        device: of the result.

    Returns:
        (3, z, y, x) float32, in voxels of the crop; the first voxel's centre is at 0.
    """
    matrix = transform.voxel_matrix(spacing)
    steps = [np.outer(column, place) for column, place in zip(matrix.T, voxels, strict=True)]
    steps[0] += (np.asarray(crop)[:, None] - 1) / 2
    z, y, x = (torch.as_tensor(step, dtype=torch.float32, device=device) for step in steps)
    position = (z[:, :, None, None] + y[:, None, :, None]) + x[:, None, None, :]
    for lattice in transform.lattices:
        flat = position.flatten(2)
        flat.baddbmm_(*_spline(lattice.offsets, lattice.basis(voxels), device))
    return position


def jacobian_field(
    transform: SpatialTransform,
    voxels: Sequence[np.ndarray],
    spacing: Spacing,
    device: torch.device,
) -> Tensor:
    """Of the sampling map in physical units; arguments as for `read_positions`.

    Returns:
        (3, 3) float32, or (3, 3, z, y, x) when there is a lattice.
    """
    linear = np.eye(3) if transform.matrix is None else transform.matrix
    matrix = torch.as_tensor(linear, dtype=torch.float32, device=device)
    if not transform.lattices:
        return matrix
    # One block for the derivatives along each axis: written once, by the matrix product itself.
    columns = torch.empty(3, 3, *map(len, voxels), device=device)
    side = np.asarray(spacing, dtype=np.float32)
    for axis in range(3):
        flat, start = columns[axis].flatten(2), matrix[:, axis].view(3, 1, 1)
        for lattice in transform.lattices:
            offsets = lattice.offsets * (side / side[axis])[:, None, None, None]
            spline = _spline(offsets, lattice.basis(voxels, along=axis), device)
            start = torch.baddbmm(start, *spline, out=flat)
    return columns.transpose(0, 1)


def _spline(
    offsets: np.ndarray, basis: Sequence[np.ndarray], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The separable product of control values (3, kz, ky, kx) with a basis, but for its last step.

    Returns:
        (3, Z, kz) and (3, kz, Y X) float32, whose batched product is the field.
    """
    z, y, x = (torch.as_tensor(matrix, device=device) for matrix in basis)
    partial = y @ (torch.as_tensor(offsets, device=device) @ x.T)
    return z.expand(3, -1, -1), partial.flatten(2)
