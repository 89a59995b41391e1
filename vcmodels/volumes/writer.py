"""Writing zarr arrays: checksummed chunks, replaced one by one, with metadata viewers understand."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from pathlib import Path
from typing import Any

import numpy as np

from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import Box, Shape, Spacing
from vcmodels.geometry.grid import tiles
from vcmodels.volumes import backend
from vcmodels.volumes.backend import ArrayHandle, ZarrFormat
from vcmodels.volumes.location import is_remote
from vcmodels.volumes.places import Place, place_at

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


@dataclass(frozen=True)
class WritableArray:
    """An array to write boxes into; cheap to pickle, opened anew in every process.

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
        """Whether surely no chunk holds the fill value alone.

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

    def sync(self, box: Box) -> None:
        """Wait until the chunks that touch a box would survive a loss of power.

        What an object store has answered for has done so.
        """
        if is_remote(self.location):
            return
        stored = [path for path in self.files(box) if path.exists()]
        for path in (*stored, *sorted({path.parent for path in stored})):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def create_array(
    root: str,
    name: str,
    *,
    shape: Sequence[int],
    chunks: Sequence[int],
    dtype: np.dtype[Any] | type | str,
    shards: Sequence[int] | None = None,
    zarr_format: ZarrFormat = 2,
    fill_value: float = 0,
    attributes: Mapping[str, Any] | None = None,
    axes: Sequence[str] | None = None,
    spacing: Spacing | None = None,
    offset: Spacing = (0.0, 0.0, 0.0),
    unit: str | None = None,
    write_empty_chunks: bool = False,
) -> WritableArray:
    """Create an array in a store; groups above it are made as needed.

    Args:
        root: the store, a local folder or a URL.
        name: path of the array in it, such as "sheet" or "sheet/0".
        shape: (Z, Y, X), or (C, Z, Y, X).
        chunks: as many numbers as `shape`.
        dtype: of the voxels; stored little-endian.
        shards: multiples of `chunks`; version 3 only.
        zarr_format: 2 (with "/" between chunk indices), or 3.
        fill_value: what chunks that are not stored read as.
        attributes: JSON values to store with the array.
        axes: names of the axes; ("z", "y", "x") or ("c", "z", "y", "x") when left out.
        spacing: voxel size (z, y, x), stored as `resolution`, `offset` and `units`.
        offset: world position of voxel 0.
        unit: of spacing and offset, such as "micrometer".
        write_empty_chunks: also store chunks that hold the fill value alone.

    Raises:
        ValueError: a name that is no plain path, shards in version 2, shapes that do not fit.
        OutputError: the array exists already, the root is of another zarr version, or a URL that
            cannot be written to.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"array name {name!r} must be letters, digits, '_', '-' and '.'")
    if shards is not None and zarr_format == 2:
        raise ValueError("shards need zarr_format=3")
    names = tuple(axes) if axes else ("c", "z", "y", "x")[-len(shape) :]
    stored = dict(attributes or {})
    if zarr_format == 2:
        stored["_ARRAY_DIMENSIONS"] = list(names)
    if spacing is not None:
        stored |= {"resolution": list(spacing), "offset": list(offset)}
        stored |= {"units": unit} if unit else {}
    location = place_at(root) / name
    if is_array(location):
        raise OutputError(str(location), "exists already", "choose another name or remove it")
    _make_groups(place_at(root), name, zarr_format)
    backend.create(
        str(location),
        shape=tuple(shape),
        chunks=tuple(chunks),
        shards=tuple(shards) if shards else None,
        dtype=np.dtype(dtype).newbyteorder("="),
        fill_value=fill_value,
        axes=names,
        attributes=stored,
        zarr_format=zarr_format,
    )
    handle = ArrayHandle(str(location), zarr_format, "r+")
    return WritableArray(handle, write_empty_chunks)


def is_array(place: Place) -> bool:
    """Whether there is an array."""
    return place.holds(".zarray") or place.holds("zarr.json")


