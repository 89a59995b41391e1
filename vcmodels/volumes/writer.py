"""Writing zarr arrays: checksummed chunks, replaced one by one, with metadata viewers understand."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import Box, Shape, Spacing
from vcmodels.geometry.grid import tiles
from vcmodels.volumes import backend
from vcmodels.volumes.backend import PLAIN, ArrayHandle, Storage, ZarrFormat
from vcmodels.volumes.location import is_remote
from vcmodels.volumes.nodes import read_node
from vcmodels.volumes.places import Place, place_at, sync
from vcmodels.volumes.spacing import Grid

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


@dataclass(frozen=True)
class WritableArray:
    """An array to write boxes into; cheap to pickle, opened again in every process.

    Each chunk (or shard) is written whole, and renamed into place by zarr or put by one request, so
    that a kill leaves the old or the new one. Two writers must never touch the same chunk or shard:
    zarr reads it, changes it and writes it back without a lock.
    """

    handle: ArrayHandle
    write_empty_chunks: bool = False

    @property
    def location(self) -> str:
        """The array's folder, or URL."""
        return self.handle.location

    def write(self, box: Box, data: np.ndarray[Any, Any]) -> None:
        """Write a box.

        Args:
            box: inside the array.
            data: (S, Z, Y, X) of the array's dtype, with S = 1 when the array is (Z, Y, X).

        Raises:
            ValueError: another shape or dtype, or a box outside the array.
            OSError: the disk is full or not writable, the server does not take it; chunks written
                before stay.
        """
        array = self.handle.array()
        *channels, depth, height, width = array.shape
        if data.dtype != array.dtype:
            raise ValueError(f"{self.location} holds {array.dtype}, got {data.dtype}")
        wanted = (*(channels or [1]), *box.shape)
        if data.shape != wanted:
            raise ValueError(f"expected shape {wanted}, got {data.shape}")
        if not Box((0, 0, 0), (depth, height, width)).contains(box):
            raise ValueError(f"{box} is not inside {self.location}, shape {array.shape}")
        keeps_empty = self.write_empty_chunks or self._is_full_of_values(box, data)
        # zarr ignores this setting when it is given on opening an existing array.
        array = array.with_config({"write_empty_chunks": keeps_empty})
        if channels:
            array[(slice(None), *box.slices())] = data
        else:
            array[box.slices()] = data[0]

    def _is_full_of_values(self, box: Box, data: np.ndarray[Any, Any]) -> bool:
        """Whether it is certain that no chunk holds only the fill value.

        Zarr finds that out, too, but compares each chunk four times, with care for NaN: a quarter of
        the CPU time of a prediction without a network.
        """
        array = self.handle.array()
        if array.fill_value != 0:
            return False
        chunk = (array.chunks[-3], array.chunks[-2], array.chunks[-1])
        return all(
            data[(channel, *part.slices(box))].any()
            for part in tiles(box, chunk)
            for channel in range(len(data))
        )

    def files(self, box: Box) -> Iterator[Path]:
        """The local files of the chunks (or shards) that touch a box, whether they exist or not."""
        array = self.handle.array()
        units = array.shards or array.chunks
        spans = [range(-(-n // u)) for n, u in zip(array.shape, units, strict=True)]
        for axis, start, end in zip((-3, -2, -1), box.origin, box.end, strict=True):
            spans[axis] = range(start // units[axis], -(-end // units[axis]))
        prefix = "" if self.handle.zarr_format == 2 else "c/"
        for index in product(*spans):
            yield Path(self.location, prefix + "/".join(map(str, index)))

    def sizes(self, box: Box) -> list[int]:
        """The bytes of those local files of a box that exist."""
        return [path.stat().st_size for path in self.files(box) if path.exists()]

    def sync(self, box: Box) -> None:
        """Wait until the chunks that touch a box would survive a loss of power.

        What an object store has answered for has done so.
        """
        if is_remote(self.location):
            return
        stored = [path for path in self.files(box) if path.exists()]
        for path in (*stored, *sorted({path.parent for path in stored})):
            sync(path)


def create_array(
    root: str,
    name: str,
    *,
    shape: Sequence[int],
    chunks: Sequence[int],
    dtype: np.dtype[Any] | type | str,
    grid: Grid | None = None,
    attributes: Mapping[str, Any] | None = None,
    storage: Storage = PLAIN,
) -> WritableArray:
    """Create an array in a store; groups above it are made as needed.

    Args:
        root: the store, a local folder or a URL.
        name: path of the array in it, such as "sheet" or "sheet/0".
        shape: (Z, Y, X), or (C, Z, Y, X).
        chunks: as many numbers as `shape`.
        dtype: of the voxels; stored little-endian.
        grid: stored as `resolution`, `offset` and `units`; its axes are ("z", "y", "x") or
            ("c", "z", "y", "x") when left out.
        attributes: JSON values to store with the array.
        storage: the rest of how it is stored.

    Raises:
        ValueError: a name that is no plain path, shards in version 2, shapes that do not fit.
        OutputError: the array exists already, the root is of another zarr version, or a URL that
            cannot be written to.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"array name {name!r} must be letters, digits, '_', '-' and '.'")
    files = array_metadata(shape, chunks, dtype, grid, attributes, storage)
    location = place_at(root) / name
    if is_array(location):
        raise OutputError(str(location), "exists already", "choose another name or remove it")
    _make_groups(place_at(root), name, storage.zarr_format)
    for file, content in files.items():
        location.write(file, content)
    handle = ArrayHandle(str(location), storage.zarr_format, "r+")
    return WritableArray(handle, storage.write_empty_chunks)


def array_metadata(
    shape: Sequence[int],
    chunks: Sequence[int],
    dtype: np.dtype[Any] | type | str,
    grid: Grid | None,
    attributes: Mapping[str, Any] | None,
    storage: Storage,
) -> dict[str, bytes]:
    """The files that make an array, but for its chunks; the one that readers look for comes last.

    Args, and what is raised: as for `create_array`.
    """
    if storage.shards is not None and storage.zarr_format == 2:
        raise ValueError("shards need zarr_format=3")
    names = (grid and grid.axes) or ("c", "z", "y", "x")[-len(shape) :]
    stored = dict(attributes or {})
    if storage.zarr_format == 2:
        stored["_ARRAY_DIMENSIONS"] = list(names)
    if grid is not None:
        stored |= {"resolution": list(grid.spacing), "offset": list(grid.offset)}
        stored |= {"units": grid.unit} if grid.unit else {}
    files = backend.array_documents(
        shape=tuple(shape),
        chunks=tuple(chunks),
        dtype=np.dtype(dtype).newbyteorder("="),
        axes=names,
        attributes=stored,
        storage=storage,
    )
    return dict(sorted(files.items(), key=lambda file: file[0] == ".zarray"))


def is_array(place: Place) -> bool:
    """Whether there is an array."""
    return place.holds(".zarray") or place.holds("zarr.json")


def coarse_grid(spacing: Spacing, offset: Spacing, factor: Shape) -> tuple[Spacing, Spacing]:
    """Spacing and offset of voxels that are each the average of `factor` voxels."""
    z, y, x = (s * f for s, f in zip(spacing, factor, strict=True))
    shifts = [s * (f - 1) / 2 for s, f in zip(spacing, factor, strict=True)]
    return (z, y, x), (offset[0] + shifts[0], offset[1] + shifts[1], offset[2] + shifts[2])


@dataclass(frozen=True)
class Description:
    """What the metadata of an image says, except for its grid."""

    name: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """JSON values of the group, next to those of OME-Zarr."""
    display: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """`omero` or `image-label`, for viewers."""


Rgba = tuple[int, int, int, int]


def image_label(colours: Mapping[int, Rgba], zarr_format: ZarrFormat) -> dict[str, Any]:
    """What of a `display` makes an image of integers a label image: its values with their colours."""
    colors = [{"label-value": value, "rgba": list(rgba)} for value, rgba in colours.items()]
    return {"image-label": {"version": _NGFF[zarr_format], "colors": colors}}


_NGFF: dict[ZarrFormat, str] = {2: "0.4", 3: "0.5"}


def write_multiscale_group(
    location: str,
    grid: Grid,
    description: Description,
    *,
    levels: Mapping[str, Shape] = MappingProxyType({"0": (1, 1, 1)}),
    zarr_format: ZarrFormat = 2,
) -> None:
    """Make a group an OME-Zarr image: NGFF 0.4 in version 2, 0.5 in version 3.

    Levels are taken to be averages, so that the centre of the first voxel of level n lies
    (s_n - s_0) / 2 further in.

    Args:
        location: of the group.
        grid: of level 0; its axes are ("z", "y", "x") when left out.
        description: what else there is to say.
        levels: by path of the level's array, the finest first: voxels of level 0 in one of the
            level, along (z, y, x).
        zarr_format: of the group.
    """
    datasets = [
        {"path": path, "coordinateTransformations": _transforms(grid, factor)}
        for path, factor in levels.items()
    ]
    image: dict[str, Any] = {
        "name": description.name,
        "axes": [_axis(a, grid.unit) for a in _axes_of(grid)],
        "datasets": datasets,
    }
    stored = dict(description.attributes)
    if zarr_format == 2:
        stored |= {"multiscales": [{"version": _NGFF[2], **image}], **description.display}
    else:
        stored["ome"] = {"version": _NGFF[3], "multiscales": [image], **description.display}
    set_group_attributes(location, stored, zarr_format=zarr_format)


def set_group_attributes(
    location: str, attributes: Mapping[str, Any], *, zarr_format: ZarrFormat = 2
) -> None:
    """Add attributes to a group, which is made (of `zarr_format`) when there is none.

    Raises:
        VolumeError: there is one whose metadata is damaged.
    """
    place, node = place_at(location), read_node(location, location)
    stored = {**(node.attributes if node else {}), **attributes}
    if (node.zarr_format if node else zarr_format) == 2:
        if not place.holds(".zgroup"):
            place.write(".zgroup", _json({"zarr_format": 2}))
        place.write(".zattrs", _json(stored))
    else:
        document = node.document if node else {"zarr_format": 3, "node_type": "group"}
        place.write("zarr.json", _json({**document, "attributes": stored}))


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, allow_nan=False).encode()


def _group_format(place: Place) -> ZarrFormat | None:
    if place.holds("zarr.json"):
        return 3
    return 2 if place.holds(".zgroup") else None


def _make_groups(root: Place, name: str, zarr_format: ZarrFormat) -> None:
    """Create the root group and those between it and the array, where they do not exist."""
    above = accumulate(name.split("/")[:-1], lambda place, part: place / part, initial=root)
    for group in above:
        existing = _group_format(group)
        if existing is None:
            set_group_attributes(str(group), {}, zarr_format=zarr_format)
        elif existing != zarr_format:
            found = f"is a zarr version {existing} group, not version {zarr_format}"
            raise OutputError(str(group), found, "choose another folder")


def _axis(name: str, unit: str | None) -> dict[str, str]:
    if name == "c":
        return {"name": "c", "type": "channel"}
    return {"name": name, "type": "space", **({"unit": unit} if unit else {})}


def _axes_of(grid: Grid) -> tuple[str, ...]:
    return grid.axes or ("z", "y", "x")


def _transforms(grid: Grid, factor: Shape) -> list[dict[str, Any]]:
    coarser, moved = coarse_grid(grid.spacing, grid.offset, factor)
    sizes = dict(zip("zyx", coarser, strict=True))
    shifts = dict(zip("zyx", moved, strict=True))
    scale = [sizes.get(a, 1.0) for a in _axes_of(grid)]
    shift = [shifts.get(a, 0.0) for a in _axes_of(grid)]
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
    if any(shift):
        steps.append({"type": "translation", "translation": shift})
    return steps
