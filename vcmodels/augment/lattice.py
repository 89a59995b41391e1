"""A smooth displacement field: a coarse lattice of control points under a uniform cubic B-spline.

The spline is separable, so that the field and its exact derivatives on every voxel of a patch are
three small matrix products (free-form deformation; Rueckert et al. 1999, IEEE TMI 18(8)).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from vcmodels.geometry.boxes import Shape

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
        return tuple(
            _spline_weights(place, points, distance, derivative=axis == along)
            for axis, (place, points, distance) in enumerate(
                zip(positions, self.offsets.shape[1:], self.distance, strict=True)
            )
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
    z, y, x = (ceil((n - 1) / d) + 3 for n, d in zip(shape, distance, strict=True))
    return z, y, x


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
