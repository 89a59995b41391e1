"""The label index: what answers any question about labelled patches without reading a voxel again.

Space is cut into small cells. For each cell the index holds how many of its voxels are labelled
and, for each axis, which of the cell's planes hold any. Counts add and plane sets unite, so the
exact bounding box and density of every patch made of whole cells follow from the index.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from math import ceil, gcd, prod

import numpy as np

from vcmodels.geometry.boxes import Box, Shape
from vcmodels.volumes import Volume

LONGEST_CELL = 16  # planes of a cell are the bits of a uint16
PIECE_VOXELS = 1 << 26  # a shard larger than this is read in parts, to bound the memory

_CellArrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class LabelIndex:
    """Labelled voxels of one region of a volume, per cell. The cell grid starts at the region."""

    region: Box
    cell: Shape
    """Voxels of a cell along (z, y, x), each 1 to 16."""
    counts: np.ndarray
    """(cells z, y, x) uint16: labelled voxels of each cell."""
    planes: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Per axis (cells z, y, x) uint16: bit i is set when plane i of the cell holds a label."""

    @classmethod
    def empty(cls, region: Box, cell: Shape) -> "LabelIndex":
        """The index of a region without labels; memory is only used where cells are filled."""
        cells = tuple(ceil(n / c) for n, c in zip(region.shape, cell, strict=True))
        z, y, x = (np.zeros(cells, np.uint16) for _ in range(3))
        return cls(region, cell, np.zeros(cells, np.uint16), (z, y, x))


def cell_shape(patch: Shape, stride: Shape) -> Shape:
    """Per axis, the largest common divisor of patch and stride that is at most 16."""
    z, y, x = (
        max(d for d in range(1, LONGEST_CELL + 1) if gcd(p, s) % d == 0)
        for p, s in zip(patch, stride, strict=True)
    )
    return z, y, x


def build_index(
    volume: Volume,
    region: Box,
    cell: Shape,
    ignore: Iterable[int] = (),
    *,
    threads: int | None = None,
    advance: Callable[[int], None] = lambda _voxels: None,
) -> LabelIndex:
    """Stream the labels of a region once; chunks that are not stored are never touched.

    A voxel is labelled when it is finite, not zero in all channels, and no ignore label in all.

    Args:
        volume: the label volume.
        region: the part that counts, inside the volume.
        cell: see `cell_shape`; blocks of the store need not line up with cells.
        ignore: stored values that count as unlabelled.
        threads: decoding threads; the number of cores, at most 8, when None.
        advance: called with the voxels of each finished piece.
    """
    index = LabelIndex.empty(region, cell)
    ignored = tuple(ignore)

    def summarise(piece: Box) -> tuple[Box, Box, _CellArrays]:
        labelled = labelled_mask(volume.read(piece), ignored)
        return piece, *_cells_of(labelled, piece, region, cell)

    threads = threads or min(os.cpu_count() or 1, 8)
    for piece, cells, arrays in _map_in_order(summarise, _pieces(volume, region), threads):
        _add(index, cells, arrays)
        advance(piece.voxels)
    if labelled_mask(np.full((1, 1, 1, 1), volume.fill_value or 0, volume.dtype), ignored).any():
        _fill_absent(index, volume)
    return index


def labelled_mask(stored: np.ndarray, ignore: Iterable[int] = ()) -> np.ndarray:
    """Which voxels are labelled: stored (S, Z, Y, X), any dtype -> (Z, Y, X) bool."""
    labelled = _any_channel(stored != 0)
    for value in ignore:
        labelled &= _any_channel(stored != value)
    if stored.dtype.kind == "f":
        labelled &= np.isfinite(stored).all(axis=0)
    return labelled


def _any_channel(mask: np.ndarray) -> np.ndarray:
    return mask[0] if len(mask) == 1 else np.logical_or.reduce(mask, axis=0)


def _pieces(volume: Volume, region: Box) -> Iterator[Box]:
    """The stored blocks inside the region, the large ones cut along inner chunks."""
    for block in volume.stored_blocks(within=region):
        for part in cut_block(block, volume.chunks):
            inside = part.intersect(region)
            if inside.voxels:
                yield inside


