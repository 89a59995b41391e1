"""Objects that are seen in pieces: one for each block that has a part of them.

A field (see `voxels`) is divided within each block, pieces of one object are found by what blocks
share, and something is decided of each object. Writing divides each block again, which is cheaper
than keeping the pieces, and gives all voxels of a piece the value that was decided.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from vcmodels.blockwise import Measured
from vcmodels.fields.components import BlockComponents, ComponentJoin, Connectivity
from vcmodels.geometry.boxes import Box
from vcmodels.metrics.base import BlockPart
from vcmodels.postprocess.numbering import NOWHERE, first_voxels, run_starts, voxel_counts
from vcmodels.postprocess.site import Tables
from vcmodels.postprocess.voxels import Field, only_within


class Division(Protocol):
    """How blocks fall into pieces; picklable."""

    @property
    def connectivity(self) -> Connectivity | None:
        """Voxels of a piece touch so; None: those that are equal are of one object."""
        ...

    def divide(self, block: Box) -> tuple[BlockComponents, np.ndarray]:
        """The pieces of a block and of the layer that follows it, and the marks of these voxels."""
        ...


@dataclass(frozen=True)
class EqualMarks:
    """Voxels are of one object when they are equal and, unless `connectivity` is None, touch."""

    field: Field
    connectivity: Connectivity | None

    def divide(self, block: Box) -> tuple[BlockComponents, np.ndarray]:
        marks = self.field(block)
        if self.connectivity is None:
            return _equal(marks), marks
        return _touching(marks, self.connectivity), marks


@dataclass(frozen=True)
class Voids:
    """The connected regions of what is 0 in a field."""

    field: Field
    connectivity: Connectivity
    within: Box

    def divide(self, block: Box) -> tuple[BlockComponents, np.ndarray]:
        marks = self.field(block)
        void = only_within((marks == 0).view(np.uint8), block.with_layer(), self.within)
        return _touching(void, self.connectivity), marks


def _touching(marks: np.ndarray, connectivity: Connectivity) -> BlockComponents:
    import cc3d  # late: an extra

    ids, count = cc3d.connected_components(
        marks, connectivity=connectivity, return_N=True, out_dtype=np.uint32
    )
    return BlockComponents(ids.view(np.int32), count)


def _equal(marks: np.ndarray) -> BlockComponents:
    import fastremap  # late: an extra

    ids, numbers = fastremap.renumber(marks, preserve_zero=True)
    return BlockComponents(ids.astype(np.int32), sum(1 for value in numbers if value))


Extra = Callable[[Box, BlockComponents, np.ndarray], BlockPart]
"""More that is measured of the pieces of a block, by its marks: (n,) each."""


@dataclass(frozen=True)
class PieceMeasure:
    """What is recorded of each block: its pieces, their voxels and their first ones, and faces."""

    division: Division
    within: Box
    extra: Extra | None = None

    def __call__(self, block: Box) -> BlockPart:
        pieces, marks = self.division.divide(block)
        ids = pieces.ids.reshape(-1)
        values, starts = np.zeros(pieces.count + 1, marks.dtype), run_starts(ids)
        values[ids[starts]] = marks.reshape(-1)[starts]
        part = {
            "firsts": first_voxels(pieces.own, pieces.count, block, self.within),
            "voxels": voxel_counts(pieces.own, pieces.count),
            "values": values[1:],
            **(self.extra(block, pieces, marks) if self.extra else {}),
        }
        return part if self.division.connectivity is None else {**part, **pieces.pack()}


@dataclass(frozen=True)
class Pieces:
    """The pieces of all blocks, one after the other, and the objects that they are of."""

    objects: np.ndarray
    """(n + 1,) int64: the object of each piece, from 1 on; [0] is 0, for the background."""
    offsets: np.ndarray
    """(blocks,) int64: to be added to the numbers of the pieces of a block, but not to 0."""
    measures: Mapping[str, np.ndarray] = field(repr=False)
    """(n + 1,) each: what was measured of the pieces; [0] means nothing."""

    @classmethod
    def join(cls, measured: Measured, connectivity: Connectivity | None) -> "Pieces":
        """Find the objects of what a `PieceMeasure` recorded."""
        contacts, offsets, count = ComponentJoin(), list[int](), 0
        parts: dict[str, list[np.ndarray]] = {}
        for box, part in measured.parts():
            offsets.append(count)
            count += len(part["firsts"])
            if connectivity is not None:
                contacts.add(box.origin, box.shape, part)
            for name, values in part.items():
                if name not in ("count", "faces", "bytes"):
                    parts.setdefault(name, [values[:0]]).append(values)
        measures = {name: _after_nothing(np.concatenate(each)) for name, each in parts.items()}
        if connectivity is None:
            objects = np.unique(measures["values"], return_inverse=True)[1].astype(np.int64)
        else:
            objects = contacts.numbers()
        return cls(objects, np.array(offsets, np.int64), measures)

    @property
    def count(self) -> int:
        """How many objects there are."""
        return int(self.objects.max(initial=0))

    @property
    def voxels(self) -> np.ndarray:
        """(objects + 1,) int64: how many each object has; 0 for the background."""
        total = np.zeros(self.count + 1, np.int64)
        np.add.at(total, self.objects[1:], self.measures["voxels"][1:])
        return total

    @property
    def firsts(self) -> np.ndarray:
        """(objects + 1,) int64: the number of the first voxel of each object."""
        return self.least(self.measures["firsts"], NOWHERE)

    @property
    def values(self) -> np.ndarray:
        """(objects + 1,): what the voxels of each object are; 0 for the background."""
        values = np.zeros(self.count + 1, self.measures["values"].dtype)
        values[self.objects] = self.measures["values"]
        return values

    def least(self, measure: np.ndarray, initial: int) -> np.ndarray:
        """(objects + 1,): the least of the pieces of each object."""
        least = np.full(self.count + 1, initial, measure.dtype)
        np.minimum.at(least, self.objects[1:], measure[1:])
        return least

    def most(self, measure: np.ndarray, initial: int) -> np.ndarray:
        """(objects + 1,): the most of the pieces of each object."""
        most = np.full(self.count + 1, initial, measure.dtype)
        np.maximum.at(most, self.objects[1:], measure[1:])
        return most

    def tables(self, decided: np.ndarray) -> BlockPart:
        """What `Decided` needs, by (objects + 1,) the value of each object."""
        return {"values": decided[self.objects], "offsets": self.offsets}


def _after_nothing(values: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, values.dtype), values])


@dataclass(frozen=True)
class Decided:
    """A field of what was decided of each object; voxels of no object stay as they are."""

    division: Division
    tables: Tables
    rows: Mapping[Box, int]
    """The number of each block."""

    @classmethod
    def of(cls, division: Division, tables: Tables, measured: Measured) -> "Decided":
        """By the tables that were made of what was measured."""
        return cls(division, tables, {box: at for at, box in enumerate(measured.places)})

    def __call__(self, block: Box) -> np.ndarray:
        pieces, marks = self.division.divide(block)
        start = int(self.tables["offsets"][self.rows[block]]) + 1
        values = np.zeros(pieces.count + 1, self.tables["values"].dtype)
        values[1:] = self.tables["values"][start : start + pieces.count]
        made = values[pieces.ids]
        if isinstance(self.division, Voids):  # others mark nothing but pieces
            rest = pieces.ids == 0
            made[rest] = marks[rest]
        return made
