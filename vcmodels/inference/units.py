"""The plan of a run: what is skipped, and what is predicted, shared by workers, cut into units."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
import numpy.typing as npt

from vcmodels.blockwise import Part
from vcmodels.config import InferenceParams, Skip
from vcmodels.config.reading import MASK, open_array, require_one_order
from vcmodels.errors import VolumeError
from vcmodels.geometry.boxes import Box, Shape, coarse_box, fine_box
from vcmodels.geometry.grid import BoxSet, Index, PatchGrid, aligned, columns, live_patches
from vcmodels.reporting import Reporter
from vcmodels.volumes import Volume, expand_location


def share(region: Box, wanted: BoxSet, block: Shape, extent: Shape, part: Part) -> Box:
    """What of the region one worker predicts; a function of its arguments and nothing else.

    The region is halved along its longest axis, between two layers of blocks, where the wanted
    voxels divide as the workers do; then the halves are, until each worker has its box. A box of one
    block cannot be halved: the other worker gets an empty one.
    """
    first, count = part.index, part.count
    while count > 1:
        left = count // 2
        low, high = _halves(region, wanted.within(region), block, extent, left / count)
        region, first, count = (
            (low, first, left) if first < left else (high, first - left, count - left)
        )
    return region


def _halves(
    region: Box, wanted: BoxSet, block: Shape, extent: Shape, fraction: float
) -> tuple[Box, Box]:
    span = aligned(region, block, extent) if region.voxels else region
    layers = [-(-n // b) for n, b in zip(span.shape, block, strict=True)]
    if max(layers) < 2:
        return region, Box(region.origin, (0, 0, 0))
    axis = max((a for a in range(3) if layers[a] > 1), key=lambda a: span.shape[a])
    edges = span.origin[axis] + block[axis] * np.arange(layers[axis] + 1)
    # Wanted voxels before each edge; boxes may overlap, which only makes the halves less equal.
    lengths = wanted.bounds[:, 1] - wanted.bounds[:, 0]
    before = np.clip(edges[:, None] - wanted.bounds[:, 0, axis], 0, lengths[:, axis])
    work = before @ (lengths.prod(axis=1) // np.maximum(lengths[:, axis], 1))
    cut = int(edges[1 + np.abs(work[1:-1] - fraction * work[-1]).argmin()])
    low_end, high_start = list(region.end), list(region.origin)
    low_end[axis] = high_start[axis] = cut
    return Box.between(region.origin, low_end), Box.between(high_start, region.end)


KEY = "inference_params.skip.mask"


def wanted_boxes(inputs: Sequence[Volume], region: Box, skip: Skip, mask: "Mask | None") -> BoxSet:
    """The voxels of a region that may get a prediction, as boxes, which may overlap."""
    is_dense = any(volume.missing_blocks() == 0 for volume in inputs)
    if is_dense or not skip.fill:
        wanted = BoxSet.of([region])
    else:
        wanted = BoxSet.of(
            box.intersect(region) for volume in inputs for box in volume.stored_blocks(region)
        )
    if mask is None:
        return wanted
    return BoxSet.of(part for box in mask.boxes() for part in wanted.within(box))


@dataclass(frozen=True)
class Mask:
    """A volume that is 0 where no prediction is wanted."""

    volume: Volume
    factor: Shape
    """Voxels of the input, along (z, y, x), for each of its own."""
    extent: Shape
    """Of the input."""

    def read(self, box: Box) -> np.ndarray:
        """(1, *box.shape) bool: where a prediction is wanted. `box` lies in the input."""
        coarse = coarse_box(box, self.factor)
        allowed = self.volume.read(coarse)[0] != 0
        for axis, (start, end) in enumerate(zip(box.origin, box.end, strict=True)):
            allowed = allowed.take(
                np.arange(start, end) // self.factor[axis] - coarse.origin[axis], axis
            )
        return allowed[None]

    def boxes(self) -> list[Box]:
        """Boxes of the input around what is not 0, one for each chunk that holds any."""
        found: list[Box] = []
        whole = Box((0, 0, 0), self.extent)
        for block in self.volume.stored_blocks():
            places = self.volume.read(block)[0].nonzero()
            if len(places[0]):
                low = [o + int(p.min()) for o, p in zip(block.origin, places, strict=True)]
                high = [o + int(p.max()) + 1 for o, p in zip(block.origin, places, strict=True)]
                found.append(fine_box(Box.between(low, high), self.factor).intersect(whole))
        return found


def open_mask(
    params: InferenceParams, first: Volume, reporter: Reporter | None = None
) -> Mask | None:
    """The mask that a task names.

    Args:
        params: with the keys that say how it is read.
        first: the first input.
        reporter: told when a file is imported.

    Raises:
        VolumeError: it does not exist, or its shape is not the input's divided by whole factors.
    """
    if params.skip.mask is None:
        return None
    keys = params.changed(level=0)  # that of the input is none of the mask
    place = expand_location(params.skip.mask)
    volume = open_array(place, keys, MASK, None, key=KEY, reporter=reporter)
    require_one_order({"input": first, MASK: volume})
    extent = first.extent
    z, y, x = (max(1, round(n / m)) for n, m in zip(extent, volume.extent, strict=True))
    if tuple(-(-n // f) for n, f in zip(extent, (z, y, x), strict=True)) != volume.extent:
        found = f"has shape {volume.extent}, the input {extent}"
        raise VolumeError(KEY, found, "give one of the same shape, or coarser by whole factors")
    return Mask(volume, (z, y, x), extent)


MOST_COUNTED = 10**8
WAITING_ROWS = 3
"""Finished rows that may wait for the writer, the one it works on included."""
LEAST_TILE = 32
"""Chunks smaller than this along z or y are read several at a time: a read has a fixed cost."""


@dataclass(frozen=True)
class Unit:
    """Whole output chunks that one worker predicts from all patches that touch them."""

    box: Box
    """What is written: whole chunks (or shards), cut at the volume's end."""
    core: Box
    """What is predicted of it."""
    wanted: BoxSet
    """The voxels of the core that get a prediction: those whose input is stored."""

    def patches(self, grid: PatchGrid) -> list[Index]:
        """The patches to predict, in (z, y, x) order: those that touch a wanted voxel."""
        ranges = grid.touching(self.core)
        live = np.argwhere(live_patches(grid, ranges, self.wanted))
        live += [r.start for r in ranges]
        return [(z, y, x) for z, y, x in live.tolist()]

    def count_patches(self, grid: PatchGrid) -> int:
        """How many those are."""
        return int(live_patches(grid, grid.touching(self.core), self.wanted).sum())


