"""The label index: what answers any question about labelled patches without reading a voxel again.

Space is cut into small cells. For each cell the index holds how many of its voxels have which value
and, for each axis, which of the cell's planes hold any label. Counts add and plane sets unite, so
the exact bounding box and density of every patch made of whole cells follow from the index.

The cells are kept in bricks, boxes of whole storage units of the label: a brick is made, stored,
checked and replaced as one, and where no unit is stored there is none.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import gcd, prod

import numpy as np

from vcmodels.data.label_cells import UNCOUNTED, Cells
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.volumes import Volume

LONGEST_CELL = 16  # planes of a cell are the bits of a uint16
BRICK_SIDE = 512
"""About how many voxels a brick is long: the work that a kill loses, and what a bbox reads more."""
PIECE_VOXELS = 1 << 26  # a shard larger than this is read in parts, to bound the memory


@dataclass(frozen=True)
class IndexPlan:
    """What an index counts, in which cells, and how it is divided."""

    region: Box
    """Cells start at its origin, and voxels outside of it are not counted."""
    cell: Shape
    """Voxels of a cell along (z, y, x), each 1 to 16."""
    ignore: tuple[int, ...]
    """Stored values that count as unlabelled, besides 0; ascending."""
    unit: Shape
    """Voxels of a storage unit of the label."""

    @classmethod
    def of(
        cls, volume: Volume, region: Box, cell: Shape, ignore: Iterable[int] = ()
    ) -> "IndexPlan":
        """The plan for a label; the region lies inside of it."""
        return cls(region, cell, tuple(sorted(set(ignore))), volume.storage_unit)

    @property
    def brick(self) -> Shape:
        """Storage units of a brick."""
        z, y, x = (max(round(BRICK_SIDE / n), 1) for n in self.unit)
        return z, y, x

    def brick_of(self, unit: Shape) -> Shape:
        """The brick that holds a storage unit."""
        z, y, x = (i // n for i, n in zip(unit, self.brick, strict=True))
        return z, y, x

    def brick_box(self, brick: Shape) -> Box:
        """The voxels of a brick that are counted."""
        sides = [n * u for n, u in zip(self.brick, self.unit, strict=True)]
        start = [i * n for i, n in zip(brick, sides, strict=True)]
        end = [(i + 1) * n for i, n in zip(brick, sides, strict=True)]
        return Box.between(start, end).intersect(self.region)

    def bricks(self, within: Box) -> tuple[range, range, range]:
        """Along each axis, the bricks that touch a box of voxels."""
        z, y, x = (
            range(o // (n * u), -(-e // (n * u)))
            for o, e, n, u in zip(within.origin, within.end, self.brick, self.unit, strict=True)
        )
        return z, y, x

    def voxels(self, cells: Box) -> Box:
        """The voxels of a box of cells that are counted."""
        triples = list(zip(self.region.origin, cells.origin, cells.end, self.cell, strict=True))
        start = [r + o * c for r, o, _, c in triples]
        return Box.between(start, [r + e * c for r, _, e, c in triples]).intersect(self.region)

    def cells(self, box: Box) -> Box:
        """The cells that a box of voxels in the region touches."""
        pairs = list(zip(box.origin, box.end, self.region.origin, self.cell, strict=True))
        low = [(o - r) // c for o, _, r, c in pairs]
        high = [-((r - e) // c) for _, e, r, c in pairs]
        return Box.between(low, high)


@dataclass(frozen=True)
class LabelIndex:
    """Labelled voxels of a label, per cell; memory is only used where something is labelled."""

    plan: IndexPlan
    bricks: Mapping[Shape, Cells]
    """By brick, the cells that hold anything; a cell at a border may be in several, in parts."""

    @property
    def values(self) -> list[int] | None:
        """The stored values that occur, but 0 and those ignored; None if they are not counted."""
        found = {value for cells in self.bricks.values() for value in cells.counts}
        return None if UNCOUNTED in found else sorted(found - set(self.plan.ignore))

    def occupied(self, within: Box) -> Box:
        """The smallest box of cells that holds all bricks' cells in a box of cells."""
        parts = [cells.box.intersect(within) for cells in self._touching(within)]
        parts = [part for part in parts if part.voxels]
        if not parts:
            return Box(within.origin, (0, 0, 0))
        low = np.min([part.origin for part in parts], axis=0)
        return Box.between(low.tolist(), np.max([part.end for part in parts], axis=0).tolist())

    def gather(
        self, box: Box, values: Iterable[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The cells of a box, dense.

        Args:
            box: in cells; may reach out of the region, where nothing is labelled.
            values: count these alone; all labelled voxels when None.

        Returns:
            counts: (*box.shape) uint16.
            planes: (3, *box.shape) uint16, of all labelled voxels.
        """
        counts, planes = np.zeros(box.shape, np.uint16), np.zeros((3, *box.shape), np.uint16)
        for cells in self._touching(box):
            part = cells.box.intersect(box)
            if not part.voxels:
                continue
            to, here = part.slices(within=box), part.slices(within=cells.box)
            planes[(slice(None), *to)] |= cells.planes[(slice(None), *here)]
            for value, counted in cells.counts.items():
                if value in values if values is not None else value not in self.plan.ignore:
                    counts[to] += counted[here]
        return counts, planes

    def totals(self, box: Box) -> dict[int, int]:
        """Voxels of each value in a box of cells; 0 and values that do not occur are left out."""
        found: dict[int, int] = {}
        for cells in self._touching(box):
            part = cells.box.intersect(box)
            if part.voxels:
                here = part.slices(within=cells.box)
                for value, counted in cells.counts.items():
                    found[value] = found.get(value, 0) + int(counted[here].sum(dtype=np.int64))
        return {value: count for value, count in found.items() if count}

    def profiles(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Along each axis, the labelled voxels (n,) int64 of each layer of a box of cells."""
        found = tuple(np.zeros(n, np.int64) for n in box.shape)
        for cells in self._touching(box):
            part = cells.box.intersect(box)
            here, to = part.slices(within=cells.box), part.slices(within=box)
            for value, counted in cells.counts.items():
                if part.voxels and value not in self.plan.ignore:
                    for axis, others in enumerate(((1, 2), (0, 2), (0, 1))):
                        found[axis][to[axis]] += counted[here].sum(axis=others, dtype=np.int64)
        return found[0], found[1], found[2]

    def _touching(self, box: Box) -> Iterator[Cells]:
        """The bricks whose cells may touch a box of cells."""
        spans = self.plan.bricks(within=self.plan.voxels(box))
        if prod(map(len, spans)) >= len(self.bricks):
            yield from self.bricks.values()
        else:
            yield from (self.bricks[i] for i in product(*spans) if i in self.bricks)


def cell_shape(patch: Shape, stride: Shape) -> Shape:
    """Per axis, the largest common divisor of patch and stride that is at most 16."""
    z, y, x = (
        max(d for d in range(1, LONGEST_CELL + 1) if gcd(p, s) % d == 0)
        for p, s in zip(patch, stride, strict=True)
    )
    return z, y, x


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
