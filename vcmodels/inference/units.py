"""What is predicted, cut into units: the plan of a run."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from vcmodels.geometry.blocks import (
    BoxSet,
    Index,
    PatchGrid,
    aligned,
    columns,
    live_patches,
)
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.inference.reading import tile_shape
from vcmodels.volumes import Volume

MOST_COUNTED = 10**8
WAITING_ROWS = 3
"""Finished rows that may wait for the writer, the one it works on included."""
ENCODED_ROWS = 5
"""Copies of a row, as float32, that its activation and encoding take at most."""


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
class Division:
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
        finished = BoxSet.of(done)
        span = aligned(self.region, self.block, self.grid.extent)
        for column in columns(span, self.edges):
            wanted = self.wanted.within(column)
            if len(wanted):
                yield from self._unfinished(column, wanted, finished.within(column))

    def skipped_patches(self) -> int | None:
        """Patches of the region that no unit needs; None where counting would take gigabytes."""
        ranges = self.grid.touching(self.region)
        every = prod(map(len, ranges))
        if every > MOST_COUNTED:
            return None
        return every - int(live_patches(self.grid, ranges, self.wanted).sum())

    def _unfinished(self, column: Box, wanted: BoxSet, done: BoxSet) -> Iterator[Unit]:
        """The runs of blocks of a column that are wanted and not done, cut to where those are."""
        shape = tuple(-(-n // b) for n, b in zip(column.shape, self.block, strict=True))
        left = np.zeros(shape, np.bool_)
        for boxes, value in ((wanted, True), (done, False)):
            for box in boxes:
                left[self._blocks(box, column)] = value
        layers, _, _ = left.nonzero()
        for start, end in _runs(sorted(set(layers.tolist())), self._gap()):
            _, rows, lines = left[start:end].nonzero()
            low = (start, int(rows.min()), int(lines.min()))
            high = (end, int(rows.max()) + 1, int(lines.max()) + 1)
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

    def _gap(self) -> int:
        """Blocks that may lie between two parts of a unit: fewer, and a patch spans them."""
        return self.grid.patch[0] // self.block[0]


def _runs(places: Sequence[int], gap: int) -> list[tuple[int, int]]:
    """[start, end) of the runs of ascending numbers, joined where at most `gap` are left out."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and place - runs[-1][1] <= gap:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs


def stored_boxes(inputs: Sequence[Volume], region: Box) -> BoxSet:
    """The voxels of a region of which any input has a stored chunk; boxes may overlap."""
    if any(volume.missing_blocks() == 0 for volume in inputs):
        return BoxSet.of([region])
    return BoxSet.of(
        box.intersect(region) for volume in inputs for box in volume.stored_blocks(region)
    )


@dataclass(frozen=True)
class Footprint:
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
        return self._sums(y, x) + self._slabs(y, x) + self._input(y, x)

    def _sums(self, y: int, x: int) -> int:
        depth, height, _ = self.grid.patch
        steps = self.grid.longest_step(0) * self.grid.longest_step(1)
        rows = 2 * depth * height + (WAITING_ROWS + ENCODED_ROWS) * steps
        return 4 * self.averaged_channels * x * (self.grid.most_shared(0) * y + rows)

    def _slabs(self, y: int, x: int) -> int:
        layers = -(-self.grid.longest_step(0) // self.block[0]) + 1
        return self.stored_bytes * layers * self.block[0] * y * x

    def _input(self, y: int, x: int) -> int:
        width, height = x + 2 * self.grid.patch[2], y + 2 * self.grid.patch[1]
        total = 0
        for volume in self.inputs:
            depth = tile_shape(volume)[0]
            planes = (-(-self.grid.patch[0] // depth) + 1) * depth
            total += volume.channels * volume.dtype.itemsize * planes * height * width
        return total