def cut_block(block: Box, chunk: Shape, most: int = PIECE_VOXELS) -> Iterator[Box]:
    """Cut a shard that is too large to read at once into slabs, then bars, of whole chunks."""
    steps = list(block.shape)
    for axis in range(3):
        others = max(prod(steps) // max(steps[axis], 1), 1)
        fitting = max(most // (others * chunk[axis]), 1) * chunk[axis]
        steps[axis] = min(steps[axis], fitting)
    ranges = (range(o, e, s) for o, e, s in zip(block.origin, block.end, steps, strict=True))
    for z, y, x in product(*ranges):
        yield Box((z, y, x), (steps[0], steps[1], steps[2])).intersect(block)


def _cells_of(
    labelled: np.ndarray, piece: Box, region: Box, cell: Shape
) -> tuple[Box, _CellArrays]:
    """Counts and planes of the cells that a piece touches, and where those cells are."""
    low = [(o - r) // c for o, r, c in zip(piece.origin, region.origin, cell, strict=True)]
    high = [-((r - e) // c) for e, r, c in zip(piece.end, region.origin, cell, strict=True)]
    cells = Box.between(low, high)
    start = [r + i * c for r, i, c in zip(region.origin, low, cell, strict=True)]
    before = [o - s for o, s in zip(piece.origin, start, strict=True)]
    total = [n * c for n, c in zip(cells.shape, cell, strict=True)]
    after = [t - b - n for t, b, n in zip(total, before, piece.shape, strict=True)]
    if any(before) or any(after):
        labelled = np.pad(labelled, list(zip(before, after, strict=True)))
    return cells, _summarise_cells(np.ascontiguousarray(labelled), cells.shape, cell)


def _summarise_cells(labelled: np.ndarray, cells: Shape, cell: Shape) -> _CellArrays:
    """Reduce a mask of whole cells to counts and plane sets.

    The long contiguous x axis is reduced last: reductions over outer axes run at memory speed.
    """
    (nz, ny, nx), (cz, cy, cx) = cells, cell
    mask = labelled.view(np.uint8).reshape(nz, cz, ny, cy, nx * cx)
    over_z = np.add.reduce(mask, axis=1, dtype=np.uint8)  # (nz, ny, cy, X), at most 16
    over_zy = np.add.reduce(over_z, axis=2, dtype=np.uint16).reshape(nz, ny, nx, cx)
    counts = np.add.reduce(over_zy, axis=3, dtype=np.uint16)
    in_x = over_zy > 0
    in_y = np.bitwise_or.reduce(over_z.reshape(nz, ny, cy, nx, cx), axis=4) > 0
    over_y = np.bitwise_or.reduce(mask, axis=3)  # (nz, cz, ny, X)
    in_z = np.bitwise_or.reduce(over_y.reshape(nz, cz, ny, nx, cx), axis=4) > 0
    return (
        counts,
        _as_bits(in_z.transpose(0, 2, 3, 1)),
        _as_bits(in_y.transpose(0, 1, 3, 2)),
        _as_bits(in_x),
    )


def _as_bits(planes: np.ndarray) -> np.ndarray:
    """(cells z, y, x, up to 16) bool -> (cells z, y, x) uint16, plane i as bit i."""
    weights = np.left_shift(1, np.arange(planes.shape[3])).astype(np.uint16)
    return (planes * weights).sum(axis=3, dtype=np.uint16)


def _add(index: LabelIndex, cells: Box, arrays: _CellArrays) -> None:
    """Merge the cells of a piece; a cell may be touched by several pieces, a voxel by one."""
    place = cells.slices()
    index.counts[place] += arrays[0]
    for planes, more in zip(index.planes, arrays[1:], strict=True):
        planes[place] |= more


def _fill_absent(index: LabelIndex, volume: Volume) -> None:
    """Count the chunks that are not stored when the array's fill value is itself a label."""
    unit = volume.storage_unit
    stored = {block.origin for block in volume.stored_blocks(within=index.region)}
    low = [o // u * u for o, u in zip(index.region.origin, unit, strict=True)]
    for z, y, x in product(*map(range, low, index.region.end, unit)):
        if (z, y, x) in stored:
            continue
        for part in cut_block(Box((z, y, x), unit), volume.chunks):
            piece = part.intersect(index.region)
            if piece.voxels:
                full = np.ones(piece.shape, bool)
                _add(index, *_cells_of(full, piece, index.region, index.cell))


def _map_in_order(
    function: Callable[[Box], tuple[Box, Box, _CellArrays]], boxes: Iterable[Box], threads: int
) -> Iterator[tuple[Box, Box, _CellArrays]]:
    """Like `map` on threads, with a bounded number of results waiting."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[tuple[Box, Box, _CellArrays]]] = deque()
        for box in boxes:
            waiting.append(pool.submit(function, box))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
