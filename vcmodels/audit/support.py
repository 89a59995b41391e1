"""How near to the edges of an image the border of a mask lies, next to the same mask moved away.

A share of border voxels within some radius of an edge says little by itself: where edges are dense,
a mask that was moved anywhere reaches much of it. So the same is measured for the mask at
`OFFSETS`, which is the null, and what counts is the excess: (share - null) / (1 - null).

An edge is a voxel whose gradient magnitude (of a Gaussian of `SIGMA` voxels) is as large as that of
both neighbours along the axis of its largest component, and above the threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from vcmodels.geometry.boxes import Box, Shape, Spacing
from vcmodels.volumes import Volume

SIGMA = 1.0
NEAR, FAR = 11, 17
OFFSETS: tuple[Shape, ...] = (
    *((z * NEAR, y * NEAR, x * NEAR) for z, y, x in product((-1, 1), repeat=3)),
    *((s * FAR, 0, 0) for s in (-1, 1)),
    *((0, s * FAR, 0) for s in (-1, 1)),
    *((0, 0, s * FAR) for s in (-1, 1)),
)
"""Voxels, (z, y, x), by which a mask is moved for the null."""
STEEPEST = 80.0
"""Percentile of the gradient magnitude above which a voxel may be an edge."""


@dataclass(frozen=True)
class Support:
    """Border voxels of a mask within each radius of an edge of the image; adds up over cubes."""

    points: np.ndarray
    """(1 + offsets,) int64: those of which the place lies inside of the image; unmoved first."""
    hits: np.ndarray
    """(1 + offsets, radii) int64: of these, those within a radius."""

    def __add__(self, other: "Support") -> "Support":
        """Of both."""
        return Support(self.points + other.points, self.hits + other.hits)

    @property
    def shares(self) -> np.ndarray:
        """(1 + offsets, radii): hits of the points, NaN without points."""
        points = self.points[:, None].astype(np.float64)
        return np.divide(self.hits, points, out=np.full(self.hits.shape, np.nan), where=points > 0)

    @property
    def null(self) -> np.ndarray:
        """(radii,): the mean share of the moved masks."""
        return np.nanmean(self.shares[1:], axis=0)

    @property
    def excess(self) -> np.ndarray:
        """(radii,): how far the share rises above the null, of what is possible; at most 1."""
        return (self.shares[0] - self.null) / np.maximum(1 - self.null, 1e-9)


def gradient_of(image: np.ndarray) -> np.ndarray:
    """(3, Z, Y, X) float64: the derivatives of the smoothed (Z, Y, X) image, by voxel."""
    from scipy.ndimage import gaussian_filter  # late: `check` needs none of it

    smooth = np.asarray(gaussian_filter(image.astype(np.float64), SIGMA))
    return np.stack([np.gradient(smooth, axis=axis) for axis in range(3)])


def edges_of(gradient: np.ndarray, threshold: float) -> np.ndarray:
    """(Z, Y, X) bool: the voxels that are edges.

    Args:
        gradient: from `gradient_of`.
        threshold: least gradient magnitude.
    """
    size = np.linalg.norm(gradient, axis=0)
    along = np.abs(gradient).argmax(axis=0)
    found = np.zeros(size.shape, bool)
    for axis in range(3):
        padded = np.pad(size, [(1, 1) if a == axis else (0, 0) for a in range(3)])
        before, after = (np.take(padded, range(at, at + size.shape[axis]), axis) for at in (0, 2))
        found |= (along == axis) & (size >= before) & (size >= after)
    return found & (size > threshold)


def border_of(mask: np.ndarray) -> np.ndarray:
    """(Z, Y, X) bool: voxels of the mask with one of 6 neighbours outside of it, or of the array."""
    from scipy.ndimage import binary_erosion

    return mask & np.logical_not(binary_erosion(mask))


def support_of(
    image: Volume,
    mask: np.ndarray,
    cube: Box,
    threshold: float,
    radii: Sequence[float],
    spacing: Spacing,
) -> Support:
    """How many voxels of the border of a mask in a cube lie near edges, moved and unmoved.

    Args:
        image: its first channel counts.
        mask: (Z, Y, X) bool of the cube and a voxel around it.
        cube: within the image.
        threshold: least gradient magnitude of an edge.
        radii: in the unit of the spacing.
        spacing: length of a voxel along (z, y, x).
    """
    from scipy.ndimage import distance_transform_edt

    # 4 for the Gaussian, which is cut there, 1 for the derivative and 1 for the neighbours.
    voxels = int(np.ceil(max(radii) / min(spacing))) + 6
    around = cube.grow((FAR + voxels,) * 3).intersect(image.box)
    edges = edges_of(gradient_of(image.read(around)[0]), threshold)
    distance = np.full(edges.shape, np.inf)
    if edges.any():
        distance = np.asarray(distance_transform_edt(~edges, sampling=spacing))
    border = np.argwhere(border_of(mask)[1:-1, 1:-1, 1:-1]) + cube.origin
    points, hits = [], []
    for offset in ((0, 0, 0), *OFFSETS):
        place = border + offset
        inside = ((place >= 0) & (place < image.extent)).all(axis=1)
        at = tuple((place[inside] - around.origin).T)
        points.append(int(inside.sum()))
        hits.append([int((distance[at] <= radius + 1e-9).sum()) for radius in radii])
    return Support(np.array(points, np.int64), np.array(hits, np.int64))
