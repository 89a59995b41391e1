"""One sampled geometric change: small enough to travel beside a sample from worker to device."""

from dataclasses import dataclass
from math import ceil, floor, inf
from typing import ClassVar, Literal

import numpy as np

from vcmodels.augment.lattice import Lattice
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.geometry.symmetries import IDENTITY as UNTURNED
from vcmodels.geometry.symmetries import Symmetry

Spacing = tuple[float, float, float]
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
        z, y, x = (n + 2 * ceil(r) for n, r in zip(shape, reach - half - 1e-4, strict=True))
        return z, y, x

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
