"""Grids of overlapping patches, the blocks that are cut from them, and their blending weights.

The weight of a patch at a voxel is the product of three axis weights. Along one axis the weights of
all patches that cover a voxel sum to 1, so their products do so in the volume: no weight volume, no
division and no epsilon, and a corner that one patch alone covers has weight exactly 1.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from math import ceil
from typing import Literal

import numpy as np
import numpy.typing as npt

from vcmodels.geometry.boxes import Box, Shape, triple, unit_box, units_touching

Index = tuple[int, int, int]
Ranges = tuple[range, range, range]
Window = Literal["hann", "gaussian"]
"""How patches lie and blend: Hann windows at steps of one length, or, as in nnU-Net (Isensee et al.
2021, `inference/sliding_window_prediction.py` there), Gaussian ones that are spread evenly."""


@dataclass(frozen=True)
class PatchGrid:
    """The patches that cover a volume: a function of its extent, the patch and the overlap alone.

    No part of it depends on how the work is divided, so that any division predicts the same.
    """

    extent: Shape
    patch: Shape
    origins: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    window: Window = "hann"

    @classmethod
    def covering(
        cls, extent: Shape, patch: Shape, overlap: Sequence[float], window: Window = "hann"
    ) -> "PatchGrid":
        """The grid whose neighbours share the fraction `overlap` of a patch, in [0, 1), per axis.

        With a `gaussian` window it is at least that.

        Raises:
            ValueError: an overlap is outside [0, 1).
        """
        if not all(0 <= share < 1 for share in overlap):
            raise ValueError(f"overlap must lie in [0, 1) on every axis, got {tuple(overlap)}")
        find = patch_origins if window == "hann" else spread_origins
        origins = (
            find(n, p, max(1, round(p * (1 - share))))
            for n, p, share in zip(extent, patch, overlap, strict=True)
        )
        return cls(extent, patch, triple(origins), window)

    @property
    def shape(self) -> Shape:
        """How many patches there are along each axis."""
        return triple(map(len, self.origins))

    def origin(self, index: Index) -> Shape:
        """The low corner of a patch; all of it lies in the volume unless that is too short."""
        return triple(axis[i] for axis, i in zip(self.origins, index, strict=True))

    def touching(self, box: Box) -> Ranges:
        """Indices, along each axis, of the patches that share a voxel with `box`."""
        return triple(
            range(bisect_right(axis, start - patch), bisect_left(axis, end))
            for axis, patch, start, end in zip(
                self.origins, self.patch, box.origin, box.end, strict=True
            )
        )

    def hull(self, box: Box) -> Box:
        """All voxels of the patches that touch `box`, clipped to the volume."""
        ranges = self.touching(box)
        start = [axis[r.start] for axis, r in zip(self.origins, ranges, strict=True)]
        end = [
            min(axis[r.stop - 1] + patch, n)
            for axis, r, patch, n in zip(self.origins, ranges, self.patch, self.extent, strict=True)
        ]
        return Box.between(start, end)

    def most_shared(self, axis: int) -> int:
        """The most voxels that two neighbouring patches share along an axis."""
        return max(self.patch[axis] - self._steps[axis][0], 0)

    def longest_step(self, axis: int) -> int:
        """The longest step between neighbours along an axis; the patch if there is one only."""
        return self._steps[axis][1]

    @cached_property
    def _steps(self) -> tuple[tuple[int, int], ...]:
        """The shortest and the longest step along each axis; an axis may have 10^5 of them."""
        steps = [
            [b - a for a, b in pairwise(origins)] or [patch]
            for origins, patch in zip(self.origins, self.patch, strict=True)
        ]
        return tuple((min(axis), max(axis)) for axis in steps)


@dataclass(frozen=True)
class BoxSet:
    """Boxes, such as the chunks of a volume that exist, kept as one array."""

    bounds: npt.NDArray[np.int64]
    """(n, 2, 3): start and end of each box, sorted by start."""

    @classmethod
    def of(cls, boxes: Iterable[Box]) -> "BoxSet":
        """Gather boxes; empty ones are dropped, the order does not matter."""
        rows = sorted((box.origin, box.end) for box in boxes if box.voxels)
        return cls(np.asarray(rows, np.int64).reshape(-1, 2, 3))

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[Box]:
        for start, end in self.bounds.tolist():
            yield Box.between(start, end)

    @property
    def hull(self) -> Box:
        """The smallest box that holds all of them; there must be one."""
        return Box.between(
            self.bounds[:, 0].min(axis=0).tolist(), self.bounds[:, 1].max(axis=0).tolist()
        )

    def within(self, box: Box) -> "BoxSet":
        """The parts of the boxes that lie in `box`."""
        clipped = self.bounds.copy()
        np.maximum(clipped[:, 0], box.origin, out=clipped[:, 0])
        np.minimum(clipped[:, 1], box.end, out=clipped[:, 1])
        return BoxSet(clipped[(clipped[:, 0] < clipped[:, 1]).all(axis=1)])


def live_patches(grid: PatchGrid, ranges: Ranges, wanted: BoxSet) -> npt.NDArray[np.bool_]:
    """Which patches of `ranges` share a voxel with a wanted box: bool, one entry for each patch."""
    live = np.zeros([len(r) for r in ranges], np.bool_)
    for box in wanted:
        z, y, x = (
            slice(max(t.start - r.start, 0), max(t.stop - r.start, 0))
            for t, r in zip(grid.touching(box), ranges, strict=True)
        )
        live[z, y, x] = True
    return live


def aligned(box: Box, block: Shape, extent: Shape) -> Box:
    """`box` grown to whole blocks of the grid from 0, clipped to the volume."""
    start = [o // b * b for o, b in zip(box.origin, block, strict=True)]
    end = [min(ceil(e / b) * b, n) for e, b, n in zip(box.end, block, extent, strict=True)]
    return Box.between(start, end)


def column_edges(
    grid: PatchGrid, region: Box, block: Shape, bytes_of: Callable[[int, int], int], budget: int
) -> tuple[int, int]:
    """The (y, x) edges of the columns that `region` is cut into, in voxels.

    Of all edges of whole blocks whose columns fit the budget, those that predict the fewest patches
    twice; the smallest column if none fits.

    Args:
        grid: of the whole volume.
        region: the part of the volume that is predicted.
        block: what one writer must own: an output chunk, or a shard.
        bytes_of: memory for a column of these (y, x) edges.
        budget: most bytes that a column may take.
    """
    span = aligned(region, block, grid.extent)
    choices = [_edge_costs(grid, span, region, block[axis], axis) for axis in (1, 2)]
    best = (choices[0][0][0], choices[1][0][0])
    least: tuple[int, int] | None = None
    for (y, patches_y), (x, patches_x) in product(*choices):
        cost = (patches_y * patches_x, ceil(span.shape[1] / y) * ceil(span.shape[2] / x))
        if (least is None or cost < least) and bytes_of(y, x) <= budget:
            best, least = (y, x), cost
    return best


def _edge_costs(
    grid: PatchGrid, span: Box, region: Box, block: int, axis: int
) -> list[tuple[int, int]]:
    """For edges that cut the axis evenly: (edge, patches that all columns together touch)."""
    costs: list[tuple[int, int]] = []
    blocks = ceil(span.shape[axis] / block)
    for edge in sorted({ceil(blocks / parts) * block for parts in range(1, blocks + 1)}):
        starts = range(span.origin[axis], span.end[axis], edge)
        costs.append((edge, sum(_touched(grid, axis, s, s + edge, region) for s in starts)))
    return costs


def _touched(grid: PatchGrid, axis: int, start: int, end: int, region: Box) -> int:
    start, end = max(start, region.origin[axis]), min(end, region.end[axis])
    origins = grid.origins[axis]
    return bisect_left(origins, end) - bisect_right(origins, start - grid.patch[axis])


def columns(span: Box, edges: tuple[int, int]) -> Iterator[Box]:
    """Cut a box of whole blocks into columns over its whole z, in (y, x) order."""
    (z0, y0, x0), (z1, y1, x1) = span.origin, span.end
    for y, x in product(range(y0, y1, edges[0]), range(x0, x1, edges[1])):
        yield Box.between((z0, y, x), (z1, min(y + edges[0], y1), min(x + edges[1], x1)))


def slabs(box: Box, depth: int) -> Iterator[Box]:
    """Cut a box along z at the multiples of `depth`."""
    start, last = box.origin[0], box.end[0]
    while start < last:
        end = min((start // depth + 1) * depth, last)
        yield box.cut(0, start, end)
        start = end


def tiles(box: Box, shape: Shape, *, whole: bool = False) -> Iterator[Box]:
    """The parts of a box that lie in different tiles of the grid of `shape` that starts at 0.

    Args:
        box: with an origin that is not negative.
        shape: of a tile.
        whole: give out the tiles themselves, not cut to the box.
    """
    for index in product(*units_touching(box, shape)):
        tile = unit_box(index, shape)
        yield tile if whole else tile.intersect(box)


def blocks_of(box: Box, block: Shape) -> Iterator[Box]:
    """The `tiles` of a box, so that chunks of that shape are decoded once; an empty box itself."""
    return tiles(box, block) if box.voxels else iter([box])


def patch_origins(extent: int, patch: int, stride: int) -> tuple[int, ...]:
    """Origins, along one axis, of the patches that cover `extent` voxels.

    The last one is moved back to end with the volume; a short volume gets one patch, which the
    reader pads. The result is a function of the three numbers alone, so that any part of a volume
    is cut into the same patches as the whole.

    Raises:
        ValueError: `stride` is outside [1, patch].
    """
    if not 1 <= stride <= patch:
        raise ValueError(f"stride must lie in [1, patch], got stride={stride} with patch={patch}")
    last = max(extent - patch, 0)
    return (*range(0, last, stride), last)


def spread_origins(extent: int, patch: int, stride: int) -> tuple[int, ...]:
    """As `patch_origins`, with as many patches, whose steps are alike to a voxel, as in nnU-Net.

    Raises:
        ValueError: `stride` is outside [1, patch].
    """
    count = len(patch_origins(extent, patch, stride))
    last = max(extent - patch, 0)
    return tuple(round(last * i / max(count - 1, 1)) for i in range(count))


FLOOR = 1e-3
"""Least raw weight over the greatest. It never shows where patches overlap well, and keeps the
quotient sound at the rim: nnU-Net's gaussian reaches 4e-11 there and loses corners to rounding."""


