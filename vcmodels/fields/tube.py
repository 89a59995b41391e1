"""The voxels within a distance of a line, box by box."""

from dataclasses import dataclass

import numpy as np

from vcmodels.fields.centreline import Centreline, Positions
from vcmodels.fields.distance import Lengths, Voxels

_FINE = 0.25
"""Points of the line are so many voxels apart: a distance of some voxels is then right to a percent
of a voxel."""


@dataclass(frozen=True)
class Tube:
    """All places within a radius of a centreline, its round ends included.

    The distance is the true one and not that in a slice: where the object is oblique, the tube is as
    wide across it as elsewhere, and it is the same however the volume is turned.
    """

    line: Centreline
    radius: float
    """In physical units."""

    def reach(self) -> tuple[Positions, Positions]:
        """The low and the high corner of the box around it, in physical units."""
        points = self.line.points
        return points.min(axis=0) - self.radius, points.max(axis=0) + self.radius

    def mask(self, origin: Voxels, shape: Voxels, spacing: Lengths) -> np.ndarray:
        """(Z, Y, X): whether the centre of each voxel of a box lies in the tube.

        Args:
            origin: of the box, in voxels; may be negative.
            shape: of the box.
            spacing: length of a voxel along (z, y, x).
        """
        inside = np.zeros(shape, bool)
        places = [np.arange(o, o + n) * s for o, n, s in zip(origin, shape, spacing, strict=True)]
        points = self._near(places, min(spacing) * _FINE)
        if not len(points):
            return inside
        # Only the box around the near part of the line is looked at.
        low, high = points.min(axis=0) - self.radius, points.max(axis=0) + self.radius
        part = tuple(
            slice(*np.searchsorted(at, (a, b))) for at, a, b in zip(places, low, high, strict=True)
        )
        chosen = (at[where] for at, where in zip(places, part, strict=True))
        grid = np.stack(np.meshgrid(*chosen, indexing="ij"), axis=-1)
        inside[part] = self._is_near(grid, points)
        return inside

    def _is_near(self, positions: np.ndarray, points: Positions) -> np.ndarray:
        # Late: slow to import.
        from scipy.spatial import KDTree

        most = self.radius * (1 + 1e-9)
        return np.isfinite(KDTree(points).query(positions, distance_upper_bound=most)[0])

    def _near(self, places: list[np.ndarray], step: float) -> Positions:
        """Points of the line, `step` apart, that may be within the radius of a box."""
        axis = self.line.axis
        along = places[axis]
        dense = _dense(self.line.points, step)
        return dense[
            (dense[:, axis] >= along[0] - self.radius) & (dense[:, axis] <= along[-1] + self.radius)
        ]


def _dense(points: Positions, step: float) -> Positions:
    """Points on the same line, at most `step` apart."""
    run = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
    at = np.linspace(0, run[-1], int(np.ceil(run[-1] / step)) + 1)
    return np.stack([np.interp(at, run, points[:, a]) for a in range(3)], axis=1)
