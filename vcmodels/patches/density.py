"""How much label the patches of a grid hold, from only the label index."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from vcmodels.geometry.boxes import Box, Shape, triple, unit_box, units_touching
from vcmodels.patches.index import LabelIndex

_Combine = Callable[[np.ndarray, np.ndarray], np.ndarray]
_NOWHERE = np.iinfo(np.int32).max
_BLOCK_CELLS = 96
"""Origins are taken together as long as their patches span about so many cells along each axis."""

_VALUES = np.arange(1 << 16)
_HIGHEST = (np.frexp(_VALUES)[1] - 1).astype(np.int32)  # of the set bits; -1 when there is none
_LOWEST = np.where(_VALUES > 0, np.frexp(_VALUES & -_VALUES)[1] - 1, _NOWHERE >> 1).astype(np.int32)


@dataclass(frozen=True)
class CandidateGrid:
    """The candidate patches of a region: every combination of the origins of the three axes."""

    region: Box
    patch: Shape
    frame: Box
    """Where the cells start that all patches are made of: the volume, or the region itself."""
    origins: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Per axis, ascending int64 origins in the volume."""

    @property
    def patch_voxels(self) -> int:
        """Voxels of a patch that lie in the region: a thin region pads its only patch."""
        return prod(min(p, n) for p, n in zip(self.patch, self.region.shape, strict=True))

    @property
    def counts(self) -> Shape:
        """How many origins there are along each axis."""
        return triple(map(len, self.origins))

    def places(self, origins: np.ndarray) -> np.ndarray:
        """Flat numbers (n,) int64 of patches by their origins (n, 3); -1 where the grid has none."""
        indices = triple(
            np.searchsorted(axis, o).clip(max=len(axis) - 1)
            for axis, o in zip(self.origins, origins.T, strict=True)
        )
        places = np.asarray(np.ravel_multi_index(indices, self.counts), np.int64)
        return np.where((self.rows(places) == origins).all(axis=1), places, -1)

    def rows(self, places: np.ndarray) -> np.ndarray:
        """Origins (n, 3) int64 of patches of the grid by their flat numbers (n,)."""
        indices = np.unravel_index(places, self.counts)
        return np.stack([o[i] for o, i in zip(self.origins, indices, strict=True)], axis=1)


@dataclass(frozen=True)
class PatchDensity:
    """Labelled voxels of those patches of a grid that have any, in the order of the grid."""

    places: np.ndarray
    """(n,) int64, ascending: flat numbers in the grid."""
    labelled: np.ndarray
    """(n,) int64: labelled voxels."""
    box: np.ndarray
    """(n,) int64: voxels of their bounding box."""


def patch_grid(volume: Box, region: Box, patch: Shape, stride: Shape, cell: Shape) -> CandidateGrid:
    """Origins at multiples of the stride, counted from the volume's start, and one at each end.

    The origins at the ends of the region are rounded inwards to the cell, so that all patches are
    made of whole cells and one index serves every region. A region in which no such patch fits
    gets one patch along that axis, at its start; unless its ends lie between cells, too, when
    strides and cells are counted from its own start.

    Args:
        volume: all of the label.
        region: the part to find patches in.
        patch: voxels of a patch.
        stride: step between origins.
        cell: see `cell_shape`.
    """
    frame = volume
    axes = list(zip(volume.shape, region.origin, region.end, patch, cell, strict=True))
    if not all(_is_whole(n, o, e, p, c) for n, o, e, p, c in axes):
        frame = region
    z, y, x = (
        np.array(_axis_origins(o, e, p, s, c, f), np.int64)
        for (_, o, e, p, c), s, f in zip(axes, stride, frame.origin, strict=True)
    )
    return CandidateGrid(region, patch, frame, (z, y, x))


