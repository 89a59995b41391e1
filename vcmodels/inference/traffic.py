"""What a run reads and writes, counted in chunks from its plan alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod

import numpy as np
import numpy.typing as npt

from vcmodels.geometry.blocks import BoxSet, PatchGrid, live_patches
from vcmodels.geometry.boxes import Shape
from vcmodels.geometry.levels import coarse_extent
from vcmodels.inference.job import Job
from vcmodels.inference.units import Unit, tile_shape
from vcmodels.volumes import Volume


@dataclass(frozen=True)
class Traffic:
    """Chunks and bytes, decoded."""

    chunks_read: int
    """Of the inputs; one that two units read counts twice."""
    bytes_read: int
    chunks_written: tuple[int, ...]
    """Of one target, by level; a chunk that comes out as zeros is not stored, but counted here."""
    bytes_written: int
    """Of all targets and levels."""
    bytes_reread: int
    """Of the output, for the next level."""


def count_traffic(job: Job, units: Iterable[Unit]) -> Traffic:
    """Count what predicting `units`, and building the levels, reads and writes."""
    units, layout = list(units), job.layout
    read = [(volume, _chunks_read(job, volume, units)) for volume in job.inputs]
    levels = list(_levels(units, layout.chunks, layout.extent, layout.factors, layout.shards))
    sizes = [len(found) * prod(chunk) * job.footprint.stored_bytes for chunk, found in levels]
    return Traffic(
        chunks_read=sum(count for _, count in read),
        bytes_read=sum(
            count * prod(volume.chunks) * volume.channels * volume.dtype.itemsize
            for volume, count in read
        ),
        chunks_written=tuple(len(found) for _, found in levels),
        bytes_written=sum(sizes),
        bytes_reread=sum(sizes[:-1]),
    )


def _chunks_read(job: Job, volume: Volume, units: Iterable[Unit]) -> int:
    """Chunks of one input that are decoded, as `reading.RollingInput` reads it."""
    stored = BoxSet.of(volume.stored_blocks())
    return sum(_chunks_of_unit(job, volume, stored, unit) for unit in units)


def _chunks_of_unit(job: Job, volume: Volume, stored: BoxSet, unit: Unit) -> int:
    grid = job.division.grid
    hull = grid.hull(unit.core)
    # Chunks are read over the whole width of a tile: along (z, y) it matters which.
    counts = [-(-n // c) for n, c in zip(volume.extent, volume.chunks, strict=True)]
    is_read = np.zeros(counts[:2], np.bool_)
    for z, y in _tiles(grid, unit, tile_shape(volume)):
        part = [
            slice(max(i * t, low) // c, -(-min((i + 1) * t, high) // c))
            for i, t, low, high, c in zip(
                (z, y), tile_shape(volume), hull.origin, hull.end, volume.chunks, strict=False
            )
        ]
        is_read[tuple(part)] = True
    before = np.zeros([n + 1 for n in is_read.shape], np.int64)
    before[1:, 1:] = is_read.cumsum(0).cumsum(1)
    bounds = stored.within(hull).bounds
    (z0, y0, x0), (z1, y1, x1) = (
        (bounds[:, 0] // volume.chunks).T,
        (-(-bounds[:, 1] // volume.chunks)).T,
    )
    flat = before[z1, y1] - before[z0, y1] - before[z1, y0] + before[z0, y0]
    return int((flat * (x1 - x0)).sum())


def _tiles(grid: PatchGrid, unit: Unit, tile: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The tiles that the patches of a unit touch along (z, y); some more than once."""
    ranges = grid.touching(unit.core)
    rows = live_patches(grid, ranges, unit.wanted).any(axis=2)
    for row in np.argwhere(rows).tolist():
        spans: list[range] = []
        for axis, number in enumerate(row):
            start = grid.origins[axis][ranges[axis].start + number]
            end = min(start + grid.patch[axis], grid.extent[axis])
            spans.append(range(start // tile[axis], -(-end // tile[axis])))
        yield from product(spans[0], spans[1])


Indices = npt.NDArray[np.int64]
"""(n, 3) along (z, y, x)."""


def _levels(
    units: Iterable[Unit],
    chunk: Shape,
    extent: Shape,
    factors: tuple[Shape, ...],
    shards: Shape | None,
) -> Iterator[tuple[Shape, Indices]]:
    """For each level the chunk shape and the indices of the chunks under wanted voxels."""
    found = np.concatenate([np.zeros((0, 3), np.int64), *(_touched(u, chunk) for u in units)])
    yield chunk, found
    before, level = chunk, extent
    for fine, factor in pairwise(factors):
        step = _array(factor) // _array(fine)
        start = found * _array(before) // step
        end = -(-np.minimum((found + 1) * _array(before), _array(level)) // step)
        level = coarse_extent(extent, factor)
        before = chunk if shards else _least(chunk, level)
        corners = _corners(start // _array(before), (end - 1) // _array(before))
        found = np.unique(np.concatenate(list(corners)), axis=0)
        yield before, found


def _touched(unit: Unit, chunk: Shape) -> Indices:
    """The chunks of a unit's box that hold a wanted voxel."""
    low = _array(unit.box.origin) // _array(chunk)
    high = -(-_array(unit.box.end) // _array(chunk))
    is_touched = np.zeros(tuple(high - low), np.bool_)
    for start, end in unit.wanted.bounds:
        spans = zip(start // chunk - low, -(-end // chunk) - low, strict=True)
        is_touched[tuple(slice(a, b) for a, b in spans)] = True
    return np.argwhere(is_touched) + low


def _corners(low: Indices, high: Indices) -> Iterator[Indices]:
    """The eight mixtures of two index arrays: a chunk lies over two of the next at most."""
    for choice in product((False, True), repeat=3):
        yield np.where(choice, high, low)


def _least(chunk: Shape, extent: Shape) -> Shape:
    z, y, x = (min(pair) for pair in zip(chunk, extent, strict=True))
    return z, y, x


def _array(shape: Shape) -> npt.NDArray[np.int64]:
    return np.array(shape, np.int64)