def coarse_grid(spacing: Spacing, offset: Spacing, factor: Shape) -> tuple[Spacing, Spacing]:
    """Spacing and offset of voxels that are each the average of `factor` voxels."""
    z, y, x = (s * f for s, f in zip(spacing, factor, strict=True))
    shifts = [s * (f - 1) / 2 for s, f in zip(spacing, factor, strict=True)]
    return (z, y, x), (offset[0] + shifts[0], offset[1] + shifts[1], offset[2] + shifts[2])


def write_multiscale_group(
    location: str,
    *,
    name: str,
    axes: Sequence[str],
    spacing: Spacing,
    offset: Spacing = (0.0, 0.0, 0.0),
    unit: str | None = None,
    levels: Sequence[str] = ("0",),
    factors: Sequence[Shape] | None = None,
    zarr_format: ZarrFormat = 2,
    display: Mapping[str, Any] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Make a group an OME-Zarr image: NGFF 0.4 in version 2, 0.5 in version 3.

    Levels are taken to be averages, so that the centre of the first voxel of level n lies
    (s_n - s_0) / 2 further in.

    Args:
        location: of the group.
        name: of the image.
        axes: names of the axes, among "c", "z", "y", "x".
        spacing: voxel size (z, y, x) of level 0.
        offset: world position of voxel 0 of level 0.
        unit: of both; a UDUNITS word such as "micrometer".
        levels: paths of the levels' arrays, the finest first.
        factors: voxels of level 0 in one of each level, along (z, y, x); 2^n when left out.
        zarr_format: of the group.
        display: `omero` or `image-label`, for viewers.
        attributes: more attributes for the group.
    """
    factors = factors or [(2**n, 2**n, 2**n) for n in range(len(levels))]
    datasets = [
        {"path": path, "coordinateTransformations": _transforms(axes, spacing, offset, factor)}
        for path, factor in zip(levels, factors, strict=True)
    ]
    image: dict[str, Any] = {
        "name": name,
        "axes": [_axis(a, unit) for a in axes],
        "datasets": datasets,
    }
    stored = dict(attributes or {})
    if zarr_format == 2:
        stored |= {"multiscales": [{"version": "0.4", **image}], **(display or {})}
    else:
        stored["ome"] = {"version": "0.5", "multiscales": [image], **(display or {})}
    set_group_attributes(location, stored, zarr_format=zarr_format)


def group_attributes(location: str) -> dict[str, Any]:
    """The attributes of a group.

    Raises:
        FileNotFoundError: there is no group.
    """
    return backend.read_attributes(location)


def set_group_attributes(
    location: str, attributes: Mapping[str, Any], *, zarr_format: ZarrFormat = 2
) -> None:
    """Add attributes to a group, which is made (of `zarr_format`) when there is none."""
    place = place_at(location)
    existing = _group_format(place)
    if existing is None:
        backend.create_group(location, zarr_format)
    backend.update_attributes(location, attributes, existing or zarr_format)


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
            backend.create_group(str(group), zarr_format)
        elif existing != zarr_format:
            found = f"is a zarr version {existing} group, not version {zarr_format}"
            raise OutputError(str(group), found, "choose another folder")


def _axis(name: str, unit: str | None) -> dict[str, str]:
    if name == "c":
        return {"name": "c", "type": "channel"}
    return {"name": name, "type": "space", **({"unit": unit} if unit else {})}


def _transforms(
    axes: Sequence[str], spacing: Spacing, offset: Spacing, factor: Shape
) -> list[dict[str, Any]]:
    coarser, moved = coarse_grid(spacing, offset, factor)
    sizes = dict(zip("zyx", coarser, strict=True))
    shifts = dict(zip("zyx", moved, strict=True))
    scale = [sizes.get(a, 1.0) for a in axes]
    shift = [shifts.get(a, 0.0) for a in axes]
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
    if any(shift):
        steps.append({"type": "translation", "translation": shift})
    return steps
