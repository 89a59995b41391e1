"""Slices across any axis as pixels, read slab by slab, from the level of a pyramid that is fine enough.

A slice is looked at as it lies in space: pixels are square, voxels need not be. Of each pixel the voxel
under its centre is taken. What is held in memory is a slab of pixels and one tile of voxels, whatever
the size of the volume.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise, product
from math import ceil

import numpy as np

from vcmodels.geometry.boxes import Box, Shape, Spacing, triple
from vcmodels.volumes import Volume
from vcmodels.volumes.levels import stored_levels

SLAB_BYTES = 128 << 20
"""Of the pixels of a slab, at most: fewer slices are read at once where they are large."""
TILE = 512
"""Voxels along an edge of what is read at once, or one chunk where that is longer."""
DEEPEST = 128
"""Voxels across a tile; a longer chunk is decoded once for each as many."""
LARGEST_ENLARGEMENT = 8


@dataclass(frozen=True)
class View:
    """How the slices of a box across an axis become pixels."""

    axis: int
    """0, 1 or 2: z, y or x."""
    box: Box
    height: int
    """Pixels down: along z, or along y of slices across z."""
    width: int
    """Pixels to the right: along x, or along y of slices across x."""

    @classmethod
    def of(cls, axis: int, box: Box, spacing: Spacing, most: int, least: int = 1) -> "View":
        """The view with square pixels whose longer edge is `most` pixels or less.

        Small slices are enlarged by a whole factor to `least` pixels or more.

        Args:
            axis: across which slices lie.
            box: what is shown.
            spacing: length of a voxel along (z, y, x).
            most: pixels.
            least: pixels; no more than `most`.
        """
        down, right = (a for a in range(3) if a != axis)
        finest = min(spacing[down], spacing[right])
        sides = [box.shape[a] * spacing[a] / finest for a in (down, right)]
        factor = min(max(1, -(-least // ceil(max(sides)))), LARGEST_ENLARGEMENT)
        scale = min(factor, most / max(sides))
        height, width = (max(1, round(side * scale)) for side in sides)
        return cls(axis, box, height, width)

    @property
    def in_plane(self) -> tuple[int, int]:
        """The axes down and to the right."""
        down, right = (a for a in range(3) if a != self.axis)
        return down, right

    @property
    def step(self) -> float:
        """Voxels from one pixel to the next, along the axis where there are fewer."""
        sides = zip(self.in_plane, (self.height, self.width), strict=True)
        return min(self.box.shape[axis] / pixels for axis, pixels in sides)

    def centres(self, axis: int) -> np.ndarray:
        """Where the centres of pixels lie along an axis of the plane, in voxels of the volume."""
        pixels = self.height if axis == self.in_plane[0] else self.width
        start, length = self.box.origin[axis], self.box.shape[axis]
        return start + (np.arange(pixels) + 0.5) * length / pixels - 0.5


@dataclass(frozen=True)
class Readable:
    """An array, or a level of one, as slices are read of it."""

    read: Callable[[Box], np.ndarray]
    """(C, Z, Y, X) of a box inside its extent."""
    extent: Shape
    unit: Shape
    """The smallest box that is decoded by itself."""
    factor: Spacing = (1.0, 1.0, 1.0)
    """Length of its voxels, in those of the volume."""
    shift: Spacing = (0.0, 0.0, 0.0)
    """Where the centre of its voxel 0 is, in voxels of the volume."""

    def index(self, centres: np.ndarray, axis: int) -> np.ndarray:
        """The voxels at some places along an axis, the nearest ones where there are none."""
        at = np.rint((centres - self.shift[axis]) / self.factor[axis]).astype(np.int64)
        return at.clip(0, self.extent[axis] - 1)


def readable_levels(volume: Volume) -> tuple[Readable, ...]:
    """A volume and the coarser levels that are stored of it."""
    return tuple(
        Readable(
            one.volume.read, one.volume.extent, one.volume.chunks, one.factor, one.shift
        )
        for one in stored_levels(volume)
    )  # fmt: skip


def level_for(levels: Sequence[Readable], view: View, step: float) -> Readable:
    """The coarsest level that still has a voxel for each pixel and for each slice.

    Args:
        levels: from the finest on.
        view: the pixels.
        step: voxels from one slice to the next.
    """
    wanted = [step if axis == view.axis else view.step for axis in range(3)]
    for level in reversed(levels):
        if all(f <= max(w, 1.0) * 1.001 for f, w in zip(level.factor, wanted, strict=True)):
            return level
    return levels[0]


def read_planes(source: Readable, view: View, at: Sequence[int]) -> Iterator[np.ndarray]:
    """The slices at some positions along the axis of a view, each (C, H, W), in their order.

    Args:
        source: what is read.
        view: the pixels.
        at: ascending positions, in voxels of the volume.
    """
    rows, columns = (source.index(view.centres(axis), axis) for axis in view.in_plane)
    positions = source.index(np.asarray(at, np.float64), view.axis)
    unit = min(source.unit[view.axis], DEEPEST)
    for _, group in groupby(positions, key=lambda position: position // unit):
        slab = list(group)
        while slab:
            depth = _depth(source, view, slab)
            yield from _read_slab(source, view, slab[:depth], rows, columns)
            slab = slab[depth:]


def _depth(source: Readable, view: View, slab: Sequence[int]) -> int:
    """How many slices of a slab are held at once."""
    place = triple(slab[0] if axis == view.axis else 0 for axis in range(3))
    one = source.read(Box(place, (1, 1, 1)))
    return max(1, SLAB_BYTES // (one.nbytes * view.height * view.width))


def _read_slab(
    source: Readable,
    view: View,
    positions: Sequence[int],
    rows: np.ndarray,
    columns: np.ndarray,
) -> Iterator[np.ndarray]:
    """Slices that are near each other, read tile by tile; each tile is thinned at once."""
    low, high = min(positions), max(positions) + 1
    planes: np.ndarray | None = None
    runs = [
        _runs(at, source.unit[axis])
        for at, axis in zip((rows, columns), view.in_plane, strict=True)
    ]
    for down, right in product(*runs):
        spans = {view.axis: (low, high)}
        for axis, at in zip(view.in_plane, (rows[down], columns[right]), strict=True):
            spans[axis] = (int(at[0]), int(at[-1]) + 1)
        box = Box.between([spans[a][0] for a in range(3)], [spans[a][1] for a in range(3)])
        tile = np.moveaxis(source.read(box), view.axis + 1, 1)
        picked = tile[:, np.asarray(positions) - low]
        picked = picked[:, :, rows[down] - rows[down][0]][..., columns[right] - columns[right][0]]
        if planes is None:
            planes = np.empty((*picked.shape[:2], view.height, view.width), picked.dtype)
        planes[:, :, down, right] = picked
    assert planes is not None, "a view has pixels"
    yield from np.moveaxis(planes, 1, 0)


def _runs(at: np.ndarray, unit: int) -> list[slice]:
    """Ascending positions, cut where another tile of whole chunks begins."""
    tile = at // (unit * max(1, TILE // unit))
    starts = [0, *(np.flatnonzero(np.diff(tile)) + 1), len(at)]
    return [slice(int(a), int(b)) for a, b in pairwise(starts)]