@dataclass(frozen=True)
class UnitPlan:
    """How the volume is divided into columns; results do not depend on it."""

    grid: PatchGrid
    region: Box
    """What is predicted: the bbox, or the whole volume."""
    block: Shape
    """What one writer must own: an output chunk, or a shard."""
    wanted: BoxSet
    edges: tuple[int, int]
    """(y, x) edges of a column."""

    def units(self, done: Iterable[Box] = ()) -> Iterator[Unit]:
        """The units that are left to do, in order.

        Args:
            done: what was written before, in whole blocks.
        """
        if not self.region.voxels:
            return
        finished = BoxSet.of(done)
        span = aligned(self.region, self.block, self.grid.extent)
        for column in columns(span, self.edges):
            wanted = self.wanted.within(column)
            if len(wanted):
                yield from self._unfinished(column, wanted, finished.within(column))

    def count_patches(self) -> int:
        """How many patches all units have, if none is done; those at borders count for each."""
        return sum(unit.count_patches(self.grid) for unit in self.units())

    def count_different(self) -> int:
        """How many patches there are, each counted once where counting is possible."""
        skipped = self.skipped_patches()
        if skipped is None:
            return self.count_patches()
        return prod(map(len, self.grid.touching(self.region))) - skipped

    def skipped_patches(self) -> int | None:
        """Patches of the region that no unit needs; None where counting would take gigabytes."""
        if not self.region.voxels:
            return 0
        ranges = self.grid.touching(self.region)
        every = prod(map(len, ranges))
        if every > MOST_COUNTED:
            return None
        return every - int(live_patches(self.grid, ranges, self.wanted).sum())

    def _unfinished(self, column: Box, wanted: BoxSet, done: BoxSet) -> Iterator[Unit]:
        """The clusters of blocks of a column that are wanted and not done."""
        column = aligned(wanted.hull, self.block, self.grid.extent)  # it may have 10^9 blocks
        shape = tuple(-(-n // b) for n, b in zip(column.shape, self.block, strict=True))
        left = np.zeros(shape, np.bool_)
        for boxes, value in ((wanted, True), (done.within(column), False)):
            for box in boxes:
                left[self._blocks(box, column)] = value
        for low, high in _clusters(left, self._gaps()):
            box = Box.between(
                [c + i * b for c, i, b in zip(column.origin, low, self.block, strict=True)],
                [c + i * b for c, i, b in zip(column.origin, high, self.block, strict=True)],
            ).intersect(column)
            yield Unit(box, box.intersect(self.region), wanted.within(box))

    def _blocks(self, box: Box, column: Box) -> tuple[slice, ...]:
        """The blocks of a column that a box touches."""
        return tuple(
            slice((o - c) // b, -(-(e - c) // b))
            for o, e, c, b in zip(box.origin, box.end, column.origin, self.block, strict=True)
        )

    def _gaps(self) -> tuple[int, ...]:
        """Blocks that may lie between two parts of a unit: fewer, and a patch spans them."""
        return tuple(p // b for p, b in zip(self.grid.patch, self.block, strict=True))


def _clusters(left: npt.NDArray[np.bool_], gaps: Sequence[int]) -> list[tuple[Index, Index]]:
    """[low, high) of boxes that hold all true entries and lie more than a gap apart, sorted.

    A box is cut wherever a gap runs across it, so that far parts do not sweep what is between them.
    """
    found: list[tuple[Index, Index]] = []
    pending: list[tuple[Index, Index]] = [
        ((0, 0, 0), (left.shape[0], left.shape[1], left.shape[2]))
    ]
    while pending:
        low, high = pending.pop()
        part = left[tuple(map(slice, low, high))]
        used = [np.flatnonzero(part.any(axis=o)) for o in ((1, 2), (0, 2), (0, 1))]
        runs = [_runs(places.tolist(), gap) for places, gap in zip(used, gaps, strict=True)]
        parts = [
            tuple(_plus(low, side) for side in zip(*run, strict=True)) for run in product(*runs)
        ]
        (found if len(parts) == 1 else pending).extend((start, end) for start, end in parts)
    return sorted(found)


def _runs(places: Sequence[int], gap: int) -> list[tuple[int, int]]:
    """[start, end) of the runs of ascending numbers, joined where at most `gap` are left out."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and place - runs[-1][1] <= gap:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs


def _plus(a: Sequence[int], b: Sequence[int]) -> Index:
    z, y, x = (i + j for i, j in zip(a, b, strict=True))
    return z, y, x


@dataclass(frozen=True)
class ColumnMemory:
    """Bytes that a column takes while it is predicted, apart from the network's own."""

    grid: PatchGrid
    block: Shape
    inputs: tuple[Volume, ...]
    averaged_channels: int
    stored_bytes: int
    """Bytes of one voxel of all outputs together."""

    def __call__(self, y: int, x: int) -> int:
        """Bytes for a column with these edges."""
        y, x = min(y, self.grid.extent[1]), min(x, self.grid.extent[2])
        return self.sums(y, x) + self._slabs(y, x) + self._input(y, x)

    def sums(self, y: int, x: int) -> int:
        """Those of them that are kept on the device."""
        depth, height, _ = self.grid.patch
        steps = self.grid.longest_step(0) * self.grid.longest_step(1)
        rows = depth * height + (WAITING_ROWS + 1) * steps
        area = x * (self.grid.most_shared(0) * y + rows)
        return 4 * self.averaged_channels * (area + prod(self.grid.patch))

    def _slabs(self, y: int, x: int) -> int:
        """A layer of bricks that is begun; where a row is, also those that it completes."""
        depth, height, _ = self.block
        completed = -(-self.grid.longest_step(0) // depth)
        return self.stored_bytes * depth * (y + 2 * completed * height) * x

    def _input(self, y: int, x: int) -> int:
        """Whole layers of tiles, but for the last, of which rows come as those of the first go."""
        patch, extent = self.grid.patch, self.grid.extent
        width, height = min(x + 2 * patch[2], extent[2]), min(y + 2 * patch[1], extent[1])
        total = 0
        for volume in self.inputs:
            tile = tile_shape(volume)
            planes = -(-patch[0] // tile[0]) * tile[0] * height + tile[0] * (patch[1] + 2 * tile[1])
            total += volume.channels * volume.dtype.itemsize * planes * width
        return total


def tile_shape(volume: Volume) -> tuple[int, int]:
    """What is read at a time along z and y: whole chunks, at least `LEAST_TILE` voxels."""
    z, y = (chunk * -(-LEAST_TILE // chunk) for chunk in volume.chunks[:2])
    return z, y