def raw_window(patch: int) -> npt.NDArray[np.float64]:
    """Hann window without its end points, raised by `FLOOR`: (patch,) float64, all positive."""
    phase = (np.arange(patch) + 0.5) / patch
    return FLOOR + (1 - FLOOR) * np.sin(np.pi * phase) ** 2


def gaussian_window(patch: int) -> npt.NDArray[np.float64]:
    """The Gaussian of nnU-Net, with a deviation of an eighth of the patch: (patch,) float64, all positive."""
    away = (np.arange(patch) - patch // 2) / (patch / 8)
    return np.exp(-(away**2) / 2)


def axis_weights(
    origins: Sequence[int], patch: int, window: Window = "hann"
) -> npt.NDArray[np.float32]:
    """Weights along one axis of every patch on it.

    Args:
        origins: as from `patch_origins`: ascending, without a gap between patches.
        patch: length of a patch.
        window: which.

    Returns:
        (len(origins), patch) float32 in (0, 1]; at each voxel those of the patches that cover it
        sum to 1, up to one rounding each.
    """
    raw = raw_window(patch) if window == "hann" else gaussian_window(patch)
    first = origins[0]
    total = np.zeros(origins[-1] + patch - first)
    for origin in origins:
        total[origin - first : origin - first + patch] += raw
    covered = np.asarray(origins)[:, None] - first + np.arange(patch)
    return (raw / total[covered]).astype(np.float32)
