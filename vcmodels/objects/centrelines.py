"""The centre line of one object, traced in its bounding box by kimimaro.

TEASAR (Sato et al. 2000, https://doi.org/10.1109/PCCGA.2000.883951) draws a path from one far end of
the object to the next, through the middle, until all of it is near a path. Paths meet and never close,
so that the lines are trees, one for each connected piece (https://github.com/seung-lab/kimimaro).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vcmodels.geometry.boxes import Spacing

SCALE = 1.5
"""What is nearer to a path than so many times its distance from the surface has its path."""
LEAST_VOXELS = 5
"""And what is nearer than so many voxels, the longest side counted."""
NO_SOMA: Mapping[str, float] = {
    "soma_detection_threshold": np.inf,
    "soma_acceptance_threshold": np.inf,
    "soma_invalidation_const": 0,
    "soma_invalidation_scale": 0,
}
"""Cell bodies of neurons are not treated apart: objects may be anything."""


@dataclass(frozen=True)
class Centreline:
    """Trees through the middle of an object."""

    points: np.ndarray
    """(v, 3) float64: x, y, z."""
    edges: np.ndarray
    """(e, 2) uint32: numbers of points."""
    radii: np.ndarray
    """(v,) float32: from the point to the nearest voxel outside of the object."""

    def parents(self) -> tuple[np.ndarray, np.ndarray]:
        """An order of the points in which each comes after its parent, and the parents.

        Returns:
            Numbers of points (v,), and for each of them the number of its parent, -1 for a root (v,).
        """
        near: list[list[int]] = [[] for _ in self.points]
        for a, b in self.edges.tolist():
            near[a].append(b)
            near[b].append(a)
        parent, order = {}, list[int]()
        for root in sorted(range(len(near)), key=lambda one: len(near[one])):  # ends come first
            waiting = [] if root in parent else [(root, -1)]
            while waiting:
                point, before = waiting.pop()
                if point not in parent:
                    parent[point] = before
                    order.append(point)
                    waiting += [(one, point) for one in reversed(near[point]) if one != before]
        return np.array(order, int), np.array([parent[point] for point in order], int)


def traced(mask: np.ndarray, spacing: Spacing, offset: Spacing) -> Centreline:
    """The centre line of what is true in a box; beyond the box there is nothing.

    Args:
        mask: (Z, Y, X) bool.
        spacing: length of a voxel along (z, y, x).
        offset: position of the centre of voxel 0.

    Returns:
        No points where nothing is true.
    """
    import kimimaro  # late: an extra, and it takes a second

    found = kimimaro.skeletonize(
        np.pad(mask, 1).view(np.uint8),
        teasar_params={"scale": SCALE, "const": LEAST_VOXELS * max(spacing),
                       "pdrf_scale": 100000, "pdrf_exponent": 4, **NO_SOMA},
        anisotropy=spacing,
        dust_threshold=0,
        progress=False,
        fix_borders=False,  # the box is as large as the object
        in_place=True,
        parallel=1,
    )  # fmt: skip
    if found:
        (line,) = found.values()
        places = (
            np.rint(line.vertices / np.array(spacing, np.float32)) - 1
        )  # float32 loses no whole number
        edges, radii = line.edges.astype(np.uint32), line.radii.astype(np.float32)
    else:  # single voxels have no path
        places = np.argwhere(mask)[:1]
        edges = np.empty((0, 2), np.uint32)
        radii = np.full(len(places), min(spacing), np.float32)
    return Centreline((places * spacing + offset)[:, ::-1], edges, radii)
