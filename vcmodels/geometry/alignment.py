"""Two grids in one world: how the voxels of one lie among those of the other, and how far off them."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from vcmodels.geometry.affine import Affine, index_affine
from vcmodels.geometry.boxes import Shape, triple
from vcmodels.geometry.gridmap import GridMap
from vcmodels.geometry.symmetries import Symmetry

TOLERANCE = 0.1
"""Voxels that a grid may lie off another at a corner: headers are rounded."""


@dataclass(frozen=True)
class Alignment:
    """The whole-voxel map that comes nearest, and what is left."""

    grid_map: GridMap
    """From the grid that is looked at to the other one; exact."""
    voxels: float
    """How far, at the corner where it is most, the grid lies off that map: in voxels of the other."""
    millimeters: float
    """The same as a length."""

    @property
    def touches(self) -> bool:
        """Whether the two grids have a voxel in common."""
        inside = self.grid_map.inverse()
        ends = zip(inside.shape, inside.axes, strict=True)
        found: list[bool] = []
        for length, (axis, factor, shift) in ends:
            first, last = sorted((shift, shift + factor * (length - 1)))
            found.append(first < inside.source[axis] and last >= 0)
        return all(found)


def align(affine: Affine, shape: Shape, other: Affine, other_shape: Shape) -> Alignment:
    """Where the voxels of a grid lie among those of another, in whole voxels: turned, mirrored, shifted.

    Args:
        affine: of the grid.
        shape: of it, (z, y, x).
        other: affine of the other grid.
        other_shape: of that.
    """
    exact, steps = index_affine(other), index_affine(affine)
    between = np.asarray(np.linalg.solve(exact, steps), np.float64)
    turn = _nearest_turn(between[:3, :3])
    centre = (np.array(shape) - 1) / 2
    shift = np.rint(between[:3, :3] @ centre + between[:3, 3] - turn.matrix @ centre)
    nearest = np.eye(4)
    nearest[:3, :3], nearest[:3, 3] = turn.matrix, shift
    corners = np.array([[*at, 1] for at in product(*((0, n - 1) for n in shape))]).T
    off = (between - nearest) @ corners
    rows = [(float(a), float(b), float(c), float(d)) for a, b, c, d in nearest[:3] + 0.0]  # no -0.0
    grid_map = GridMap(other_shape, shape, triple(rows))
    length = np.linalg.norm((exact @ off)[:3], axis=0).max()
    return Alignment(grid_map, float(np.linalg.norm(off[:3], axis=0).max()), float(length))


def _nearest_turn(linear: NDArray[np.float64]) -> Symmetry:
    """The exchange and mirroring of axes that is most like a linear map, the clearest axes first."""
    left, sources, flips = np.abs(linear), [0, 0, 0], [False, False, False]
    for _ in range(3):
        source, derived = map(int, np.unravel_index(int(left.argmax()), left.shape))
        sources[derived], flips[derived] = source, bool(linear[source, derived] < 0)
        left[source], left[:, derived] = -1, -1
    return Symmetry(triple(sources), triple(flips))
