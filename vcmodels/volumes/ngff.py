"""What stores say about their axes and voxel size: OME-Zarr and the Janelia attributes.

OME-Zarr (NGFF) 0.4 keeps `multiscales` in `.zattrs`, 0.5 under `attributes.ome`
(https://ngff.openmicroscopy.org/0.4 and /0.5). Janelia and funlib stores keep `resolution`,
`voxel_size` or `transform` on the array or on a group above it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from vcmodels.errors import VolumeError
from vcmodels.volumes.axes import Names, axis_name
from vcmodels.volumes.location import join, parent
from vcmodels.volumes.nodes import Node, read_node
from vcmodels.volumes.spacing import AxisLengths, numbers, shown

_GROUPS_ABOVE = 3
_CLASSIC: Names = ("t", "c", "z", "y", "x")
"""The axes of every image of OME-Zarr 0.1 and 0.2, which do not name them."""
_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


@dataclass(frozen=True)
class Told:
    """What a store says about the axes and the voxels of one array, as it is there."""

    names: tuple[tuple[str, Names], ...] = ()
    """Names of its axes, after the place where they are."""
    lengths: tuple[AxisLengths, ...] = ()
    """Voxel sizes, those of OME-Zarr first."""
    channels: int | None = None
    """How many channels `omero` lists."""

    def axes(self, shape: tuple[int, ...], key: str) -> Names | None:
        """The names of the axes; None where nothing names them.

        Raises:
            VolumeError: they are named in two ways, or more or fewer than there are.
        """
        found: tuple[str, Names] | None = None
        for place, names in self.names:
            if names == _CLASSIC and place == _OLD_PLACE and len(shape) != len(names):
                continue
            if not any(names):
                continue
            said = f"{place} names the axes ({', '.join(name or '?' for name in names)})"
            if len(names) != len(shape):
                raise VolumeError(key, f"{said} of an array of shape {shape}", _REMEDY)
            merged = names if found is None else _merged(found[1], names)
            if found is not None and merged is None:
                raise VolumeError(key, f"{said}, {found[0]} ({', '.join(found[1])})", _REMEDY)
            found = (found[0] if found else place, merged or names)
        return found and found[1]


_REMEDY = 'say what they are, as in "axes": "zyx"'
_OLD_PLACE = "multiscales without axes"


def _merged(one: Names, other: Names) -> Names | None:
    """Names of two places; None where they differ."""
    pairs = list(zip(one, other, strict=True))
    return None if any(a and b and a != b for a, b in pairs) else tuple(a or b for a, b in pairs)


@dataclass(frozen=True)
class Multiscale:
    """One NGFF multiscale image: its axes, and the path, scale and translation of its levels."""

    place: str
    axes: Names
    levels: tuple[tuple[str, AxisLengths], ...]

    def told(self, level: int, channels: int | None) -> Told:
        """What it says of a level."""
        return Told(((self.place, self.axes),), (self.levels[level][1],), channels)


def read_multiscale(attributes: Mapping[str, Any]) -> Multiscale | None:
    """The first multiscale image of a group's attributes; None when it has none.

    Reads versions 0.1 to 0.5, and of 0.6 what looks the same.
    """
    entries = _ome(attributes).get("multiscales")
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict):
        return None
    entry = cast("dict[str, Any]", entries[0])
    axes, units = _axes(entry)
    levels: list[tuple[str, AxisLengths]] = []
    for dataset in _dicts(entry.get("datasets")):
        path = dataset.get("path")
        if isinstance(path, str):
            steps = [*_steps(dataset), *_steps(entry)]
            levels.append((path, _lengths(steps, units)))
    if not levels:
        return None
    is_old = not axes and str(entry.get("version", "0.1")) in ("0.1", "0.2")
    return Multiscale(
        _OLD_PLACE if is_old else "multiscales", _CLASSIC if is_old else axes, tuple(levels)
    )


def read_channel_labels(attributes: Mapping[str, Any]) -> list[str]:
    """The labels of the channels in a group's `omero`; [] when it has none."""
    labels = [channel.get("label") for channel in _omero_channels(attributes)]
    return [label for label in labels if isinstance(label, str)]


