"""Small objects and holes, out of masks, classes and ids."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import model_validator

from vcmodels.errors import FaultError, TaskError
from vcmodels.fields.components import BlockComponents, Connectivity
from vcmodels.geometry.boxes import Box, Spacing
from vcmodels.metrics.base import BlockPart
from vcmodels.postprocess.base import IDS, MASK, Form, Role, Step
from vcmodels.postprocess.lengths import (
    in_micrometers,
    most_voxels,
    refuse_both,
    require_length,
    require_package,
)
from vcmodels.postprocess.pieces import Decided, EqualMarks, PieceMeasure, Pieces, Voids
from vcmodels.postprocess.site import Site, Source
from vcmodels.postprocess.sizing import PositiveNumber, SizeKeys, VoxelCount, kept_of
from vcmodels.postprocess.voxels import (
    CLASSES,
    Field,
    FieldFill,
    Marks,
    MaskRule,
    class_values,
    same_form,
)


class SizeRule(SizeKeys):
    """Which objects are kept, and which holes are filled."""

    fill_holes: bool = False
    """Every hole is filled: background that does not touch the border of the volume and that one
    object encloses. What several objects enclose stays."""
    max_hole: VoxelCount | None = None
    """Holes of at most this size are filled; in voxels."""
    max_hole_um3: PositiveNumber | None = None
    """Holes of at most this size are filled; in cubic micrometers."""

    @model_validator(mode="after")
    def _check_one_hole(self) -> Self:
        refuse_both("max_hole", self.max_hole, self.max_hole_um3)
        if self.fill_holes and (self.max_hole or self.max_hole_um3):
            raise FaultError('"fill_holes" fills holes of any size', 'leave out it or "max_hole"')
        return self

    def check_units(self, unit: str | None) -> None:
        super().check_units(unit)
        if self.max_hole_um3 is not None:
            require_length("max_hole_um3", unit)

    @property
    def fills(self) -> bool:
        """Whether a hole may be filled."""
        return self.fill_holes or self.max_hole is not None or self.max_hole_um3 is not None

    def most_filled(self, spacing_um: Spacing) -> int:
        """The voxels of the largest hole that is filled."""
        if self.max_hole_um3 is not None:
            return most_voxels(self.max_hole_um3, spacing_um)
        return np.iinfo(np.int64).max if self.fill_holes else self.max_hole or 0


class SizesStep(SizeRule, Step):
    """Small objects are removed, then holes filled; the rest stays as it is."""

    name: Literal["sizes"] = "sizes"
    """Small objects are removed, then holes are filled. An object is a connected region of a mask or
    of a class, or what has one id."""
    connectivity: Connectivity = 26
    """Which voxels of a mask or class are connected: by faces (6), also by edges (18), also by corners
    (26). Those of a hole are by faces; with 6, by faces, edges and corners."""
    by_class: dict[int, SizeRule] | None = None
    """Keys for single classes, by their stored values, such as `{"2": {"largest": 1}}`: they stand in
    the place of those above, which hold for the other classes."""

    roles: ClassVar[Mapping[str, Role]] = {"objects": Role(frozenset({MASK, CLASSES, IDS}))}

    @model_validator(mode="after")
    def _check_something_to_do(self) -> Self:
        for rule in (self.by_class or {}).values():
            if not (rule.chooses or rule.fills):
                raise FaultError("a rule of by_class is empty", "give it a key, or leave it out")
        if not (self.chooses or self.fills or self.by_class):
            remedy = 'give "min_size", "largest", "fill_holes" or "max_hole"'
            raise FaultError("nothing would be removed or filled", remedy)
        return self

    def output_kind(self, kinds: Mapping[str, str]) -> str:
        return kinds["objects"]

    def form(self, sources: Mapping[str, Source]) -> Form:
        return same_form(sources["objects"])

    def check(self, sources: Mapping[str, Source], spacing: Spacing, unit: str | None) -> None:
        """Refuse classes that are not there, keys without effect, and lengths without a unit."""
        del spacing
        source = sources["objects"]
        require_package("cc3d", self.name)
        require_package("fastremap", self.name)
        for rule in (self, *(self.by_class or {}).values()):
            rule.check_units(unit)
        if source.kind == IDS and self.connectivity != 26 and not self._any_fills:
            raise TaskError("connectivity", "it has no effect: an id is an object", "leave it out")
        if self.by_class is None:
            return
        if source.kind != CLASSES:
            found = f'"{source.name}" has no classes ({source.kind})'
            raise TaskError("by_class", found, "leave it out")
        known = [value for value in class_values(source) if value]
        for value in self.by_class:
            if value not in known:
                listed = ", ".join(map(str, known))
                raise TaskError(f"by_class.{value}", "there is no such class", f"choose: {listed}")

    @property
    def _rules(self) -> "_Rules":
        return _Rules(self, self.by_class or {})

    @property
    def _any_fills(self) -> bool:
        return any(rule.fills for rule in (self, *(self.by_class or {}).values()))

    @property
    def _any_chooses(self) -> bool:
        return any(rule.chooses for rule in (self, *(self.by_class or {}).values()))

    def run(self, site: Site) -> None:
        """One pass to measure objects, one to measure holes, and one to write."""
        source = site.source("objects")
        field: Field = Marks(source, site.box, MaskRule() if source.kind == MASK else None)
        if self._any_chooses:
            field = self._without_small(site, field)
        if self._any_fills:
            field = self._without_holes(site, field)
        site.write("write", FieldFill(field, self.form(site.sources)))

    def _without_small(self, site: Site, field: Field) -> Field:
        connectivity = None if site.source("objects").kind == IDS else self.connectivity
        division = EqualMarks(field, connectivity)
        measured = site.measure("objects", PieceMeasure(division, site.box))
        spacing_um, rules = in_micrometers(site.spacing, site.unit), self._rules

        def choose() -> BlockPart:
            pieces = Pieces.join(measured, connectivity)
            values = pieces.values
            groups = (values != 0).astype(np.uint8) if connectivity is None else values
            kept = kept_of(pieces, groups, rules.of, spacing_um)
            return pieces.tables(np.where(kept, values, 0).astype(values.dtype))

        return Decided.of(division, site.once("kept", choose), measured)

    def _without_holes(self, site: Site, field: Field) -> Field:
        connectivity: Connectivity = 26 if self.connectivity == 6 else 6
        division = Voids(field, connectivity, site.box)
        measured = site.measure("holes", PieceMeasure(division, site.box, _Enclosing(site.box)))
        spacing_um, rules = in_micrometers(site.spacing, site.unit), self._rules

        def choose() -> BlockPart:
            pieces = Pieces.join(measured, connectivity)
            return pieces.tables(_fillings(pieces, rules, spacing_um))

        return Decided.of(division, site.once("filled", choose), measured)


@dataclass(frozen=True)
class _Rules:
    """The rule of each class."""

    other: SizeRule
    """Of masks, ids, and classes that are not named."""
    named: Mapping[int, SizeRule]

    def of(self, value: int) -> SizeRule:
        """The rule that holds for a class."""
        return self.named.get(value, self.other)

    def most_filled(self, values: np.ndarray, spacing_um: Spacing) -> np.ndarray:
        """(n,) int64: the voxels of the largest hole that is filled, in what has these values."""
        most = np.full(len(values), self.other.most_filled(spacing_um))
        for value, rule in self.named.items():
            most[values == value] = rule.most_filled(spacing_um)
        return most


def _fillings(pieces: Pieces, rules: _Rules, spacing_um: Spacing) -> np.ndarray:
    """(objects + 1,): what each region of the background is filled with; 0 where it stays."""
    lows, highs = pieces.measures["lowest"], pieces.measures["highest"]
    lowest = pieces.least(lows, np.iinfo(lows.dtype).max)
    highest = pieces.most(highs, np.iinfo(highs.dtype).min)
    is_hole = (lowest == highest) & (pieces.most(pieces.measures["at_border"], 0) == 0)
    is_hole &= pieces.voxels <= rules.most_filled(lowest, spacing_um)
    is_hole[0] = False
    return np.where(is_hole, lowest, 0).astype(lowest.dtype)


@dataclass(frozen=True)
class _Enclosing:
    """The lowest and highest marks that touch each piece by a face, and if it is at the border.

    Each pair of voxels that touch lies in the block of one of them with its layer; so every contact
    is seen.
    """

    within: Box

    def __call__(self, block: Box, pieces: BlockComponents, marks: np.ndarray) -> BlockPart:
        marks = marks.astype(np.int64 if marks.dtype.kind == "i" else np.uint64)
        limits = np.iinfo(marks.dtype)
        lowest = np.full(pieces.count + 1, limits.max, marks.dtype)
        highest = np.full(pieces.count + 1, limits.min, marks.dtype)
        for here, there in _neighbours():
            touch = (pieces.ids[here] != 0) & (marks[there] != 0)
            touching, touched = pieces.ids[here][touch], marks[there][touch]
            np.minimum.at(lowest, touching, touched)
            np.maximum.at(highest, touching, touched)
        border = _at_border(block, pieces, self.within)
        return {"lowest": lowest[1:], "highest": highest[1:], "at_border": border[1:]}


def _neighbours() -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Where voxels are, and where their neighbours by one face are."""
    for axis in range(3):
        along = (slice(None),) * axis
        low, high = (*along, slice(None, -1)), (*along, slice(1, None))
        yield from ((low, high), (high, low))


def _at_border(block: Box, pieces: BlockComponents, within: Box) -> np.ndarray:
    """(pieces + 1,) uint8: 1 for those that reach the border of the volume."""
    at_border = np.zeros(pieces.count + 1, np.uint8)
    for axis in range(3):
        along = np.moveaxis(pieces.own, axis, 0)
        if block.origin[axis] == within.origin[axis]:
            at_border[along[0]] = 1
        if block.end[axis] == within.end[axis]:
            at_border[along[-1]] = 1
    return at_border
