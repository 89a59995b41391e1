"""What stores say about their axes and voxel size: OME-Zarr and the Janelia attributes.

OME-Zarr (NGFF) 0.4 keeps `multiscales` in `.zattrs`, 0.5 under `attributes.ome`
(https://ngff.openmicroscopy.org/0.4 and /0.5). Janelia and funlib stores keep `resolution`,
`voxel_size` or `transform` on the array or on a group above it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from vcmodels.errors import VolumeError
from vcmodels.geometry.boxes import Spacing
from vcmodels.volumes.location import join, parent
from vcmodels.volumes.nodes import Node, read_node

_UNITS = {
    "nm": "nanometer", "um": "micrometer", "µm": "micrometer", "μm": "micrometer",
    "mm": "millimeter", "cm": "centimeter", "m": "meter", "micron": "micrometer",
    "microns": "micrometer", "nanometers": "nanometer", "micrometers": "micrometer",
    "millimeters": "millimeter",
}  # fmt: skip
_GROUPS_ABOVE = 3


@dataclass(frozen=True)
class Grid:
    """Voxel size and position of an array, in (z, y, x), and the names of its axes if stored."""

    spacing: Spacing = (1.0, 1.0, 1.0)
    offset: Spacing = (0.0, 0.0, 0.0)
    unit: str | None = None
    axes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Multiscale:
    """One NGFF multiscale image: its axes, and the path, scale and translation of its levels."""

    axes: tuple[str, ...]
    unit: str | None
    levels: tuple[tuple[str, tuple[float, ...] | None, tuple[float, ...] | None], ...]

    def grid(self, level: int) -> Grid:
        """The grid of a level."""
        _, scale, translation = self.levels[level]
        spacing = _spatial(scale, self.axes, positive=True) or (1.0, 1.0, 1.0)
        offset = _spatial(translation, self.axes) or (0.0, 0.0, 0.0)
        return Grid(spacing, offset, self.unit, self.axes or None)


def read_multiscale(attributes: Mapping[str, Any]) -> Multiscale | None:
    """The first multiscale image of a group's attributes; None when it has none.

    Reads versions 0.1 to 0.5, and of 0.6 what looks the same.
    """
    ome = attributes.get("ome")
    holder = cast("dict[str, Any]", ome) if isinstance(ome, dict) else attributes
    entries = holder.get("multiscales")
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict):
        return None
    entry = cast("dict[str, Any]", entries[0])
    axes, unit = _axes(entry)
    levels: list[tuple[str, tuple[float, ...] | None, tuple[float, ...] | None]] = []
    for dataset in _dicts(entry.get("datasets")):
        path = dataset.get("path")
        if isinstance(path, str):
            steps = _dicts(dataset.get("coordinateTransformations"))
            steps += _dicts(entry.get("coordinateTransformations"))
            levels.append((path, *_combine(steps)))
    return Multiscale(axes, unit, tuple(levels)) if levels else None


def read_channel_labels(attributes: Mapping[str, Any]) -> list[str]:
    """The labels of the channels in a group's `omero`; [] when it has none."""
    ome = attributes.get("ome")
    holder = cast("dict[str, Any]", ome) if isinstance(ome, dict) else attributes
    omero = holder.get("omero")
    channels = (
        _dicts(cast("dict[str, Any]", omero).get("channels")) if isinstance(omero, dict) else []
    )
    labels = [channel.get("label") for channel in channels]
    return [label for label in labels if isinstance(label, str)]


def level_location(group: Node, level: int, key: str) -> tuple[str, Grid]:
    """The array of a level of a multiscale group, and its grid.

    Raises:
        VolumeError: the group has no such level.
    """
    image = read_multiscale(group.attributes)
    assert image is not None, "the caller looks first"
    if not 0 <= level < len(image.levels):
        paths = ", ".join(path for path, _, _ in image.levels)
        found = f"{group.location} has {len(image.levels)} levels ({paths}), not level {level}"
        raise VolumeError(key, found, f"choose a level from 0 to {len(image.levels) - 1}")
    return join(group.location, image.levels[level][0]), image.grid(level)


def find_grid(array: Node, key: str) -> Grid:
    """The grid of an array reached by its own path: its attributes, then those of groups above."""
    names = _dimension_names(array)
    for place, node in _node_and_groups_above(array, key):
        grid = _matching_level(node, place) or _janelia_grid(node.attributes)
        if grid:
            return Grid(grid.spacing, grid.offset, grid.unit, names or grid.axes)
    return Grid(axes=names)


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