def level_location(group: Node, level: int, key: str) -> tuple[str, Told]:
    """The array of a level of a multiscale group, and what the group says of it.

    Raises:
        VolumeError: the group has no such level.
    """
    image = read_multiscale(group.attributes)
    assert image is not None, "the caller looks first"
    if not 0 <= level < len(image.levels):
        paths = ", ".join(path for path, _ in image.levels)
        found = f"{group.location} has {len(image.levels)} levels ({paths}), not level {level}"
        raise VolumeError(key, found, f"choose a level from 0 to {len(image.levels) - 1}")
    place = join(group.location, image.levels[level][0])
    return place, image.told(level, len(_omero_channels(group.attributes)) or None)


def find_told(array: Node, key: str) -> Told:
    """What an array reached by its own path, and the groups above it, say of it."""
    level, outer = Told(), array
    for place, node in _node_and_groups_above(array, key):
        if not level.names:
            level = _matching_level(node, place)
        if not _attributes(outer):
            outer = node
    return with_own(level, array, outer)


def with_own(level: Told, array: Node, outer: Node | None = None) -> Told:
    """What a group says of a level, and then what the array itself does.

    Args:
        level: what the group says.
        array: the array.
        outer: where its voxel size is; the array when None.
    """
    rank, outer = len(_list(array.document.get("shape"))), outer or array
    names = (*level.names, *_own_names(array), *_transform_names(outer, rank))
    return Told(names, (*level.lengths, *_attributes(outer)), level.channels)


def _node_and_groups_above(array: Node, key: str) -> Iterator[tuple[str, Node]]:
    """(path of the array relative to the node, node), from the array upwards."""
    yield "", array
    location = parent(array.location)
    for _ in range(_GROUPS_ABOVE):
        if location is None:
            return
        node = read_node(location, key)
        if node is not None and node.kind == "group":  # version 3 need not store groups between
            yield array.location[len(location) + 1 :], node
        location = parent(location)


def _matching_level(group: Node, path: str) -> Told:
    image = read_multiscale(group.attributes) if path else None
    for number, (name, _) in enumerate(image.levels if image else ()):
        if image and name.strip("/") == path:
            return image.told(number, len(_omero_channels(group.attributes)) or None)
    return Told()


def _attributes(node: Node) -> list[AxisLengths]:
    """Voxel sizes outside of OME-Zarr, those that are sure of their order first.

    `transform` (COSEM), `resolution` (Janelia) and `voxel_size` (funlib) are in the order of the
    array, `pixelResolution` (N5) is x, y, z; of `spacing` nobody knows.
    """
    given, found = node.attributes, list[AxisLengths]()
    unit = next((given[k] for k in ("units", "unit", "voxel_unit") if given.get(k)), None)
    if isinstance(transform := given.get("transform"), dict):
        fields = cast("dict[str, Any]", transform)
        said = (fields.get(name) for name in ("scale", "translate", "units"))
        sizes, shift, units = map(_reversed, said) if fields.get("order") == "F" else said
        found.append(AxisLengths("transform", sizes, shift, units))
    for name in ("resolution", "voxel_size"):
        if name in given:
            found.append(AxisLengths(name, given[name], given.get("offset"), unit))
    if (pixel := given.get("pixelResolution")) is not None:
        fields = cast("dict[str, Any]", pixel) if isinstance(pixel, dict) else {"dimensions": pixel}
        sizes, own = fields.get("dimensions"), fields.get("unit")
        found.append(AxisLengths("pixelResolution", sizes, None, own or unit, ("x", "y", "z")))
    if (sizes := given.get("spacing")) is not None:
        is_even = len({*map(str, _list(sizes))}) < 2
        problem = "" if is_even else f"{shown(sizes)} may be z, y, x or x, y, z"
        found.append(AxisLengths("attribute spacing", sizes, None, unit, problem=problem))
    return found


def _own_names(array: Node) -> Iterator[tuple[str, Names]]:
    """Axis names of the array itself, after their place.

    `dimension_names` (version 3), `_ARRAY_DIMENSIONS` (xarray), `axis_names` (funlib) and `axes`,
    which N5 reverses.
    """
    given = array.attributes
    yield from _listed("dimension_names", array.document.get("dimension_names"))
    yield from _listed("_ARRAY_DIMENSIONS", given.get("_ARRAY_DIMENSIONS"))
    for place in ("axis_names", "axes"):
        for _, names in _listed(place, given.get(place)):
            is_unsure = place == "axes" and [n for n in names if n in ("z", "y", "x")] != [*"zyx"]
            yield place, tuple(f"{name}?" for name in names) if is_unsure else names


