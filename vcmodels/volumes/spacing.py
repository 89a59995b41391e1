"""Voxel sizes as stores spell them, brought to (z, y, x) and one unit; what is not understood is said."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

from vcmodels.geometry.boxes import Spacing, triple
from vcmodels.volumes.axes import LONGEST_NAME, AxisMap, Names, axis_name

_PREFIXES = {
    "": 1.0,
    "kilo": 1e3,
    "centi": 1e-2,
    "milli": 1e-3,
    "micro": 1e-6,
    "nano": 1e-9,
    "pico": 1e-12,
}
_METERS = {f"{prefix}meter": factor for prefix, factor in _PREFIXES.items()} | {"angstrom": 1e-10}
_SHORT = {
    "m": "meter", "cm": "centimeter", "mm": "millimeter", "um": "micrometer", "µm": "micrometer",
    "μm": "micrometer", "micron": "micrometer", "nm": "nanometer", "pm": "picometer",
    "å": "angstrom",
}  # fmt: skip
_NO_UNITS = {"", "pixel", "pixels", "px", "voxel", "voxels", "none", "null", "arbitrary"}
_EQUAL = 0.01
"""Part by which two lengths that are meant to be the same may differ."""
_MOST = 1e100
Coordinates = tuple[Sequence[float], str | None]
"""Of the voxels along an axis, and their unit."""


@dataclass(frozen=True)
class Grid:
    """Voxel size and position of an array, in (z, y, x), and the names of its axes if stored."""

    spacing: Spacing = (1.0, 1.0, 1.0)
    """1 where it is not known."""
    offset: Spacing = (0.0, 0.0, 0.0)
    unit: str | None = None
    axes: tuple[str, ...] | None = None
    is_known: bool = False
    """Whether the store says the spacing; voxels of length 1 without a unit say nothing."""
    notes: tuple[str, ...] = ()
    """What the store says and is not understood, and what to do about it; a line each."""


@dataclass(frozen=True)
class AxisLengths:
    """What one place of a store says about voxel size and position, as it is there."""

    place: str
    """For messages."""
    scale: object
    """A number for each axis, by name or in order; None where nothing is said."""
    shift: object = None
    units: object = None
    """A text for all axes, or one for each."""
    order: Names | None = None
    """The axes of the numbers; those of the array when None."""
    problem: str = ""
    """What else stands there that is not understood."""

    def grid(self, axes: AxisMap) -> Grid:
        """The grid of an array with these axes."""
        units = _units(self.units, axes, self.order)
        sizes = _along(self.scale, axes, self.order)
        problem = self.problem
        if not problem and self.scale is not None and (sizes is None or min(sizes) <= 0):
            problem = f"{shown(self.scale)} are not {_count(axes)} numbers above 0"
        if problem or sizes is None:
            said = (_unknown(f"{self.place}: {problem}"),) if problem else ()
            return Grid(unit=units[-1] if len({*units}) == 1 else None, notes=said)
        shift = _along(self.shift, axes, self.order)
        notes = list[str]()
        if self.shift is not None and shift is None:
            found = f"{self.place}: the offset {shown(self.shift)} is not {_count(axes)} numbers"
            notes.append(f"{found}, and 0 is taken")
        shift = shift or (0.0, 0.0, 0.0)
        if len({*units}) > 1:
            common = _converted(units, (sizes, shift))
            if common is None:
                listed = ", ".join(unit or "none" for unit in units)
                return Grid(notes=(_unknown(f"{self.place}: units {listed} along z, y, x"),))
            sizes, shift, units = *common, ("micrometer",) * 3
        unit = units[0]
        if unit is not None and unit not in _METERS:
            notes.append(
                f'{self.place}: unit "{unit}" is no known length; sizes are taken as they are'
            )
        is_known = unit is not None or sizes != (1.0, 1.0, 1.0)
        return Grid(sizes, shift, unit, is_known=is_known, notes=tuple(notes))


def first_of(candidates: Sequence[AxisLengths], axes: AxisMap) -> Grid:
    """The grid of the first place that says the voxel size, with a note where another one differs."""
    grids = [one.grid(axes) for one in candidates]
    known = [n for n, grid in enumerate(grids) if grid.is_known]
    if not known:
        notes = tuple(note for grid in grids for note in grid.notes)
        return replace(grids[0], notes=notes) if grids else Grid()
    first, chosen = known[0], grids[known[0]]
    notes = [note for grid in grids[: first + 1] for note in grid.notes]
    for n in known[1:]:
        other = in_unit(grids[n].spacing, grids[n].unit, chosen.unit)
        if differs(other, chosen.spacing):
            said = f"{candidates[first].place} says voxels of {chosen.spacing}"
            where = f"{candidates[n].place} {other}"
            notes.append(f'{said}, {where}: the first is used; "spacing" goes before both')
    return replace(chosen, notes=tuple(notes))


def in_unit(lengths: Spacing, unit: str | None, wanted: str | None) -> Spacing:
    """Lengths in another unit; as they are where one of the two is not known."""
    if unit == wanted or unit not in _METERS or wanted not in _METERS:
        return lengths
    factor = _METERS[unit] / _METERS[wanted]
    return triple(float(f"{length * factor:.12g}") for length in lengths)


def is_length(unit: str | None) -> bool:
    """Whether a unit is a known length, so that `in_unit` converts it."""
    return unit in _METERS


def differs(one: Spacing, other: Spacing) -> bool:
    """Whether two voxel sizes are not the same."""
    return any(abs(a - b) > _EQUAL * b for a, b in zip(one, other, strict=True))


def from_coordinates(
    read: Callable[[int], Coordinates | None], shape: Sequence[int], axes: AxisMap
) -> Grid:
    """The grid of an array whose spatial axes have coordinates next to it, as xarray writes them.

    Args:
        read: the coordinates along the axis of this number in `shape`, and their unit; None where
            there are none.
        shape: of the stored array.
        axes: of it.
    """
    found = [read(axis) for axis in axes.spatial]
    if not any(found):
        return Grid()
    steps: list[float] = []
    for name, axis, one in zip("zyx", axes.spatial, found, strict=True):
        problem = _coordinate_problem(one, shape[axis])
        if problem or one is None:
            return Grid(notes=(_unknown(f"coordinates along {name}: {problem}"),))
        # 12 digits: (0.3 - 0.1) / 2 is no 0.1
        steps.append(float(f"{(one[0][-1] - one[0][0]) / (shape[axis] - 1):.12g}"))
    shift, units = zip(*((one[0][0], one[1]) for one in found if one), strict=True)
    return AxisLengths("coordinates", steps, shift, units, ("z", "y", "x")).grid(axes)


def _coordinate_problem(one: Coordinates | None, length: int) -> str:
    """Why coordinates give no voxel size; "" where they do."""
    if one is None:
        return "there are none"
    values, _ = one
    if len(values) != length:
        return f"{len(values)} for {length} voxels"
    if length < 2:
        return "one alone has no step"
    if not all(map(math.isfinite, values)):
        return "not all are finite"
    step = (values[-1] - values[0]) / (length - 1)
    if step <= 0:
        return "they do not increase"
    # float32 coordinates far from 0 are rounded more than they differ
    slack = 1e-3 * step + 1e-6 * max(abs(values[0]), abs(values[-1]))
    if any(abs(b - a - step) > slack for a, b in pairwise(values)):
        return "their steps differ"
    return ""


def unit_name(value: object) -> str | None:
    """A unit by the name that OME-Zarr has for it; others as they are, None for no text."""
    if not isinstance(value, str) or value.strip().lower() in _NO_UNITS:
        return None
    text = " ".join(value.split())[:LONGEST_NAME]
    if text in _SHORT:
        return _SHORT[text]
    name = text.lower().replace("metre", "meter")
    name = name[:-1] if name[:-1] in {*_METERS, *_SHORT} else name
    return _SHORT.get(name, name) if name in _METERS or name in _SHORT else text


def numbers(value: object) -> tuple[float, ...] | None:
    """A list of finite numbers; None for anything else."""
    if not isinstance(value, list | tuple):
        return None
    listed = cast("Sequence[Any]", value)
    if all(is_number(v) for v in listed):
        return tuple(float(v) for v in listed)
    return None


def is_number(value: object) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST


def _along(value: object, axes: AxisMap, order: Names | None) -> Spacing | None:
    """The (z, y, x) of what is given for each axis by name, for each in order, or once for all."""
    if isinstance(value, int | float) and is_number(value):
        return float(value), float(value), float(value)
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, Any]", value)
        by_name = {axis_name(name): size for name, size in fields.items()}
        return _along([by_name.get(name) for name in "zyx"], axes, ("z", "y", "x"))
    found = numbers(value)
    return None if found is None else _picked(found, axes, order)


def _picked(values: Sequence[Any], axes: AxisMap, order: Names | None) -> Any:  # noqa: ANN401
    """The three of some values, one for each (spatial) axis, that are along (z, y, x)."""
    if order is not None and len(order) == len(values) and {"z", "y", "x"} <= {*order}:
        return triple(values[order.index(name)] for name in "zyx")
    if len(values) == len(axes.names):
        return axes.of(values)
    if len(values) == 3:
        stored = sorted(axes.spatial)
        return triple(values[stored.index(axis)] for axis in axes.spatial)
    return None


def _units(
    value: object, axes: AxisMap, order: Names | None
) -> tuple[str | None, str | None, str | None]:
    if isinstance(value, list | tuple):
        listed = cast("Sequence[Any]", value)
        picked = _picked(listed, axes, order)
        return triple(map(unit_name, picked)) if picked else (None, None, None)
    unit = unit_name(value)
    return unit, unit, unit


def _converted(
    units: Sequence[str | None], lengths: Sequence[Spacing]
) -> tuple[Spacing, ...] | None:
    """Lengths whose axes have different units, in micrometers."""
    if not all(unit in _METERS for unit in units):
        return None
    factors = [_METERS[unit or ""] / _METERS["micrometer"] for unit in units]
    return tuple(
        triple(float(f"{n * f:.12g}") for n, f in zip(each, factors, strict=True))
        for each in lengths
    )


def _count(axes: AxisMap) -> str:
    return "3" if len(axes.names) == 3 else f"3 or {len(axes.names)}"


def shown(value: object) -> str:
    """A stored value in one short line."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unknown(found: str) -> str:
    return f'{found}; the voxel size is unknown: give "spacing"'