def _is_whole(extent: int, start: int, end: int, patch: int, cell: int) -> bool:
    """Whether there is a patch along an axis that is made of the volume's own cells."""
    fits = -(-start // cell) * cell + patch <= end
    return fits or (start % cell == 0 and (end % cell == 0 or end == extent))


def _axis_origins(start: int, end: int, patch: int, stride: int, cell: int, zero: int) -> list[int]:
    first = -(-(start - zero) // cell) * cell
    last = (end - zero - patch) // cell * cell
    if last < first:
        return [start]
    regular = range(-(-first // stride) * stride, last + 1, stride)
    return [zero + origin for origin in sorted({first, *regular, last})]


def patch_density(
    index: LabelIndex, grid: CandidateGrid, values: Collection[int] | None = None
) -> PatchDensity:
    """The exact labelled voxels and bounding box of every patch of the grid that has any.

    The cost grows with the cells that hold labels, not of the grid.

    Args:
        index: made for the grid's frame, or cells that fit it.
        grid: of the candidates.
        values: count only voxels with these stored values (the box is around all labels).

    Raises:
        ValueError: a patch of the grid is not made of whole cells of the index.
    """
    _check_fit(index, grid)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for part in _blocks(grid, index):
        labelled, box = _dense(index, grid, part, values)
        some = np.nonzero(labelled)
        indices = tuple(i + s.start for i, s in zip(some, part, strict=True))
        places = np.asarray(np.ravel_multi_index(indices, grid.counts), np.int64)
        found.append((places, labelled[some].astype(np.int64), box[some]))
    if not found:
        nothing = np.zeros(0, np.int64)
        return PatchDensity(nothing, nothing, nothing)
    places, labelled, box = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(places, kind="stable")
    return PatchDensity(places[order], labelled[order], box[order])


def missed_voxels(index: LabelIndex, grid: CandidateGrid, places: np.ndarray) -> tuple[int, int]:
    """Labelled voxels of the grid's region, and those of them that lie in none of some patches.

    Args:
        index: as for `patch_density`.
        grid: of the candidates.
        places: (n,) int64, ascending: the flat numbers of the patches.
    """
    _check_fit(index, grid)
    cell = np.array(index.plan.cell)
    starts = (grid.rows(places) - np.array(grid.frame.origin)) // cell
    width = np.array(grid.patch) // cell
    labelled = missed = 0
    for part in _tiles(index, index.plan.cells(grid.region)):
        counts, _ = index.gather(part)
        total = int(counts.sum(dtype=np.int64))
        if total:
            # Ascending along z: only those that reach the part are looked at.
            first = np.searchsorted(starts[:, 0], part.origin[0] - width[0], side="right")
            last = np.searchsorted(starts[:, 0], part.end[0])
            covered = _covered(starts[first:last], width, part)
            labelled += total
            missed += total - int(counts[covered].sum(dtype=np.int64))
    return labelled, missed


def _tiles(index: LabelIndex, within: Box) -> Iterator[Box]:
    """Boxes of cells, each cell in one at most, that hold all that the index has in a box of cells."""
    side = (_BLOCK_CELLS,) * 3
    parts = (cells.box.intersect(within) for cells in index.bricks.values())
    numbers = {
        number
        for part in parts
        if part.voxels
        for number in product(*units_touching(part, triple(side)))
    }
    for number in sorted(numbers):
        yield unit_box(number, triple(side)).intersect(within)


def _covered(starts: np.ndarray, width: np.ndarray, part: Box) -> np.ndarray:
    """Which cells of a part lie in a patch, bool, from the first cells (n, 3) of the patches."""
    shape = np.array(part.shape)
    low = np.clip(starts - np.array(part.origin), 0, shape)
    high = np.clip(starts + width - np.array(part.origin), 0, shape)
    # Ones at the low corners, summed up along the axes, are the number of patches over each cell.
    steps = np.zeros(tuple(shape + 1), np.int32)
    for corner in product((0, 1), repeat=3):
        z, y, x = np.where(corner, high, low).T
        np.add.at(steps, (z, y, x), (-1) ** sum(corner))
    for axis in range(3):
        np.cumsum(steps, axis=axis, out=steps)
    return steps[:-1, :-1, :-1] > 0


def _check_fit(index: LabelIndex, grid: CandidateGrid) -> None:
    plan = index.plan
    steps = [
        *(o - f for o, f in zip(grid.origins, plan.region.origin, strict=True)),
        *(np.array([n]) for n in grid.patch),
    ]
    if any((s % c).any() for s, c in zip(steps, plan.cell * 2, strict=True)) or (
        grid.frame != plan.region
    ):
        raise ValueError(f"patches of {grid.patch} do not fit cells of {plan.cell}")


def _blocks(grid: CandidateGrid, index: LabelIndex) -> Iterator[tuple[slice, slice, slice]]:
    """Parts of the grid, per axis, that hold every patch with labels; each patch once at most."""
    per_axis = [
        list(_axis_blocks(o, max(_BLOCK_CELLS * c, 2 * p)))
        for o, c, p in zip(grid.origins, index.plan.cell, grid.patch, strict=True)
    ]
    touched = {
        numbers
        for cells in index.bricks.values()
        for numbers in product(*_touched(grid, per_axis, index.plan.voxels(cells.box)))
    }
    for numbers in sorted(touched):
        spans = [blocks[n] for blocks, n in zip(per_axis, numbers, strict=True)]
        low = [int(o[s.start]) for o, s in zip(grid.origins, spans, strict=True)]
        high = [
            int(o[s.stop - 1]) + p for o, s, p in zip(grid.origins, spans, grid.patch, strict=True)
        ]
        covered = Box.between(low, high).intersect(grid.region)
        used = index.plan.voxels(index.occupied(index.plan.cells(covered))).intersect(covered)
        if not used.voxels:
            continue
        z, y, x = (
            slice(
                max(int(np.searchsorted(o, a - p, side="right")), s.start),
                min(int(np.searchsorted(o, b, side="left")), s.stop),
            )
            for o, a, b, p, s in zip(
                grid.origins, used.origin, used.end, grid.patch, spans, strict=True
            )
        )
        yield z, y, x


def _touched(grid: CandidateGrid, per_axis: Sequence[Sequence[slice]], box: Box) -> Iterator[range]:
    """Per axis, the numbers of the blocks whose patches may reach into a box of voxels.

    Looked up from where labels are: a volume of 10^18 voxels has 10^8 blocks.
    """
    ends = zip(grid.origins, per_axis, grid.patch, box.origin, box.end, strict=True)
    for origins, blocks, patch, low, high in ends:
        first = np.array([origins[s.start] for s in blocks])
        last = np.array([origins[s.stop - 1] for s in blocks])
        yield range(
            int(np.searchsorted(last, low - patch, side="right")),
            int(np.searchsorted(first, high, side="left")),
        )


def _axis_blocks(origins: np.ndarray, length: int) -> Iterator[slice]:
    start = 0
    while start < len(origins):
        stop = int(np.searchsorted(origins, origins[start] + length, side="left"))
        yield slice(start, stop)
        start = stop


def _dense(
    index: LabelIndex,
    grid: CandidateGrid,
    part: tuple[slice, slice, slice],
    values: Collection[int] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Labelled voxels and box of every patch of a part of the grid: both (z, y, x)."""
    origins = [o[s] for o, s in zip(grid.origins, part, strict=True)]
    low = [int(o[0]) for o in origins]
    high = [int(o[-1]) + p for o, p in zip(origins, grid.patch, strict=True)]
    cells = index.plan.cells(Box.between(low, high).intersect(grid.region))
    starts = [
        (o - f) // c - first
        for o, f, c, first in zip(
            origins, grid.frame.origin, index.plan.cell, cells.origin, strict=True
        )
    ]
    widths = [
        min(p // c, n) for p, c, n in zip(grid.patch, index.plan.cell, cells.shape, strict=True)
    ]
    counts, planes = index.gather(cells, values)
    # A patch of 2^31 voxels does not fit into the memory of a GPU, but it does into int64.
    labelled = counts.astype(np.int32 if grid.patch_voxels < 1 << 31 else np.int64)
    for axis in range(3):
        labelled = _window_sums(labelled, axis, starts[axis], widths[axis])
    box = np.ones(labelled.shape, np.int64)
    for axis in range(3):
        united = planes[axis]
        for other in range(3):
            if other != axis:
                united = _windows(united, other, starts[other], widths[other], np.bitwise_or)
        box *= _lengths(united, axis, index.plan.cell[axis], starts[axis], widths[axis])
    return labelled, box


def _window_sums(array: np.ndarray, axis: int, starts: np.ndarray, width: int) -> np.ndarray:
    shape = list(array.shape)
    shape[axis] += 1
    sums = np.zeros(shape, array.dtype)
    np.cumsum(array, axis=axis, out=sums[(slice(None),) * axis + (slice(1, None),)])
    return sums.take(starts + width, axis) - sums.take(starts, axis)


def _windows(
    array: np.ndarray, axis: int, starts: np.ndarray, width: int, combine: _Combine
) -> np.ndarray:
    """Reduce windows of `width` along an axis by an operation that may count entries twice.

    Spans double until two of them cover the window, so the cost is logarithmic in its width.
    """
    reach, span = array, 1
    before = (slice(None),) * axis
    while 2 * span <= width:
        reach = combine(reach[(*before, slice(-span))], reach[(*before, slice(span, None))])
        span *= 2
    return combine(reach.take(starts, axis), reach.take(starts + width - span, axis))


def _lengths(
    planes: np.ndarray, axis: int, cell: int, starts: np.ndarray, width: int
) -> np.ndarray:
    """Voxels from the first to the last occupied plane of each window along the axis."""
    shape = [1, 1, 1]
    shape[axis] = -1
    base = (np.arange(planes.shape[axis], dtype=np.int32) * cell).reshape(shape)
    low = _windows(base + _LOWEST[planes], axis, starts, width, np.minimum)
    high = np.where(planes > 0, base + _HIGHEST[planes], -1)
    high = _windows(high, axis, starts, width, np.maximum)
    return np.where(high >= 0, high - low + 1, 0)
