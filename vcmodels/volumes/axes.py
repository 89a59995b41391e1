"""What the axes of a stored array are, and how what is read becomes (C, Z, Y, X). Never guessed."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np

from vcmodels.errors import VolumeError
from vcmodels.geometry.boxes import Box, Shape, Spacing, triple

AxisValue = TypeVar("AxisValue")
ChannelAxis = Literal["first", "last"]
Channels = int | Literal["any"] | None
Names = tuple[str, ...]
"""Of stored axes, as `axis_name` gives them; "" for one without."""

_SAME = {
    "z": ("depth", "plane"), "y": ("height", "row"), "x": ("width", "col", "column"),
    "t": ("time",), "c": ("ch", "channel", "channels"),
}  # fmt: skip
_SAME_AS = {word: letter for letter, words in _SAME.items() for word in words}
_NO_NAME = re.compile(r"(dim_|d)\d+")
LONGEST_NAME = 32
MOST_LIKELY_CHANNELS = 4
"""An unnamed axis this short at the end of an array may hold colours."""


def axis_name(stored: object) -> str:
    """What an axis is called here: z, y, x, c, t, or its own name in small letters; "" if it has none.

    xarray calls axes without a name `dim_0`, funlib `d0`, and puts a ^ behind those that are not
    spatial.
    """
    name = " ".join(stored.split())[:LONGEST_NAME].lower() if isinstance(stored, str) else ""
    name = name.rstrip("^")
    return "" if _NO_NAME.fullmatch(name) else _SAME_AS.get(name, name)


@dataclass(frozen=True)
class Reading:
    """What a task says of how an array is read, which goes before what the store says."""

    axes: str | None = None
    """A letter for each stored axis, such as `tczyx`."""
    is_general: bool = True
    """Whether `axes` is for every array that has as many axes, and not for this one by name."""
    channels: tuple[int, ...] | None = None
    """Those that are read, in this order; all when None."""
    index: Mapping[str, int] = field(default_factory=dict[str, int])
    """What is read of axes that are neither spatial nor of the channels."""
    spacing: Spacing | None = None
    """Voxel size along (z, y, x)."""

    def names(self, shape: tuple[int, ...], key: str) -> Names | None:
        """The names that the task gives the axes; None if it gives this array none.

        Raises:
            VolumeError: it names another number of axes.
        """
        if self.axes is None or (self.is_general and len(self.axes) != len(shape)):
            return None
        if len(self.axes) != len(shape):
            found = f'"axes" names {len(self.axes)} axes ("{self.axes}"), the shape is {shape}'
            raise VolumeError(key, found, "give one letter for each axis")
        return tuple(self.axes)


AS_STORED = Reading()


@dataclass(frozen=True)
class AxisMap:
    """Which stored axes are z, y, x and the channels, and what is read of all others."""

    names: Names
    spatial: Shape
    """The numbers of the axes z, y and x."""
    channel: int | None = None
    """That of the channels; None for an array with one."""
    chosen: tuple[int, ...] | None = None
    """The channels that are read, in this order; all when None."""
    fixed: tuple[tuple[int, int], ...] = ()
    """The other axes, with the position that is read."""
    is_named: bool = True
    """Whether the store or the task says which axes are which."""
    is_one_channel: bool = False
    """Whether one of several channels is read as an array without channels."""

    @property
    def is_transposed(self) -> bool:
        """Whether the stored order of the spatial axes is not z, y, x."""
        return tuple(sorted(self.spatial)) != self.spatial

    @property
    def choice(self) -> str:
        """What sets the voxels apart from those of the same array read in another way; "" as usual."""
        said = [
            f"{self.names[axis] or axis} {at}"
            for axis, at in self.fixed
            if at or (self.is_one_channel and self.names[axis] == "c")
        ]
        if self.chosen is not None:
            said.append(f"channels {' '.join(map(str, self.chosen))}")
        if self.is_transposed:
            said.append(f"axes {' '.join(self.names)}")
        return ", ".join(said)

    @property
    def letters(self) -> str:
        """What a task calls these axes."""
        return _suggested(self.names)

    def positions(self, name: str) -> set[int]:
        """What is read of the axes of a name, of those that are neither spatial nor of channels."""
        return {at for axis, at in self.fixed if self.names[axis] == name}

    def of(self, values: Sequence[AxisValue]) -> tuple[AxisValue, AxisValue, AxisValue]:
        """The three of one value for each stored axis that are along z, y and x."""
        return triple(values[axis] for axis in self.spatial)

    def count(self, shape: Sequence[int]) -> int:
        """How many channels are read of an array of this shape."""
        if self.channel is None:
            return 1
        return shape[self.channel] if self.chosen is None else len(self.chosen)

    def units(
        self, spans: Sequence[range], shape: Sequence[int], unit: Sequence[int]
    ) -> list[range]:
        """The storage units that are read, along each stored axis, of those in spans along z, y, x.

        Channels that are not read may lie between those that are.
        """
        found = [range(1)] * len(self.names)
        for axis, span in zip(self.spatial, spans, strict=True):
            found[axis] = span
        for axis, at in self.fixed:
            found[axis] = range(at // unit[axis], at // unit[axis] + 1)
        if self.channel is not None:
            read = self.chosen or range(shape[self.channel])
            length = unit[self.channel]
            found[self.channel] = range(min(read) // length, max(read) // length + 1)
        return found

    def place(self, unit: Sequence[int]) -> Callable[[tuple[int, ...]], Shape | None]:
        """The (z, y, x) of a storage unit by its index; None for one of which nothing is read."""
        wanted = [(axis, {at // unit[axis]}) for axis, at in self.fixed]
        if self.channel is not None and self.chosen is not None:
            wanted.append((self.channel, {n // unit[self.channel] for n in self.chosen}))

        def place(index: tuple[int, ...]) -> Shape | None:
            is_read = all(index[axis] in units for axis, units in wanted)
            return self.of(index) if is_read else None

        return place

    def slices(
        self, box: Box, shape: Sequence[int], chunk: Sequence[int]
    ) -> Iterator[tuple[slice, ...]]:
        """What to read of the stored array for a box, with no chunk of which no channel is wanted."""
        where = [slice(0, 1)] * len(self.names)
        for axis, part in zip(self.spatial, box.slices(), strict=True):
            where[axis] = part
        for axis, at in self.fixed:
            where[axis] = slice(at, at + 1)
        if self.channel is None:
            yield tuple(where)
            return
        for run in self._runs(shape[self.channel], chunk[self.channel]):
            where[self.channel] = run
            yield tuple(where)

    def arrange(
        self, blocks: Sequence[np.ndarray[Any, Any]], runs: Sequence[tuple[slice, ...]]
    ) -> np.ndarray[Any, Any]:
        """What was read of `slices`, as (C, Z, Y, X)."""
        first = self.spatial if self.channel is None else (self.channel, *self.spatial)
        order = (*first, *(axis for axis, _ in self.fixed))
        parts = [block.transpose(order) for block in blocks]
        parts = [part.reshape((-1, *part.shape[len(first) - 3 :][:3])) for part in parts]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self.channel is None or self.chosen is None:
            return values
        read = [n for run in runs for n in range(run[self.channel].start, run[self.channel].stop)]
        return values[[read.index(n) for n in self.chosen]]

    def _runs(self, count: int, chunk: int) -> Iterator[slice]:
        """The channels to read: from the first to the last wanted one of neighbouring chunks."""
        if self.chosen is None:
            yield slice(0, count)
            return
        ordered = sorted(self.chosen)
        start = last = ordered[0]
        for n in ordered[1:]:
            if n // chunk > last // chunk + 1:
                yield slice(start, last + 1)
                start = n
            last = n
        yield slice(start, last + 1)


def find_axes(
    shape: tuple[int, ...],
    stored: Names | None,
    channels: Channels,
    reading: Reading = AS_STORED,
    declared: ChannelAxis | None = None,
    *,
    key: str,
) -> AxisMap:
    """Which axes of an array are which, and what of them is read.

    Args:
        shape: of the stored array.
        stored: the names of its axes in the store, if they are there.
        channels: how many are wanted; None for no channel axis at all, "any" for whatever is there.
        reading: what the task says, which goes before what the store says.
        declared: where the channels of an array of 4 axes are, as the task says.
        key: the dotted task key, for messages.

    Raises:
        VolumeError: no z, y or x, the wrong number of channels, an axis of which a position must be
            chosen, or a shape that can be read in several ways.
    """
    names = reading.names(shape, key) or _declared(shape, stored, declared, key) or stored
    names = names and _completed(names, key)
    is_named = names is not None
    if names is None:
        names = _only_reading(shape, channels, key)
    channel = names.index("c") if "c" in names else None
    if channels is None or (channels == 1 and "c" in reading.index):
        channel = None
    spatial = triple(names.index(name) for name in "zyx")
    fixed = tuple(
        (axis, _position(axis, names, shape, reading.index, key))
        for axis in range(len(shape))
        if axis not in spatial and axis != channel
    )
    chosen = reading.channels
    found = AxisMap(names, spatial, channel, chosen, fixed, is_named)
    _check_channels(found, shape, channels, key)
    if channel is not None:
        return found
    is_one = "c" in names and shape[names.index("c")] > 1
    return AxisMap(names, spatial, None, None, fixed, is_named, is_one)


def _declared(
    shape: tuple[int, ...], stored: Names | None, declared: ChannelAxis | None, key: str
) -> Names | None:
    """The names that follow from `channel_axis`."""
    if declared is None or len(shape) != 4:
        return None
    spatial = [name for name in stored or () if name in ("z", "y", "x")]
    if stored and len(spatial) == 3 and spatial != ["z", "y", "x"]:
        if stored[0 if declared == "first" else 3] == "c":
            return stored
        found = f'the store names its axes ({_listed(stored)}), "channel_axis" is "{declared}"'
        raise VolumeError(key, found, f"remove it, or {_as_in('czyx')}")
    return tuple("czyx" if declared == "first" else "zyxc")


def _completed(names: Names, key: str) -> Names:
    """The names with those of unnamed axes filled in, where these can only be z, y, x in order.

    Raises:
        VolumeError: z, y or x is not among them, or a name stands twice.
    """
    missing = [name for name in "zyx" if name not in names]
    unnamed = [axis for axis, name in enumerate(names) if not name]
    if missing and len(missing) == len(unnamed):
        filled = list(names)
        for axis, name in zip(unnamed, missing, strict=True):
            filled[axis] = name
        if [name for name in filled if name in ("z", "y", "x")] == ["z", "y", "x"]:
            return tuple(filled)
    known = [name for name in names if name]
    if missing or len({*known}) != len(known):
        what = f"no {', '.join(missing)} among them" if missing else "one of them twice"
        found = f"the store names its axes ({_listed(names)}), {what}"
        raise VolumeError(key, found, _as_in(_suggested(names)))
    return names


def _suggested(names: Names) -> str:
    """Letters for axes whose names are not understood: the missing ones of z, y, x put in order."""
    letters = [name if len(name) == 1 and names.count(name) == 1 else "" for name in names]
    letters = [name if name in ("z", "y", "x", "c", "t") else "" for name in letters]
    for missing in (name for name in "zyx" if name not in letters):
        place = next(
            (n for wanted in ("", "t", "c") for n, a in enumerate(letters) if a == wanted), None
        )
        if place is not None:
            letters[place] = missing
    rest = iter([name for name in "ctabdef" if name not in letters])
    return "".join(name or next(rest) for name in letters)


def _only_reading(shape: tuple[int, ...], channels: Channels, key: str) -> Names:
    """The names of axes without any, where only one reading makes sense.

    That is (Z, Y, X); with axes of length 1 around; or with as many channels as are wanted.
    """
    if len(shape) == 3:
        return ("z", "y", "x")
    singles = _with_single_axes(shape) if len(shape) > 3 and channels in (None, 1, "any") else []
    if len(singles) == 1 and (channels != "any" or not _may_hold_colours(shape, singles[0])):
        return singles[0]
    if len(shape) == 4 and (channels is not None or len(singles) > 1):
        return _only_channels(shape, channels or 1, key)
    wanted = "3 axes (z, y, x)"
    if channels is not None:
        wanted = f"{wanted} or 4, with channels first or last"
    found = f"shape {shape} has {len(shape)} axes"
    remedy = {4: "czyx", 5: "tczyx"}.get(len(shape))
    name = f", or {_as_in(remedy)}" if remedy else ""
    if remedy and channels is None and shape[len(shape) - 4] > 1:
        name += ' and choose: "index": {"c": 0}'
    raise VolumeError(key, found, f"expected {wanted}{name}")


def _with_single_axes(shape: tuple[int, ...]) -> list[Names]:
    """The readings in which z, y, x stand together and all other axes have length 1."""
    found: list[Names] = []
    for start in range(len(shape) - 2):
        before, after = shape[:start], shape[start + 3 :]
        if all(n == 1 for n in (*before, *after)):
            names = ["", *[""] * len(before), "z", "y", "x", *[""] * len(after)][1:]
            names[start - 1 if before else 3] = "c"
            found.append(tuple(names))
    return found


def _may_hold_colours(shape: tuple[int, ...], names: Names) -> bool:
    """Whether an end that a reading takes for z or x is as short as an axis of colours."""
    ends = [n for n, name in zip(shape, names, strict=True) if name in ("z", "x")]
    is_outer = (names[0] == "z", names[-1] == "x")
    return any(o and n <= MOST_LIKELY_CHANNELS for o, n in zip(is_outer, ends, strict=True))


def _only_channels(shape: tuple[int, ...], channels: Channels, key: str) -> Names:
    """The side of a 4D array on which the number of channels fits, when it fits on one side only."""
    fits: list[Names] = []
    if channels in ("any", shape[0]):
        fits.append(("c", "z", "y", "x"))
    if channels in ("any", shape[3]):
        fits.append(("z", "y", "x", "c"))
    if len(fits) == 1:
        return fits[0]
    if not fits:
        found = f"shape {shape} has no axis of {channels} channels, neither first nor last"
        raise VolumeError(key, found, f"expected ({channels}, z, y, x) or (z, y, x, {channels})")
    found = (
        f"shape {shape} can be read as {shape[0]} channels of {shape[1:]} "
        f"or as {shape[3]} channels of {shape[:3]}"
    )
    raise VolumeError(key, found, 'say which with "channel_axis": "first" or "last"')


def _position(
    axis: int, names: Names, shape: tuple[int, ...], index: Mapping[str, int], key: str
) -> int:
    """What is read of an axis that is neither spatial nor of the channels."""
    name, length = names[axis], shape[axis]
    if length == 1:
        return 0
    at = index.get(name) if name else None
    if at is None:
        found = f"axis {name or axis} of shape {shape} has {length} positions"
        if not name:
            raise VolumeError(key, f"{found} and no name", _as_in(_suggested(names)))
        raise VolumeError(key, found, f'choose one: "index": {{"{name}": 0}}')
    if at >= length:
        found = f'"index" asks for {name} {at}, and there are {length} (shape {shape})'
        raise VolumeError(key, found, f"give one from 0 to {length - 1}")
    return at


def _check_channels(axes: AxisMap, shape: tuple[int, ...], wanted: Channels, key: str) -> None:
    """Check the number of channels, and those that are chosen."""
    stored = 1 if axes.channel is None else shape[axes.channel]
    if axes.chosen is not None and max(axes.chosen) >= stored:
        found = f'"channels" asks for {max(axes.chosen)}, and there are {stored} (shape {shape})'
        raise VolumeError(key, found, f"give numbers from 0 to {stored - 1}")
    if wanted in (None, "any", axes.count(shape)):
        return
    if axes.channel is None:
        found = f"shape {shape} has no channel axis"
        raise VolumeError(key, found, f"expected {wanted} channels: (c, z, y, x)")
    side = {0: "first", len(shape) - 1: "last"}.get(axes.channel, "c")
    found = f"shape {shape} has {axes.count(shape)} channels on its {side} axis"
    choice = ', or choose one: "index": {"c": 0}' if wanted == 1 else ""
    raise VolumeError(key, found, f"expected {wanted}{choice}")


def _as_in(letters: str) -> str:
    return f'say what they are: "axes": "{letters}"'


def _listed(names: Names) -> str:
    return ", ".join(name or "?" for name in names)