def _matching_level(group: Node, path: str) -> Grid | None:
    image = read_multiscale(group.attributes) if path else None
    for number, (name, _, _) in enumerate(image.levels if image else ()):
        if image and name.strip("/") == path:
            return image.grid(number)
    return None


def _janelia_grid(attributes: Mapping[str, Any]) -> Grid | None:
    """`transform` (COSEM), `resolution` and `offset` (Janelia), `voxel_size` (funlib); all zyx."""
    transform = attributes.get("transform")
    if isinstance(transform, dict):
        fields = cast("dict[str, Any]", transform)
        axes = tuple(str(a).lower() for a in _list(fields.get("axes")))
        spacing = _spatial(_numbers(fields.get("scale")), axes, positive=True)
        if spacing:
            offset = _spatial(_numbers(fields.get("translate")), axes) or (0.0, 0.0, 0.0)
            return Grid(spacing, offset, _unit(fields.get("units")))
    for name in ("resolution", "voxel_size"):
        spacing = _spatial(_numbers(attributes.get(name)), (), positive=True)
        if spacing:
            offset = _spatial(_numbers(attributes.get("offset")), ()) or (0.0, 0.0, 0.0)
            keys = ("units", "unit", "voxel_unit")
            unit = next((u for u in (_unit(attributes.get(k)) for k in keys) if u), None)
            return Grid(spacing, offset, unit)
    return None


def _dimension_names(array: Node) -> tuple[str, ...] | None:
    """Axis names of the array itself: `dimension_names` (v3), `_ARRAY_DIMENSIONS` (xarray)."""
    names = array.document.get("dimension_names") or array.attributes.get("_ARRAY_DIMENSIONS")
    listed = _list(names)
    if not listed or not all(isinstance(n, str) for n in listed):
        return None
    return tuple(str(n).lower() for n in listed)


def _axes(entry: Mapping[str, Any]) -> tuple[tuple[str, ...], str | None]:
    """Axis names and the unit of the spatial ones; 0.3 has bare names, 0.6 coordinate systems."""
    listed = _list(entry.get("axes"))
    systems = _dicts(entry.get("coordinateSystems"))
    if not listed and systems:
        listed = _list(systems[0].get("axes"))
    names: list[str] = []
    unit = None
    for axis in listed:
        fields: dict[str, Any] = (
            cast("dict[str, Any]", axis) if isinstance(axis, dict) else {"name": axis}
        )
        name = str(fields.get("name", "")).lower()
        names.append("c" if fields.get("type") == "channel" else name)
        if names[-1] in ("z", "y", "x"):
            unit = _unit(fields.get("unit")) or unit
    return tuple(names), unit


def _combine(
    steps: Sequence[Mapping[str, Any]],
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """One scale and one translation that do what the transformations do in turn."""
    scale: tuple[float, ...] | None = None
    shift: tuple[float, ...] | None = None
    for step in steps:
        if factor := _numbers(step.get("scale")):
            scale = _pairwise(scale, factor, product=True)
            shift = _pairwise(shift, factor, product=True) if shift else None
        if extra := _numbers(step.get("translation")):
            shift = _pairwise(shift, extra, product=False)
    return scale, shift


def _pairwise(
    first: tuple[float, ...] | None, second: tuple[float, ...], *, product: bool
) -> tuple[float, ...]:
    if first is None or len(first) != len(second):
        return second
    pairs = zip(first, second, strict=True)
    return tuple(a * b if product else a + b for a, b in pairs)


def _spatial(
    values: tuple[float, ...] | None, axes: tuple[str, ...], *, positive: bool = False
) -> Spacing | None:
    """The (z, y, x) entries of a list of numbers, one for each axis; the last three if unnamed."""
    if values is None or (positive and min(values, default=0) <= 0):
        return None
    if len(axes) == len(values) and {"z", "y", "x"} <= set(axes):
        z, y, x = (values[axes.index(name)] for name in "zyx")
        return z, y, x
    return (values[-3], values[-2], values[-1]) if len(values) >= 3 else None


def _numbers(value: object) -> tuple[float, ...] | None:
    listed = _list(value)
    good = [float(v) for v in listed if isinstance(v, int | float) and math.isfinite(v)]
    return tuple(good) if good and len(good) == len(listed) else None


def _unit(value: object) -> str | None:
    listed = _list(value)
    text = listed[-1] if listed else value
    return _UNITS.get(text, text) if isinstance(text, str) and text else None


def _list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _dicts(value: object) -> list[dict[str, Any]]:
    return [cast("dict[str, Any]", v) for v in _list(value) if isinstance(v, dict)]
