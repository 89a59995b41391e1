"""One sampled geometric change: small enough to travel with a sample from worker to device.

The spline is separable, so that the field and its exact derivatives on every voxel of a patch are
three small matrix products (free-form deformation; Rueckert et al. 1999, IEEE TMI 18(8)).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, inf
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from vcmodels.geometry.boxes import Box, Shape, Spacing, triple
from vcmodels.geometry.symmetries import IDENTITY as UNTURNED
from vcmodels.geometry.symmetries import Symmetry

FOLDING_LIMIT = 0.4
"""Control points that move by less than 0.403 of their distance cannot fold the field.

Choi and Lee 2000, "Injectivity conditions of 2D and 3D uniform cubic B-spline functions",
Graphical Models 62: the bound in 3D is 1 / 2.479.
"""


@dataclass(frozen=True, eq=False)
class Lattice:
    """Displacements of control points; the middle one lies on the centre of the patch.

    Attributes:
        offsets: (3, kz, ky, kx) float32: displacement along (z, y, x), in voxels of each axis.
        distance: voxels between neighbouring control points along (z, y, x).
    """

    offsets: np.ndarray
    distance: tuple[float, float, float]

    def basis(
        self, positions: Sequence[np.ndarray], *, along: int | None = None
    ) -> tuple[np.ndarray, ...]:
        """One matrix (positions, control points) float32 per axis; their product is the field.

        Args:
            positions: for z, y, x, offsets from the centre of the patch in voxels.
            along: give the matrix of this axis as the derivative by position.
        """
        axes = zip(positions, self.offsets.shape[1:], self.distance, strict=True)
        return tuple(
            _spline_weights(*axis, derivative=number == along) for number, axis in enumerate(axes)
        )

    def displacement(self, positions: Sequence[np.ndarray]) -> np.ndarray:
        """The field at every combination of positions: (3, z, y, x) float32, in voxels."""
        z, y, x = self.basis(positions)
        partial = np.einsum("aijk,xk->aijx", self.offsets, x)
        partial = np.einsum("aijx,yj->aiyx", partial, y)
        return np.einsum("aiyx,zi->azyx", partial, z)

    @property
    def sampling_error(self) -> np.ndarray:
        """How much the field can exceed its largest value at 8 samples a control interval, (3,).

        No second derivative exceeds 4 control values per squared interval, and the largest value
        is within 1/16 of an interval of a sample along each axis: (3/16)^2 / 2 * 4 = 0.07 of the
        largest control value. Adding a linear map does not change this.
        """
        return 0.0704 * np.abs(self.offsets).max(axis=(1, 2, 3))


def control_points(shape: Shape, distance: tuple[float, float, float]) -> Shape:
    """How many control points per axis support a spline on all voxels of `shape`."""
    return triple(ceil((n - 1) / d) + 3 for n, d in zip(shape, distance, strict=True))


def centred(count: int) -> np.ndarray:
    """Offsets of `count` voxels from their centre, float64."""
    return np.arange(count) - (count - 1) / 2


def _spline_weights(
    positions: np.ndarray, points: int, distance: float, *, derivative: bool = False
) -> np.ndarray:
    """(positions, points) float32: the cubic B-spline of each control point, or its slope."""
    t = positions[:, None] / distance - centred(points)
    near, far = np.abs(t), np.clip(2 - np.abs(t), 0, 1)
    if derivative:
        slope = np.where(near < 1, 1.5 * near**2 - 2 * near, -(far**2) / 2)
        return (np.sign(t) * slope / distance).astype(np.float32)
    return np.where(near < 1, 2 / 3 - near**2 + near**3 / 2, far**3 / 6).astype(np.float32)


ImageInterpolation = Literal["linear", "cubic"]


@dataclass(frozen=True, eq=False)
class SpatialTransform:
    """`patch = symmetry(warp(crop))`: one resampling at most, then an exact move.

    Crop and patch share their centre. With u the offset from it in voxels, the warp reads the crop
    at `D^-1 matrix D u + displacement(u)`, D being the diagonal of the spacing: `matrix` acts in
    physical space, so that a rotation stays one on anisotropic voxels.

    Attributes:
        symmetry: the exact move.
        matrix: (3, 3) float64, Jacobian of the sampling map in physical units; None for none.
        lattices: displacements that add up, in the frame before `symmetry`.
        interpolation: of the image; each label has its own.
    """

    IDENTITY: ClassVar["SpatialTransform"]

    symmetry: Symmetry = UNTURNED
    matrix: np.ndarray | None = None
    lattices: tuple[Lattice, ...] = ()
    interpolation: ImageInterpolation = "linear"

    @property
    def is_identity(self) -> bool:
        """Whether the patch is the crop."""
        return self.is_exact and self.symmetry.is_identity

    @property
    def is_exact(self) -> bool:
        """Whether voxels are only moved, never resampled."""
        return self.matrix is None and not self.lattices

    def voxel_matrix(self, spacing: Spacing) -> np.ndarray:
        """`matrix` between voxel positions: D^-1 matrix D, (3, 3) float64."""
        if self.matrix is None:
            return np.eye(3)
        side = np.asarray(spacing, dtype=np.float64)
        return self.matrix * side / side[:, None]

    def warped_shape(self, patch: Shape) -> Shape:
        """The shape between the warp and the symmetry that makes it `patch`."""
        return self.symmetry.inverse.turned_shape(patch)

    def input_shape(self, patch: Shape, spacing: Spacing) -> Shape:
        """The smallest crop, about the centre of the patch, that holds all the patch shows.

        Along each axis it differs from `warped_shape(patch)` by an even number of voxels, so that
        both have their centre on a voxel, or both between two. It may be the smaller one, when the
        transform enlarges.
        """
        shape = self.warped_shape(patch)
        if self.is_exact:
            return shape
        half = (np.asarray(shape) - 1) / 2
        reach = self._reach(shape, spacing) + (self.interpolation == "cubic")
        # Rounding must not ask for one voxel more: a sample 1e-4 outside reads the border voxel.
        return triple(n + 2 * ceil(r) for n, r in zip(shape, reach - half - 1e-4, strict=True))

    def _reach(self, shape: Shape, spacing: Spacing) -> np.ndarray:
        """Upper bound of how far from the centre the warp reads along (z, y, x), in voxels."""
        places = [
            np.linspace(-(n - 1) / 2, (n - 1) / 2, self._samples(n, axis))
            for axis, n in enumerate(shape)
        ]
        offsets = np.stack(np.meshgrid(*places, indexing="ij"))
        read = np.einsum("ij,jzyx->izyx", self.voxel_matrix(spacing), offsets)
        for lattice in self.lattices:
            read += lattice.displacement(places)
        error = sum(lattice.sampling_error for lattice in self.lattices)
        return np.abs(read).max(axis=(1, 2, 3)) + error

    def _samples(self, extent: int, axis: int) -> int:
        """Both ends, and eight for each control interval, but no more than there are voxels."""
        interval = min((lattice.distance[axis] for lattice in self.lattices), default=inf)
        return min(extent, 2 + floor(8 * (extent - 1) / interval))

    def input_box(self, patch: Box, spacing: Spacing) -> Box:
        """The crop of `input_shape` for the patch at a place, with the same centre.

        Where a turn gives an axis an extent of other parity than the patch has, the centre lies
        half a voxel lower.
        """
        shape = self.input_shape(patch.shape, spacing)
        z, y, x = (
            o + (n - m) // 2 for o, n, m in zip(patch.origin, patch.shape, shape, strict=True)
        )
        return Box((z, y, x), shape)


SpatialTransform.IDENTITY = SpatialTransform()


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
    """The separable product of control values (3, kz, ky, kx) with a basis, without its last step.

    Returns:
        (3, Z, kz) and (3, kz, Y X) float32, whose batched product is the field.
    """
    z, y, x = (torch.as_tensor(matrix, device=device) for matrix in basis)
    partial = y @ (torch.as_tensor(offsets, device=device) @ x.T)
    return z.expand(3, -1, -1), partial.flatten(2)
