"""A smooth displacement field: a coarse lattice of control points under a uniform cubic B-spline.

The spline is separable, so that the field and its exact derivatives on every voxel of a patch are
three small matrix products (free-form deformation; Rueckert et al. 1999, IEEE TMI 18(8)).
"""

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

    def basis(self, shape: Shape, *, along: int | None = None) -> tuple[np.ndarray, ...]:
        """One matrix (voxels, control points) float32 per axis; their product is the field.

        Args:
            shape: voxels along (z, y, x), centred on the lattice.
            along: give the matrix of this axis as the derivative by voxel position.
        """
        return tuple(
            _spline_weights(_centred(count), points, distance, derivative=axis == along)
            for axis, (count, points, distance) in enumerate(
                zip(shape, self.offsets.shape[1:], self.distance, strict=True)
            )
        )

    def reach(self, shape: Shape) -> np.ndarray:
        """Upper bound of the displacement along (z, y, x) on voxels of `shape`, (3,) float64.

        The spline never leaves the hull of its control points, but usually stays far inside. Eight
        samples a control interval come closer: a parabola between samples rises by at most
        (3/16)^2 / 2 * 4 = 0.07 of the largest control value, as no second derivative exceeds
        4 of it per squared interval.
        """
        hull = np.abs(self.offsets).max(axis=(1, 2, 3)).astype(np.float64)
        weights = [
            _spline_weights(
                np.linspace(-(n - 1) / 2, (n - 1) / 2, 1 + ceil(8 * (n - 1) / distance)),
                points,
                distance,
            )
            for n, points, distance in zip(
                shape, self.offsets.shape[1:], self.distance, strict=True
            )
        ]
        seen = np.abs(_product(self.offsets, *weights)).max(axis=(1, 2, 3))
        return np.minimum(hull, seen + 0.0704 * hull)


def control_points(shape: Shape, distance: tuple[float, float, float]) -> Shape:
    """How many control points per axis support a spline on all voxels of `shape`."""
    z, y, x = (ceil((n - 1) / d) + 3 for n, d in zip(shape, distance, strict=True))
    return z, y, x


def _centred(count: int) -> np.ndarray:
    """Positions of `count` voxels relative to their centre."""
    return np.arange(count) - (count - 1) / 2


def _product(offsets: np.ndarray, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    partial = np.einsum("aijk,xk->aijx", offsets, x)
    partial = np.einsum("aijx,yj->aiyx", partial, y)
    return np.einsum("aiyx,zi->azyx", partial, z)


def _spline_weights(
    positions: np.ndarray, points: int, distance: float, *, derivative: bool = False
) -> np.ndarray:
    """(positions, points) float32: the cubic B-spline of each control point, or its slope."""
    t = positions[:, None] / distance - _centred(points)
    near, far = np.abs(t), np.clip(2 - np.abs(t), 0, 1)
    if derivative:
        slope = np.where(near < 1, 1.5 * near**2 - 2 * near, -(far**2) / 2)
        return (np.sign(t) * slope / distance).astype(np.float32)
    return np.where(near < 1, 2 / 3 - near**2 + near**3 / 2, far**3 / 6).astype(np.float32)
