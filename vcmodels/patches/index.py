"""The label index: what answers any question about labelled patches without reading a voxel again.

Space is cut into small cells. For each cell the index holds how many of its voxels have which value
and, for each axis, which of the cell's planes hold any label. Counts add and plane sets unite, so
the exact bounding box and density of every patch made of whole cells follow from the index, and
cells that two pieces of a label share are merged afterwards.

The cells are kept in bricks, boxes of whole storage units of the label: a brick is made, stored,
checked and replaced as one, and where no unit is stored there is none.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import gcd, prod

import numpy as np

from vcmodels.geometry.boxes import Box, Shape, divide, triple, unit_box, units_touching
from vcmodels.targets.census import FEW, ValueFigures
from vcmodels.targets.stored import ForegroundRule, countable
from vcmodels.volumes import Volume

MOST_VALUES = 64
"""Distinct values of a piece that are counted one by one: classes, not the ids of instances."""
UNCOUNTED = int(np.iinfo(np.int64).min)
"""Stands for all labelled voxels together where their values are counted together."""

_LARGEST = np.iinfo(np.int64).max
_SAMPLE = 4096
_EXACT = 2**53


@dataclass
class Cells:
    """Labelled voxels of a box of cells."""

    box: Box
    """Which cells, in cells from the start of the index."""
    planes: np.ndarray
    """(3, *cells) uint16: per axis, bit i is set when plane i of the cell holds a label."""
    counts: dict[int, np.ndarray] = field(default_factory=dict)
    """(*cells) uint16 by stored value, 0 left out: voxels with it. `UNCOUNTED`: see there."""
    figures: ValueFigures | None = None
    """Of the voxels that are counted together; None where there are none."""

    @classmethod
    def empty(cls, box: Box) -> "Cells":
        """Cells without labels."""
        return cls(box, np.zeros((3, *box.shape), np.uint16))

    def add(self, other: "Cells") -> None:
        """Merge cells that lie within these; a voxel may be in one of the two only."""
        place = other.box.slices(within=self.box)
        self.planes[(slice(None), *place)] |= other.planes
        for value, counts in other.counts.items():
            if value not in self.counts:
                self.counts[value] = np.zeros(self.box.shape, np.uint16)
            self.counts[value][place] += counts
        if other.figures is not None:
            self.figures = other.figures if self.figures is None else self.figures + other.figures

    def cropped(self) -> "Cells":
        """Those of the smallest box that holds all that is not zero."""
        used = self.planes.any(axis=0)
        for counts in self.counts.values():
            used |= counts > 0
        places = np.argwhere(used)
        if not len(places):
            return Cells(
                Box(self.box.origin, (0, 0, 0)), self.planes[:, :0, :0, :0], {}, self.figures
            )
        start, end = (places.min(axis=0), places.max(axis=0) + 1)
        start, end = (edge + self.box.origin for edge in (start, end))
        box = Box.between(start.tolist(), end.tolist())
        place = box.slices(within=self.box)
        counts = {value: array[place].copy() for value, array in self.counts.items()}
        return Cells(box, self.planes[(slice(None), *place)].copy(), counts, self.figures)


def cells_of(
    stored: np.ndarray,
    piece: Box,
    start: Shape,
    cell: Shape,
    ignore: Sequence[int],
    foreground: ForegroundRule | None = None,
) -> Cells:
    """The cells that a piece of a label touches, counting only its voxels.

    A voxel is labelled when it is finite, not zero in all channels, and no ignore label in all; with
    `foreground`, when that holds, too. The planes are those of labelled voxels; counted is every
    value but 0, the ignored ones too.

    Args:
        stored: (S, *piece.shape), any dtype.
        piece: where it is in the volume.
        start: the voxel at which cell (0, 0, 0) begins; at or before the piece.
        cell: voxels of a cell, each 1 to 16.
        ignore: stored values that count as unlabelled.
        foreground: which of the others are labelled; all when None.
    """
    low = [(o - s) // c for o, s, c in zip(piece.origin, start, cell, strict=True)]
    high = [-((s - e) // c) for e, s, c in zip(piece.end, start, cell, strict=True)]
    box = Box.between(low, high)
    first = [s + i * c for s, i, c in zip(start, low, cell, strict=True)]
    before = [o - f for o, f in zip(piece.origin, first, strict=True)]
    total = [n * c for n, c in zip(box.shape, cell, strict=True)]
    pads = [(b, t - b - n) for t, b, n in zip(total, before, piece.shape, strict=True)]

    def whole_cells(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, pads) if any(map(any, pads)) else mask
        return np.ascontiguousarray(padded).view(np.uint8)

    masks, figures = value_masks(stored), None
    if masks is None or len(masks) > FEW:
        figures = ValueFigures.of(stored, ignore, is_counted=masks is not None)
    if masks is None:
        mask = labelled_voxels(stored, ignore, foreground)
        masks = {UNCOUNTED: mask} if mask.any() else {}
    labelled = [mask for value, mask in masks.items() if is_labelled(value, ignore, foreground)]
    counts: dict[int, np.ndarray] = {}
    planes = np.zeros((3, *box.shape), np.uint16)
    if len(labelled) == 1 and len(masks) == 1:
        (value,) = masks
        counts[value] = _summarise(whole_cells(masks[value]), box.shape, cell, planes)
    elif masks:
        for value, mask in masks.items():
            counts[value] = _summarise(whole_cells(mask), box.shape, cell)
        if labelled:
            _summarise(whole_cells(np.logical_or.reduce(labelled)), box.shape, cell, planes)
    return Cells(box, planes, counts, figures)


def is_labelled(value: int, ignore: Sequence[int], foreground: ForegroundRule | None) -> bool:
    """Whether voxels that are counted under a value are labelled."""
    if value == UNCOUNTED:  # those are counted where they are
        return True
    return value not in ignore and (foreground is None or foreground.meets(value))


def labelled_voxels(
    stored: np.ndarray, ignore: Sequence[int], foreground: ForegroundRule | None
) -> np.ndarray:
    """Where a label is labelled: (S, Z, Y, X) -> (Z, Y, X) bool."""
    mask = countable(stored, ignore, only_on_label=True)[0]
    if foreground is not None:
        mask &= foreground.of(stored).any(axis=0)
    return mask


def value_masks(stored: np.ndarray) -> dict[int, np.ndarray] | None:
    """The voxels of each value but 0; None when values are counted together.

    That is so for fractions, several channels, more than `MOST_VALUES` values, and values beyond
    int64, which no class has. NaN and infinity are no values.
    """
    if stored.dtype.kind not in "iubf" or len(stored) != 1:
        return None
    labels = stored[0]
    if labels.dtype == bool or (labels.dtype == np.uint8 and labels.max() <= 1):
        mask = labels.view(bool)  # the usual mask needs no comparison
        return {1: mask} if mask.any() else {}
    # An odd step meets all columns of chunks, whose sides are even; sorting all voxels takes 7 ms.
    sample = _distinct(labels.ravel()[:: labels.size // _SAMPLE | 1])
    if sample is None or (labels.dtype == np.uint64 and labels.max() > _LARGEST):
        return None
    masks = {value: labels == value for value in sample if value}
    rest = labels != 0 if labels.dtype.kind != "f" else (labels != 0) & np.isfinite(labels)
    if np.count_nonzero(rest) > sum(map(np.count_nonzero, masks.values())):
        for mask in masks.values():
            rest &= ~mask
        more = _distinct(labels[rest])
        if more is None:
            return None
        masks |= {value: labels == value for value in more}
    return masks if len(masks) <= MOST_VALUES else None


def _distinct(values: np.ndarray) -> list[int] | None:
    """The finite values (n,), each once; None if they are too many, or no whole numbers."""
    found = np.unique(values)
    if values.dtype.kind == "f":
        found = found[np.isfinite(found)]
        if (np.trunc(found) != found).any() or (np.abs(found) > _EXACT).any():
            return None
    return None if len(found) > MOST_VALUES + 1 else [int(value) for value in found]


def _summarise(
    mask: np.ndarray, cells: Shape, cell: Shape, planes: np.ndarray | None = None
) -> np.ndarray:
    """Reduce a mask of whole cells to its counts (*cells) uint16 and, where asked, its planes.

    One pass over the voxels packs each line of a cell along x into the bits of a word; the rest is
    unions and bit counts of an eighth of the data.

    Args:
        mask: whole cells of 0 and 1, contiguous uint8.
        cells: how many cells there are.
        cell: voxels of a cell.
        planes: (3, *cells) uint16, into which the plane sets are written.
    """
    (nz, ny, nx), (cz, cy, cx) = cells, cell
    lines = _packed(mask, cx)
    if planes is not None:
        over_z = np.bitwise_or.reduce(lines.reshape(nz, cz, -1), axis=1).reshape(nz, ny, cy, nx)
        over_y = _unite(lines.reshape(nz * cz * ny, cy, nx)).reshape(nz, cz, ny, nx)
        planes[0] = _as_bits((over_y != 0).transpose(0, 2, 3, 1))
        planes[1] = _as_bits((over_z != 0).transpose(0, 1, 3, 2))
        planes[2] = np.bitwise_or.reduce(over_z, axis=2)
    voxels = np.bitwise_count(lines).reshape(nz, cz, -1)
    columns = np.add.reduce(voxels, axis=1, dtype=np.uint16).reshape(nz, ny, cy, nx)
    return np.add.reduce(columns, axis=2, dtype=np.uint16)


def _packed(mask: np.ndarray, length: int) -> np.ndarray:
    """The lines of `length` voxels as words, voxel i as bit i: (n,) uint16."""
    if length % 8 == 0:  # lines end with bytes, and packing all of them as one is twice as fast
        packed = np.packbits(mask, bitorder="little").reshape(-1, length // 8)
    else:
        packed = np.packbits(mask.reshape(-1, length), axis=1, bitorder="little")
    return packed.view("<u2").ravel() if packed.shape[1] == 2 else packed.ravel().astype(np.uint16)


def _unite(rows: np.ndarray) -> np.ndarray:
    """The union over axis 1. Halves at a time: reductions with a short inner axis are slow."""
    while rows.shape[1] > 1:
        half = (rows.shape[1] + 1) // 2
        rows = rows[:, :half] | rows[:, -half:]
    return rows[:, 0]


def _as_bits(planes: np.ndarray) -> np.ndarray:
    """(cells z, y, x, up to 16) bool -> (cells z, y, x) uint16, plane i as bit i."""
    weights = np.left_shift(1, np.arange(planes.shape[3])).astype(np.uint16)
    return (planes * weights).sum(axis=3, dtype=np.uint16)


LONGEST_CELL = 16  # planes of a cell are the bits of a uint16
BRICK_SIDE = 512
"""About how many voxels a brick is long: the work that a kill loses, and what a bbox reads more."""


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
    foreground: ForegroundRule | None = None
    """Which of the other values are labelled; all when None."""

    @classmethod
    def of(
        cls,
        volume: Volume,
        region: Box,
        cell: Shape,
        ignore: Iterable[int] = (),
        foreground: ForegroundRule | None = None,
    ) -> "IndexPlan":
        """The plan for a label; the region lies inside of it."""
        return cls(region, cell, tuple(sorted(set(ignore))), volume.storage_unit, foreground)

    def is_labelled(self, value: int) -> bool:
        """Whether voxels that are counted under a value are labelled."""
        return is_labelled(value, self.ignore, self.foreground)

    @property
    def brick(self) -> Shape:
        """Storage units of a brick."""
        return triple(max(round(BRICK_SIDE / n), 1) for n in self.unit)

    def brick_of(self, unit: Shape) -> Shape:
        """The brick that holds a storage unit."""
        return divide(unit, self.brick)

    def brick_box(self, brick: Shape) -> Box:
        """The voxels of a brick that are counted."""
        return unit_box(brick, self._brick_voxels).intersect(self.region)

    def bricks(self, within: Box) -> tuple[range, range, range]:
        """Along each axis, the bricks that touch a box of voxels."""
        return units_touching(within, self._brick_voxels)

    @property
    def _brick_voxels(self) -> Shape:
        return triple(n * u for n, u in zip(self.brick, self.unit, strict=True))

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
    units: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int64), compare=False)
    """(n, 3) int64: the storage units that were looked at, now or before."""
    is_whole: bool = True
    """Whether these are all that may hold labels."""

    @property
    def values(self) -> list[int] | None:
        """The stored values that occur, but 0 and those ignored; None if they are not counted."""
        found = {value for cells in self.bricks.values() for value in cells.counts}
        return None if UNCOUNTED in found else sorted(filter(self.plan.is_labelled, found))

    @property
    def figures(self) -> ValueFigures:
        """Of the voxels that are not counted one by one."""
        found = [cells.figures for cells in self.bricks.values() if cells.figures is not None]
        return sum(found, ValueFigures())

    def occupied(self, within: Box) -> Box:
        """The smallest box of cells that holds all bricks' cells in a box of cells."""
        parts = [part for _, part in self._parts(within)]
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
            values: count only these; all labelled voxels when None.

        Returns:
            counts: (*box.shape) uint16.
            planes: (3, *box.shape) uint16, of all labelled voxels.
        """
        counts, planes = np.zeros(box.shape, np.uint16), np.zeros((3, *box.shape), np.uint16)
        for cells, part in self._parts(box):
            to, here = part.slices(within=box), part.slices(within=cells.box)
            planes[(slice(None), *to)] |= cells.planes[(slice(None), *here)]
            for value, counted in cells.counts.items():
                if value in values if values is not None else self.plan.is_labelled(value):
                    counts[to] += counted[here]
        return counts, planes

    def totals(self, box: Box) -> dict[int, int]:
        """Voxels of each value in a box of cells; 0 and values that do not occur are left out."""
        found: dict[int, int] = {}
        for cells, part in self._parts(box):
            here = part.slices(within=cells.box)
            for value, counted in cells.counts.items():
                found[value] = found.get(value, 0) + int(counted[here].sum(dtype=np.int64))
        return {value: count for value, count in found.items() if count}

    def profiles(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Along each axis, the labelled voxels (n,) int64 of each layer of a box of cells."""
        found = triple(np.zeros(n, np.int64) for n in box.shape)
        for cells, part in self._parts(box):
            here, to = part.slices(within=cells.box), part.slices(within=box)
            for value, counted in cells.counts.items():
                if self.plan.is_labelled(value):
                    for axis, others in enumerate(((1, 2), (0, 2), (0, 1))):
                        found[axis][to[axis]] += counted[here].sum(axis=others, dtype=np.int64)
        return found

    def _parts(self, box: Box) -> Iterator[tuple[Cells, Box]]:
        """The bricks that hold cells of a box, each with the box of those cells."""
        spans = self.plan.bricks(within=self.plan.voxels(box))
        bricks: Iterable[Cells] = self.bricks.values()
        if prod(map(len, spans)) < len(self.bricks):
            bricks = (self.bricks[i] for i in product(*spans) if i in self.bricks)
        for cells in bricks:
            part = cells.box.intersect(box)
            if part.voxels:
                yield cells, part


def cell_shape(patch: Shape, stride: Shape) -> Shape:
    """Per axis, the largest common divisor of patch and stride that is at most 16."""
    return triple(
        max(d for d in range(1, LONGEST_CELL + 1) if gcd(p, s) % d == 0)
        for p, s in zip(patch, stride, strict=True)
    )
