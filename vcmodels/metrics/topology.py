"""Betti numbers of regions: how many pieces, tunnels and cavities they have, and the errors.

A region is the union of its voxels as closed cubes, so that voxels which share a corner are in one
piece and the background is connected by faces (`connectivity` 26); or, with 6, the background is
that union. Then b0 is the number of pieces, b2 that of the pieces of the background that do not
reach the outside of the scored box, and b1, the tunnels, follows from the Euler characteristic
b0 - b1 + b2, which is the alternating sum of the numbers of vertices, edges, faces and cubes
(Kong and Rosenfeld 1989, doi:10.1016/0734-189X(89)90147-3). Cells are counted in the block that holds
their first voxel, pieces are joined across blocks: the numbers are those of the whole.

Voxels that do not count are background. The error is the difference of the numbers, without regard
to where the pieces, tunnels and cavities are.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vcmodels.fields.components import BlockComponents, ComponentJoin
from vcmodels.geometry.boxes import Box
from vcmodels.metrics.base import BlockMetric, BlockPart, Curve, FigureValues, Pair, Sense
from vcmodels.metrics.components import by_name, named

Adjacency = Literal[6, 26]
"""Whether voxels that share a face are connected, or those that share a corner too."""

_BACKGROUND: Mapping[Adjacency, Adjacency] = {6: 26, 26: 6}


@dataclass(frozen=True)
class BlockTopology:
    """What one block adds to the topology of a region."""

    pieces: BlockComponents
    holes: BlockComponents
    """Of the background in the scored box."""
    outside: np.ndarray
    """(n,) int64: the holes of the block that reach the outside of the scored box."""
    euler: int
    """Vertices - edges + faces - cubes that the block counts."""

    @classmethod
    def of(
        cls, region: np.ndarray, block: Box, scored: Box, connectivity: Adjacency
    ) -> "BlockTopology":
        """Measure a block.

        Args:
            region: (Z + 2, Y + 2, X + 2) bool: the block and one voxel around it, false outside of
                the scored box.
            block: a part of the scored box.
            scored: where the volume ends.
            connectivity: of the region.
        """
        inside = np.zeros([n + 1 for n in block.shape], bool)
        inside[scored.intersect(block.with_layer()).slices(block)] = True
        layered = region[1:, 1:, 1:]
        pieces = BlockComponents.of(layered, connectivity)
        holes = BlockComponents.of(inside & ~layered, _BACKGROUND[connectivity])
        first = [a == b for a, b in zip(block.origin, scored.origin, strict=True)]
        last = [a == b for a, b in zip(block.end, scored.end, strict=True)]
        cells = _count_cells(region, first, 0, connectivity)
        euler = cells if connectivity == 6 else -cells
        return cls(pieces, holes, _on_faces(holes.own, first, last), euler)

    def pack(self, name: str) -> BlockPart:
        """For `TopologyJoin.add`."""
        rest = {"outside": self.outside, "euler": np.array([self.euler], np.int64)}
        part = named(f"{name}_pieces", self.pieces.pack()) | named(
            f"{name}_holes", self.holes.pack()
        )
        return part | named(name, rest)


def _count_cells(
    cells: np.ndarray, first: Sequence[bool], axis: int, connectivity: Adjacency
) -> int:
    """The number of cells, each with the sign of the number of axes along which it joins two voxels.

    With 6, a cell is the span of 1, 2, 4 or 8 voxels that are all in the region, with 26 what they
    have in common if one of them is: a cube, face, edge or vertex. The block counts those whose
    first voxel it holds, and at the low end of the volume those whose first voxel is before it.
    """
    if axis == 3:
        return int(np.count_nonzero(cells))
    along = (slice(None),) * axis
    alone = cells[*along, 1:-1]
    start = 0 if first[axis] else 1
    combine = np.logical_and if connectivity == 6 else np.logical_or
    joined = combine(cells[*along, start:-1], cells[*along, start + 1 :])
    alone_count = _count_cells(alone, first, axis + 1, connectivity)
    return alone_count - _count_cells(joined, first, axis + 1, connectivity)


def _on_faces(ids: np.ndarray, first: Sequence[bool], last: Sequence[bool]) -> np.ndarray:
    """The ids, but 0, on those faces of a block where the volume ends."""
    faces = [np.empty(0, ids.dtype)]
    for axis, (is_first, is_last) in enumerate(zip(first, last, strict=True)):
        along = (slice(None),) * axis
        faces += [ids[*along, :1].ravel()] * is_first + [ids[*along, -1:].ravel()] * is_last
    found = np.unique(np.concatenate(faces)).astype(np.int64)
    return found[found != 0]


class TopologyJoin:
    """Joins the topology of one region over the blocks of a box, in any order."""

    def __init__(self) -> None:
        self.pieces, self.holes = ComponentJoin(), ComponentJoin()
        self._outside: list[np.ndarray] = []
        self._euler = 0

    def add(self, box: Box, found: Mapping[str, BlockPart], name: str) -> tuple[int, int]:
        """Take in a block; returns what to add to its pieces and to its holes.

        Args:
            box: of the block.
            found: its part, `by_name`.
            name: as in `BlockTopology.pack`.
        """
        pieces = self.pieces.add(box.origin, box.shape, found[f"{name}_pieces"])
        holes = self.holes.add(box.origin, box.shape, found[f"{name}_holes"])
        self._outside.append(found[name]["outside"] + holes)
        self._euler += int(found[name]["euler"][0])
        return pieces, holes

    def outside(self, numbers: np.ndarray) -> np.ndarray:
        """The pieces of the background that are no cavities, by their numbers."""
        return np.unique(numbers[np.concatenate([np.empty(0, np.int64), *self._outside])])

    def betti(self) -> tuple[int, int, int]:
        """b0, b1 and b2."""
        pieces, holes = self.pieces.numbers(), self.holes.numbers()
        b0, b2 = int(pieces.max()), int(holes.max()) - len(self.outside(holes))
        return b0, b0 + b2 - self._euler, b2


@dataclass(frozen=True)
class TopologyMetric(BlockMetric):
    """Errors of the Betti numbers of masks, or of each class but the background."""

    connectivity: Adjacency = 26
    """Of the region; the background has the other."""

    @property
    def better(self) -> Mapping[str, Sense]:
        names = ("betti_error", "betti_0_error", "betti_1_error", "betti_2_error")
        return dict.fromkeys(names, "min")

    def measure(self, pair: Pair, block: Box) -> BlockPart:
        part = BlockPart()
        for side, regions in zip(_SIDES, pair.regions(block.grow((1, 1, 1))), strict=True):
            for k, region in enumerate(regions):
                found = BlockTopology.of(region, block, pair.box, self.connectivity)
                part |= found.pack(f"{side}{k}")
        return part

    def join(self, parts: Iterable[tuple[Box, BlockPart]]) -> BlockPart:
        joins: dict[str, TopologyJoin] = defaultdict(TopologyJoin)
        for box, part in parts:
            found = by_name(part)
            for name in [name for name, arrays in found.items() if "euler" in arrays]:
                joins[name].add(box, found, name)
        return {name: np.array(join.betti(), np.int64) for name, join in joins.items()}

    def figures(self, joined: BlockPart) -> Mapping[str, FigureValues]:
        errors = [_errors(predicted, labelled) for predicted, labelled in _pairs(joined)]
        return {name: [float(of[n]) for of in errors] for n, name in enumerate(self.better)}

    def curves(self, joined: BlockPart) -> Mapping[str, Curve]:
        pairs, curves = _pairs(joined), dict[str, Curve]()
        for k, pair in enumerate(pairs, 1):
            place = "" if len(pairs) == 1 else f", {k}"
            for side, numbers in zip(_SIDES, pair, strict=True):
                y = tuple(map(float, numbers))
                bars = Curve((0.0, 1.0, 2.0), y, "dimension", "Betti number", "bars")
                curves[f"Betti numbers, {side}{place}"] = bars
        return curves


_SIDES = ("predicted", "labelled")


def _pairs(joined: BlockPart) -> list[tuple[np.ndarray, np.ndarray]]:
    """The Betti numbers of the predicted and of the labelled region of each mask or class."""
    count = len(joined) // 2
    return [(joined[f"predicted{k}"], joined[f"labelled{k}"]) for k in range(count)]


def _errors(predicted: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """The sum and each of the absolute errors; NaN where both regions are empty."""
    if not predicted[0] and not labelled[0]:
        return np.full(4, np.nan)
    errors = np.abs(predicted - labelled)
    return np.array([errors.sum(), *errors])
