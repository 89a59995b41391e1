"""How the keys of a volume entry, or of `inference_params`, say that arrays are read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from vcmodels.config.messages import Fault, KeyPath, listed
from vcmodels.config.values import AxisIndex, ChannelChoice, StoredAxes, VoxelSize
from vcmodels.errors import TaskError, VolumeError
from vcmodels.formats.imported import open_located
from vcmodels.reporting import Reporter
from vcmodels.volumes import ChannelAxis, Reading, Volume, expand_location, expand_pattern
from vcmodels.volumes.axes import Channels

INPUT, MASK = "input", "mask"
"""What the arrays that are no labels are called in `axes` and `index`."""


class ArrayKeys(Protocol):
    """The keys."""

    @property
    def level(self) -> int: ...
    @property
    def channel_axis(self) -> ChannelAxis | None: ...
    @property
    def axes(self) -> StoredAxes | None: ...
    @property
    def channels(self) -> ChannelChoice | None: ...
    @property
    def index(self) -> AxisIndex: ...
    @property
    def spacing(self) -> VoxelSize | None: ...


def open_array(
    location: str,
    keys: ArrayKeys,
    name: str,
    channels: Channels,
    *,
    key: str,
    number: int = 0,
    reporter: Reporter | None = None,
) -> Volume:
    """Open an array as the keys say; only metadata is read, but of a file that is not imported yet.

    Args:
        location: expanded.
        keys: of its volume.
        name: of the label, or `input` or `mask`.
        channels: as for `open_volume`.
        key: the dotted task key, for messages.
        number: of the input, where there are several.
        reporter: told when a file is imported.

    Raises:
        VolumeError, OutputError: as from `open_located`.
    """
    return open_located(
        location,
        key=key,
        level=keys.level,
        channels=channels,
        channel_axis=keys.channel_axis,
        reading=_reading(keys, name, number),
        reporter=reporter,
    )


def expand_together(
    inputs: Sequence[str], others: Mapping[str, str], key: str, input_key: str = "input"
) -> Iterator[tuple[str, tuple[str, ...], dict[str, str]]]:
    """What paths stand for: one volume, or as many as the `*` that is in each of them matches.

    Args:
        inputs: the paths of the inputs, one or more.
        others: those of other arrays by name; a volume may lack some of them.
        key: of the block that they stand in, for messages.
        input_key: of the inputs in it.

    Yields:
        What the `*` stands for ("" without one), the inputs and the others by name, sorted.

    Raises:
        TaskError: a `*` is in some paths and not in others, or an input has no counterpart.
        VolumeError: nothing matches, or a path cannot be expanded.
    """
    found = [_expanded(text, f"{key}.{input_key}") for text in inputs]
    named = {name: _expanded(text, f"{key}.{name}") for name, text in others.items()}
    is_pattern = ["*" in text for text in (*inputs, *others.values())]
    if any(is_pattern) != all(is_pattern):
        raise TaskError(key, "some paths hold a '*' and some do not", "put a '*' in all or in none")
    for stem in sorted(found[0]):
        lacking = [n for n, places in enumerate(found) if stem not in places]
        if lacking:
            text = f"'*' = {stem} matches the first input, but not {inputs[lacking[0]]}"
            remedy = "remove it there or add the missing array"
            raise TaskError(f"{key}.{input_key}", text, remedy)
        yield (
            stem,
            tuple(places[stem] for places in found),
            {name: places[stem] for name, places in named.items() if stem in places},
        )


def _expanded(text: str, key: str) -> dict[str, str]:
    try:
        return dict(expand_pattern(expand_location(text)))
    except VolumeError as error:
        raise VolumeError(key, f"{error.subject}: {error.found}", error.remedy) from error


def _reading(keys: ArrayKeys, name: str, number: int) -> Reading:
    letters, is_general = keys.axes, not isinstance(keys.axes, dict)
    if isinstance(letters, dict):
        letters = letters.get(name)
    chosen = _channels(keys.channels, number) if name == INPUT else None
    index: dict[str, int] = {}
    for axis, at in keys.index.items():
        position = at.get(name) if isinstance(at, dict) else at
        if position is not None and not (name == INPUT and axis == "c"):
            index[axis] = position
    return Reading(letters, is_general, chosen, index, keys.spacing)


def _channels(given: ChannelChoice | None, number: int) -> tuple[int, ...] | None:
    """The chosen channels of an input by its number; one list is for each of them."""
    if given is None:
        return None
    lists = [each for each in given if isinstance(each, list)]
    return tuple(lists[number] if lists else [n for n in given if isinstance(n, int)])


def keys_of_input(keys: ArrayKeys, image: Volume) -> dict[str, Any]:
    """The values with which `inference_params` reads an input as a volume entry does, if any.

    Args:
        keys: of the entry.
        image: its input.
    """
    reading, axes = _reading(keys, INPUT, 0), image.axes
    fits = reading.axes is not None and len(reading.axes) == len(axes.names)
    index = {axis: at for axis, at in reading.index.items() if axes.positions(axis)}
    found = {
        "level": keys.level,
        "channel_axis": keys.channel_axis if len(axes.names) == 4 else None,
        "axes": reading.axes if fits else None,
        "channels": keys.channels,
        "index": index,
        "spacing": keys.spacing,
    }
    return {key: value for key, value in found.items() if value}


def require_used(keys: ArrayKeys, arrays: Mapping[str, Volume], key: str) -> None:
    """Refuse `axes` and `index` that fit none of the arrays that they are for.

    Args:
        keys: with which the arrays were opened.
        arrays: by name.
        key: of the volume, for messages.

    Raises:
        TaskError: naming the key.
    """
    ranks = sorted({len(array.axes.names) for array in arrays.values()})
    if isinstance(keys.axes, str) and len(keys.axes) not in ranks:
        found = f'"{keys.axes}" names {len(keys.axes)} axes, the arrays have {_or(ranks)}'
        raise TaskError(f"{key}.axes", found, "give one letter for each stored axis")
    for axis, given in keys.index.items():
        wanted = {*given.values()} if isinstance(given, dict) else {given}
        used = {at for array in arrays.values() for at in array.axes.positions(axis)}
        if not wanted & used:
            found = f"no array has an axis {axis} on which {_or(sorted(wanted))} can be read"
            others = {name for array in arrays.values() for name in array.axes.names if name}
            remedy = f"the axes are {listed(sorted(others))}: remove it, or name them with axes"
            raise TaskError(f"{key}.index.{axis}", found, remedy)


def idle_notes(keys: ArrayKeys, arrays: Iterable[Volume], key: str) -> Iterator[str]:
    """A line for `channel_axis` where no array has an axis of channels."""
    if keys.channel_axis is not None and all(array.axes.channel is None for array in arrays):
        yield f"note: {key}.channel_axis: has no effect: no array has an axis of channels"


def require_one_order(arrays: Mapping[str, Volume]) -> None:
    """Refuse an array without names of its axes next to one that has z, y, x in another order.

    Args:
        arrays: by name; inputs may have a number behind it.

    Raises:
        VolumeError: naming the array.
    """
    turned = [name for name, array in arrays.items() if array.axes.is_transposed]
    for name, array in arrays.items():
        if turned and not array.axes.is_named:
            names = ", ".join(arrays[turned[0]].axes.names)
            found = f"{array.shown} does not name its axes, those of {turned[0]} are ({names})"
            remedy = f'say what they are: "axes": {{"{name.split()[0]}": "{array.axes.letters}"}}'
            raise VolumeError(array.key, found, remedy)


def key_faults(
    keys: ArrayKeys, path: KeyPath, inputs: int, others: Mapping[str, object]
) -> Iterator[Fault]:
    """Faults of keys that contradict each other, or name no array.

    Args:
        keys: of one volume.
        path: of the volume.
        inputs: how many it has.
        others: its labels, or its mask, by name.
    """
    if keys.axes is not None and keys.channel_axis is not None:
        found = "is given, and axes says where the channels are"
        yield Fault((*path, "channel_axis"), found, "remove one of them")
    named = {("axes",): keys.axes} | {("index", axis): at for axis, at in keys.index.items()}
    for inner, given in named.items():
        known = [*others] if inner == ("index", "c") else [INPUT, *others]
        for name in given if isinstance(given, dict) else ():
            if name not in known:
                found = f'"{name}" is no array of this volume'
                yield Fault((*path, *inner), found, f"name {listed(known) or 'none'}")
    if "c" in keys.index and not others:
        remedy = 'those of the input are chosen with "channels"'
        yield Fault((*path, "index", "c"), "there is no label or mask to choose one of", remedy)
    lists = [each for each in keys.channels or () if isinstance(each, list)]
    if lists and len(lists) != inputs:
        found = f"has {len(lists)} lists, there are {inputs} inputs"
        yield Fault((*path, "channels"), found, "give a list for each, or one for all")


def _or(values: list[int]) -> str:
    return " or ".join(map(str, values))