def _transform_names(node: Node, rank: int) -> Iterator[tuple[str, Names]]:
    """Axis names of a COSEM `transform`, which has the order of the array unless it says F."""
    if isinstance(transform := node.attributes.get("transform"), dict):
        fields = cast("dict[str, Any]", transform)
        for place, names in _listed("transform", fields.get("axes")):
            if len(names) == rank:  # else those of the space alone
                yield place, names[::-1] if fields.get("order") == "F" else names


def _listed(place: str, value: object) -> Iterator[tuple[str, Names]]:
    if names := _list(value):
        yield place, tuple(map(axis_name, names))


def _axes(entry: Mapping[str, Any]) -> tuple[Names, tuple[object, ...]]:
    """Axis names and units; 0.3 has bare names, 0.6 coordinate systems."""
    listed = _list(entry.get("axes"))
    systems = _dicts(entry.get("coordinateSystems"))
    if not listed and systems:
        listed = _list(systems[0].get("axes"))
    fields = [cast("dict[str, Any]", a) if isinstance(a, dict) else {"name": a} for a in listed]
    return tuple(map(_typed_name, fields)), tuple(axis.get("unit") for axis in fields)


def _typed_name(axis: Mapping[str, Any]) -> str:
    """The name of an axis object, or of its type; both if they contradict each other."""
    name, kind = axis_name(axis.get("name")), axis.get("type")
    if name in _TYPES:
        is_clear = kind in (None, _TYPES[name]) or kind not in _TYPES.values()
        return name if is_clear else f"{name} ({kind})"
    return {"channel": "c", "time": "t"}.get(str(kind), name)


def _steps(holder: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Coordinate transformations, those of a sequence one by one."""
    found: list[dict[str, Any]] = []
    for step in _dicts(holder.get("coordinateTransformations")):
        inner = _dicts(step.get("transformations")) if step.get("type") == "sequence" else [step]
        found += inner
    return found


def _lengths(steps: Sequence[Mapping[str, Any]], units: tuple[object, ...]) -> AxisLengths:
    """One scale and one translation that do what the transformations do in turn."""
    scale: tuple[float, ...] | None = None
    shift: tuple[float, ...] | None = None
    said = list(units) if any(units) else None
    for step in steps:
        kind = step.get("type") or next((k for k in ("scale", "translation") if k in step), None)
        if kind == "identity":
            continue
        values = numbers(step.get(str(kind)))
        before = scale or shift
        if kind not in ("scale", "translation") or values is None:
            what = shown(f"{kind} {step.get(str(kind), step.get('path', ''))}")
            return AxisLengths("multiscales", None, None, said, problem=f"{what} is not understood")
        if before is not None and len(before) != len(values):
            problem = f"transformations of {len(before)} and of {len(values)} axes"
            return AxisLengths("multiscales", None, None, said, problem=problem)
        if kind == "scale":
            scale = _pairwise(scale, values, product=True)
            shift = _pairwise(shift, values, product=True) if shift else None
        else:
            shift = _pairwise(shift, values, product=False)
    return AxisLengths("multiscales", scale, shift, said)


def _pairwise(
    first: tuple[float, ...] | None, second: tuple[float, ...], *, product: bool
) -> tuple[float, ...]:
    if first is None:
        return second
    pairs = zip(first, second, strict=True)
    return tuple(a * b if product else a + b for a, b in pairs)


def _ome(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """What version 0.5 keeps under `ome`, and 0.4 among the attributes."""
    ome = attributes.get("ome")
    return cast("dict[str, Any]", ome) if isinstance(ome, dict) else attributes


def _omero_channels(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    omero = _ome(attributes).get("omero")
    return _dicts(cast("dict[str, Any]", omero).get("channels")) if isinstance(omero, dict) else []


def _reversed(value: object) -> object:
    return _list(value)[::-1] or value


def _list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _dicts(value: object) -> list[dict[str, Any]]:
    return [cast("dict[str, Any]", v) for v in _list(value) if isinstance(v, dict)]
