"""Opening and reading volumes: any layout in, `(C, Z, Y, X)` blocks out, padded at the borders."""

import hashlib
import lzma
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from math import isnan, prod
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from vcmodels.errors import RunError, VolumeError
from vcmodels.geometry.boxes import Box, Shape, Spacing, unit_box, units_touching
from vcmodels.volumes.axes import AS_STORED, AxisMap, ChannelAxis, Channels, Reading, find_axes
from vcmodels.volumes.backend import ArrayHandle, ZarrArray
from vcmodels.volumes.decoding import UNKNOWN_EXCESS
from vcmodels.volumes.listing import (
    ChunkNames,
    Listing,
    fingerprint,
    header_damage,
    list_chunks,
    misnamed_chunk,
    misnamed_error,
    probe_chunks,
    silent_damage,
)
from vcmodels.volumes.location import Origin, is_remote, join, parent
from vcmodels.volumes.ngff import Told, find_told, level_location, read_multiscale, with_own
from vcmodels.volumes.nodes import (
    MetadataError,
    Node,
    read_node,
    require_array,
    require_harmless,
    stored_dtype,
)
from vcmodels.volumes.remote import StoredFile, describe
from vcmodels.volumes.spacing import Coordinates, Grid, first_of, from_coordinates, unit_name

Pad = Literal["reflect", "edge", "zero"]


def source_indices(
    start: int, length: int, low: int, high: int, pad: Pad
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Where the values at `start ... start + length` come from, along one axis.

    The same as `numpy.pad` of the voxels `low ... high` by as much as needed, then cut.

    Args:
        start: first position wanted; may lie outside.
        length: number of positions.
        low: first position that exists.
        high: first position past those that exist; more than `low`.
        pad: what stands outside: the mirror image, the last voxel, or nothing (-1).

    Returns:
        (length,) int64 in [low, high), or low - 1 where "zero" stands outside.
    """
    assert high > low, "nothing to pad from"
    wanted = np.arange(start, start + length, dtype=np.int64)
    if pad == "edge":
        return np.clip(wanted, low, high - 1)
    if pad == "zero":
        return np.where((wanted >= low) & (wanted < high), wanted, low - 1)
    period = 2 * (high - low - 1)
    if period == 0:
        return np.full(length, low, dtype=np.int64)
    phase = (wanted - low) % period
    return low + np.minimum(phase, period - phase)


# What the codecs of zarr 3.1 and numcodecs 0.16 raise for bytes that they cannot decode: zstd and
# blosc RuntimeError, gzip OSError, EOFError or zlib.error, crc32c and a wrong length ValueError.
_DECODE_ERRORS = (RuntimeError, ValueError, EOFError, OSError, zlib.error, lzma.LZMAError)


class ChunkError(RunError):
    """A stored chunk is damaged, or cannot be read."""


@dataclass(frozen=True)
class Volume:
    """One array of a store, or one level of a multiscale group; cheap to pickle.

    What is read has axes (C, Z, Y, X) whatever the layout of the store; all shapes here are
    spatial, (z, y, x).
    """

    location: str
    """Of the array itself, the level's path included."""
    key: str
    """The dotted task key that named it, for messages."""
    extent: Shape
    channels: int
    axes: AxisMap
    """How the axes of the stored array become these."""
    dtype: np.dtype[Any]
    """In native byte order."""
    chunks: Shape
    """The smallest unit that can be decoded by itself (the inner chunks of a shard)."""
    shards: Shape | None
    spacing: Spacing
    """1 where it is not known."""
    offset: Spacing
    """Position of voxel 0 in the world, in `unit`."""
    unit: str | None
    has_spacing: bool
    """Whether the store, or the task, says the spacing."""
    fill_value: float
    attributes: dict[str, Any] = field(compare=False)
    node: Node = field(repr=False, compare=False)
    names: ChunkNames = field(repr=False, compare=False)
    handle: ArrayHandle = field(repr=False, compare=False)
    spacing_notes: tuple[str, ...] = field(repr=False, compare=False)
    """What the store says of the voxel size and is not understood; a line each."""
    axes_notes: tuple[str, ...] = field(repr=False, compare=False)
    """What one may not expect of how the axes are read; a line each."""
    on_damage: str | None = field(default=None, repr=False, compare=False)
    """What to do about a damaged chunk, for messages; by default to restore or to delete it."""
    origin: Origin | None = field(default=None, repr=False, compare=False)
    """The file that it was imported from; None of what is stored as Zarr."""

    @property
    def shown(self) -> str:
        """What people know it by: the file that it comes from, or its location."""
        return self.origin.location if self.origin else self.location

    @property
    def identity(self) -> str:
        """The location, and what sets the voxels apart from others that are read of the same array."""
        choice = self.axes.choice
        return f"{self.location} ({choice})" if choice else self.location

    @property
    def box(self) -> Box:
        """The whole volume."""
        return Box((0, 0, 0), self.extent)

    @property
    def has_channel_axis(self) -> bool:
        """Whether the stored array has an axis of which the channels are read."""
        return self.axes.channel is not None

    @property
    def storage_unit(self) -> Shape:
        """Shape of what one file holds: a shard, or a chunk."""
        return self.shards or self.chunks

    @property
    def is_nan_void(self) -> bool:
        """Whether NaN says that there is no value: the array's fill value, or xarray's, is NaN."""
        return isnan(self.fill_value) or _is_nan(self.attributes.get("_FillValue"))

    def read(self, box: Box, within: Box | None = None, pad: Pad = "zero") -> np.ndarray[Any, Any]:
        """Read a box, which may lie partly or wholly outside.

        Args:
            box: what to read.
            within: the part of the volume that may be read (default: all of it); what lies outside
                of it is padded, as if the volume ended there.
            pad: "reflect" (about the last voxel), "edge" or "zero", as in `numpy.pad`.

        Returns:
            (C, Z, Y, X) of `dtype`, in native byte order. Chunks that are not stored read as the
            fill value.

        Raises:
            ValueError: `within` holds no voxel of the volume.
            ChunkError: a chunk is damaged or cannot be read; names array, chunk and file.
            RemoteError: a server does not give an object, after some tries; names it.
        """
        allowed = self.box.intersect(within) if within else self.box
        if not allowed.voxels:
            raise ValueError(f"{within} holds no voxel of {self.location}, extent {self.extent}")
        if allowed.contains(box):
            return self._read_inside(box)
        maps = [
            source_indices(start, length, low, high, pad)
            for start, length, low, high in zip(
                box.origin, box.shape, allowed.origin, allowed.end, strict=True
            )
        ]
        inside = [m >= low for m, low in zip(maps, allowed.origin, strict=True)]
        if not all(i.any() for i in inside):
            return np.zeros((self.channels, *box.shape), self.dtype)
        kept = [m[i] for m, i in zip(maps, inside, strict=True)]
        needed = Box.between([m.min() for m in kept], [m.max() + 1 for m in kept])
        block = self._read_inside(needed)
        z, y, x = (m - o for m, o in zip(kept, needed.origin, strict=True))
        picked = block[:, z][:, :, y][:, :, :, x]
        if picked.shape[1:] == box.shape:
            return picked
        out = np.zeros((self.channels, *box.shape), self.dtype)
        out[(slice(None), *np.ix_(*inside))] = picked
        return out

    def stored_blocks(self, within: Box | None = None) -> Iterator[Box]:
        """The storage units (shards, or chunks) that exist, in order, cut at the volume's end.

        They come from one listing of the store, made at the first call and kept; a store that
        cannot be listed (http) gives all of them.

        Args:
            within: only those that touch this box.
        """
        spans = self._units(within)
        if self.listing is None:
            chosen = product(*spans)
        elif prod(map(len, spans)) < len(self.listing.spatial):
            stored = self.listing.spatial
            chosen = (index for index in product(*spans) if index in stored)
        else:
            # Not one by one through the grid, which may have 10^12 units of which few exist.
            chosen = (
                (z, y, x)
                for z, y, x in sorted(self.listing.spatial)
                if z in spans[0] and y in spans[1] and x in spans[2]
            )
        yield from (unit_box(index, self.storage_unit).intersect(self.box) for index in chosen)

    def stored_files(self, units: tuple[range, range, range]) -> Iterator[tuple[Shape, StoredFile]]:
        """The files of a range of storage units that exist, in order, each with its unit.

        From the listing; where there is none, each unit of the range is asked for. A unit has
        several files when the channels are stored apart.

        Args:
            units: indices along (z, y, x).

        Raises:
            RunError: a server that cannot list answers neither yes nor no.
        """
        if self.listing is not None:
            found: Iterable[tuple[tuple[int, ...], StoredFile]] = self.listing.files.items()
        else:
            found = probe_chunks(self.location, self.names, self._stored_units(units))
        for index, file in found:
            z, y, x = self.axes.of(index)
            if z in units[0] and y in units[1] and x in units[2]:
                yield (z, y, x), file

    def is_stored(self, box: Box) -> bool:
        """Whether any stored chunk touches the box; true wherever the store cannot be listed."""
        return next(self.stored_blocks(box), None) is not None

    def missing_blocks(self) -> int:
        """How many storage units do not exist and read as the fill value; 0 if unlistable.

        Of an imported file none are missing: what is not stored is 0 there.
        """
        if self.listing is None or self.origin is not None:
            return 0
        every = units_touching(self.box, self.storage_unit)
        return prod(map(len, every)) * self._files_of_unit - len(self.listing.files)

    def require_stored(self, within: Box, setting: str) -> None:
        """Refuse an array of which a chunk in a box is not stored.

        A store that cannot be listed is asked for each of them.

        Args:
            within: a box of the volume.
            setting: the dotted task key that says so, for the message.

        Raises:
            VolumeError: names the first chunk.
            RunError: a server answers neither yes nor no.
        """
        if self.origin is not None:
            return  # the file is whole, and chunks of zeros are not stored
        spans, files = self._units(within), self._files_of_unit
        stored = Counter(unit for unit, _ in self.stored_files(spans))
        count = prod(map(len, spans)) * files - stored.total()
        if count <= 0:
            return
        first = next(unit for unit in product(*spans) if stored[unit] < files)
        found = f"chunks of {self.location} that are not stored: {count}, the first {first}"
        raise VolumeError(self.key, found, f'restore them, or set {setting} to "fill"')

    @property
    def oddity(self) -> str | None:
        """What of the way it is stored a user should know, in words that follow its name."""
        if self.listing is None:
            if not is_remote(self.location):
                return None
            fill = f"are read as {self.fill_value:g}"
            return f"cannot be listed: chunks that the server does not have, or refuses, {fill}"
        if not (empty := self.listing.empty):
            return None
        place = join(self.location, self.names.name(empty[0]))
        damaged = f"has damaged chunks: {len(empty)}, the first {empty[0]}"
        return f"{damaged}: {place} is empty, or leads to nothing"

    @property
    def read_rules(self) -> bytes:
        """What decides what is read besides the stored bytes: nothing, of an array as it is."""
        return b""

    def fingerprint(self) -> str:
        """A sha256 that changes when the array does, from its metadata and the listing.

        Two arrays with equal metadata, chunk names, sizes and times (in ns; the ETag of a remote
        object) have the same. A store that cannot be listed gives one of its metadata. An imported
        file has that of its content, whenever it is imported again.
        """
        if self.origin is not None:
            return fingerprint(self.origin.digest.encode(), self.axes.choice, None)
        files = self.listing.files if self.listing else None
        return fingerprint(self.node.raw, self.axes.choice, files)

    def damaged_file(self) -> str | None:
        """What is wrong with the first stored file that cannot be whole, by its size and header.

        Nothing is decoded; of a remote file only the size is looked at.
        """
        array = self.handle.array()
        size = prod(array.chunks) * self.dtype.itemsize
        inner = prod(array.shards) // prod(array.chunks) if array.shards else None
        for file in self.listing.files.values() if self.listing else ():
            place = join(self.location, file.name)
            if not file.size:
                return f"{place} is empty"
            if not is_remote(place) and (
                found := header_damage(Path(place), self.node, size, inner)
            ):
                return f"{place} {found}"
        return None

    @cached_property
    def listing(self) -> Listing | None:
        """The stored chunks; None where the store cannot be listed."""
        place = self.axes.place(self._stored_unit)
        return list_chunks(self.node, self.names, place, self.key)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the listing, which may be long, behind."""
        return {k: v for k, v in self.__dict__.items() if k != "listing"}

    def _units(self, within: Box | None) -> tuple[range, range, range]:
        """Ranges of unit indices along (z, y, x) that touch a box."""
        box = self.box.intersect(within) if within else self.box
        if not box.voxels:
            return range(0), range(0), range(0)
        return units_touching(box, self.storage_unit)

    @property
    def _stored_unit(self) -> tuple[int, ...]:
        """Shape of what one file holds, along each stored axis."""
        array = self.handle.array()
        return tuple(array.shards or array.chunks)

    def _stored_units(self, spans: Sequence[range]) -> Iterator[tuple[int, ...]]:
        """The indices, in the stored array, of all files of which something is read in a range."""
        place = self.axes.place(self._stored_unit)
        every = self.axes.units(spans, self.handle.array().shape, self._stored_unit)
        return (index for index in product(*every) if place(index) is not None)

    @property
    def _files_of_unit(self) -> int:
        """Files of one storage unit: several when the channels are stored apart."""
        return sum(1 for _ in self._stored_units((range(1),) * 3))

    def _read_inside(self, box: Box) -> np.ndarray[Any, Any]:
        """Read a box that lies inside the volume."""
        array = self.handle.array()
        runs = list(self.axes.slices(box, array.shape, array.chunks))
        block = self.axes.arrange([self._read_stored(where) for where in runs], runs)
        return np.ascontiguousarray(block, dtype=self.dtype)

    def _read_stored(self, where: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        """Read slices of the stored array."""
        self._check_files(where)
        try:
            return np.asarray(self.handle.array()[where])
        except _DECODE_ERRORS as error:
            raise self._chunk_error(where, error) from error

    def _chunks_in(self, where: tuple[slice, ...]) -> Iterator[tuple[int, ...]]:
        """Indices, in the stored array, of the storage units that slices touch."""
        array = self.handle.array()
        units = array.shards or array.chunks
        spans = zip(where, units, strict=True)
        return product(*(range(s.start // u, -(-s.stop // u)) for s, u in spans))

    def _check_files(self, where: tuple[slice, ...]) -> None:
        """Find damaged local chunks that zarr would silently read as something else."""
        if is_remote(self.location):
            return
        values = prod(self._stored_unit)
        # Room for what does not compress, and for the index of a shard of single voxels.
        most = values * (2 * self.dtype.itemsize + INDEX_BYTES * bool(self.shards)) + UNKNOWN_EXCESS
        for index in self._chunks_in(where):
            name = self.names.name(index)
            found = silent_damage(name, self.node, most)
            if found:
                raise self._damaged(index, f"{join(self.location, name)} {found}")

    def _chunk_error(self, where: tuple[slice, ...], error: BaseException) -> ChunkError:
        """Find the one chunk that cannot be read, by reading them one by one."""
        array = self.handle.array()
        units = array.shards or array.chunks
        for index in self._chunks_in(where):
            part = tuple(
                slice(max(i * u, s.start), min((i + 1) * u, s.stop))
                for i, u, s in zip(index, units, where, strict=True)
            )
            try:
                array[part]
            except _DECODE_ERRORS as found:
                place = join(self.location, self.names.name(index))
                return self._damaged(index, f"{place} cannot be read ({describe(found)})")
        return ChunkError(self.location, f"cannot be read ({describe(error)})", "run again")

    def _damaged(self, index: tuple[int, ...], found: str) -> ChunkError:
        kind = "shard" if self.shards else "chunk"
        remedy = f'restore it, or delete it to read {self.fill_value:g} there ("{self.key}")'
        return ChunkError(self.location, f"{kind} {index}: {found}", self.on_damage or remedy)


MAX_CHUNK_BYTES = 8 * 2**30
INDEX_BYTES = 16
"""Of a chunk in the index of its shard."""
_METADATA_ERRORS = (
    *(ValueError, TypeError, KeyError, NotImplementedError, OSError),
    ArithmeticError,  # a fill value outside of the dtype overflows
)


def open_volume(
    location: str,
    *,
    key: str | None = None,
    level: int = 0,
    channels: Channels = None,
    channel_axis: ChannelAxis | None = None,
    on_damage: str | None = None,
    reading: Reading = AS_STORED,
    origin: Origin | None = None,
) -> Volume:
    """Open one array for reading; nothing but metadata, and coordinates of xarray, is read.

    Args:
        location: an array, or an OME-Zarr group; a local path or a URL, already expanded.
        key: the dotted task key, for messages; the location where None.
        level: which level of an OME-Zarr group.
        channels: how many channels are expected: None for a plain (Z, Y, X) array, a number for an
            array with that many (1 also takes a plain one), "any" for whatever is there.
        on_damage: what messages advise about a damaged chunk, if not to restore or to delete it.
        channel_axis: where the channels of an array of 4 axes are, when the store does not say.
        reading: what else is said of its axes, and which of its channels and positions are read.
        origin: the file that the array was imported from.

    Raises:
        VolumeError: the location is missing, damaged, of an unsupported kind, or does not have the
            expected axes.
    """
    location = location.rstrip("/")
    key = key or location
    node, told = _resolve(location, level, key)
    dtype = stored_dtype(node, key)
    require_harmless(node, key)
    handle = ArrayHandle(node.location, node.zarr_format, "r")
    array = _open_checked(handle, node, key)
    shape = tuple(int(n) for n in array.shape)
    named = None if reading.names(shape, key) else told.axes(shape, key)
    axes = find_axes(shape, named, channels, reading, channel_axis, key=key)
    grid = _find_grid(node, told, axes, shape, key, reading.spacing)
    units = tuple(array.shards or array.chunks)
    _check_chunk_size(node, tuple(array.chunks), units, dtype, key)
    counts = tuple(-(-n // u) for n, u in zip(shape, units, strict=True))
    names = ChunkNames.of(node, counts)
    if not is_remote(location):
        stray = misnamed_chunk(node, names, key)
        if stray is not None:
            raise misnamed_error(key, node, names, stray)
    return Volume(
        location=node.location,
        key=key,
        extent=axes.of(shape),
        channels=axes.count(shape),
        axes=axes,
        dtype=dtype,
        chunks=axes.of([int(n) for n in array.chunks]),
        shards=axes.of([int(n) for n in array.shards]) if array.shards else None,
        spacing=grid.spacing,
        offset=grid.offset,
        unit=grid.unit,
        has_spacing=grid.is_known,
        fill_value=float(cast("float", array.fill_value or 0)),
        attributes=node.attributes,
        node=node,
        names=names,
        handle=handle,
        on_damage=on_damage,
        spacing_notes=grid.notes,
        axes_notes=tuple(_axes_notes(axes, shape, told)),
        origin=origin,
    )


def _axes_notes(axes: AxisMap, shape: tuple[int, ...], told: Told) -> Iterator[str]:
    if axes.is_transposed:
        yield f"axes ({', '.join(axes.names)}) are read, and results written, as (z, y, x)"
    stored = 1 if "c" not in axes.names else shape[axes.names.index("c")]
    for place, names in told.names:
        if len(names) == len(shape) and any(
            a not in ("", b) for a, b in zip(names, axes.names, strict=True)
        ):
            said = ", ".join(name or "?" for name in names)
            yield f"{place} names the axes ({said}); the task's {''.join(axes.names)} goes before it"
    if told.channels not in (None, stored):
        yield f"omero lists {told.channels} channels, the array has {stored}"


def _find_grid(
    node: Node,
    told: Told,
    axes: AxisMap,
    shape: tuple[int, ...],
    key: str,
    spacing: Spacing | None,
) -> Grid:
    """The voxel size: as the task says, else the attributes, else coordinates next to the array."""
    grid = first_of(told.lengths, axes)
    if spacing is not None:
        return replace(grid, spacing=spacing, is_known=True, notes=())
    if grid.is_known or grid.notes or not axes.is_named:
        return grid
    stored = _own_dimensions(node)

    def read(axis: int) -> Coordinates | None:
        folder = parent(node.location)
        name = stored[axis] if len(stored) == len(shape) else None
        return _read_coordinates(join(folder, name), key) if folder and name else None

    found = from_coordinates(read, shape, axes)
    return found if found.is_known or found.notes else grid


def _own_dimensions(node: Node) -> list[str]:
    """The names of the dimensions, as they are; arrays of these names may hold coordinates."""
    names = node.document.get("dimension_names") or node.attributes.get("_ARRAY_DIMENSIONS")
    listed = cast("list[Any]", names) if isinstance(names, list) else []
    return [n if isinstance(n, str) and "/" not in n and n.strip(". ") else "" for n in listed]


def _read_coordinates(location: str, key: str) -> Coordinates | None:
    """The numbers of an array of one axis, and their unit; None where there is no such array.

    Of one that is damaged there are none, which is reported as too few for the voxels.
    """
    try:
        node = read_node(location, key)
    except MetadataError:
        return [], None
    shape = node.document.get("shape") if node is not None and node.kind == "array" else None
    if node is None or not isinstance(shape, list) or len(cast("list[Any]", shape)) != 1:
        return None
    try:
        array = _open_checked(ArrayHandle(node.location, node.zarr_format, "r"), node, key)
        if array.dtype.kind not in "iuf" or array.shape[0] > MOST_COORDINATES:
            return None
        values = np.asarray(array[(slice(None),)], np.float64).tolist()
    except (VolumeError, *_DECODE_ERRORS):
        values = list[float]()
    return values, unit_name(node.attributes.get("units") or node.attributes.get("unit"))


MOST_COORDINATES = 10**7
"""Of an axis; more are no coordinates of voxels."""


def _resolve(location: str, level: int, key: str) -> tuple[Node, Told]:
    """The array that a location and a level stand for, and what the store says of it."""
    node = read_node(location, key)
    if node is not None and node.kind == "group" and read_multiscale(node.attributes):
        inner, told = level_location(node, level, key)
        array = require_array(read_node(inner, key), inner, key)
        return array, with_own(told, array)
    array = require_array(node, location, key)
    if level:
        found = f"{location} is an array, which has no level {level}"
        raise VolumeError(key, found, "give the OME-Zarr group, or leave level out")
    return array, find_told(array, key)


def _open_checked(handle: ArrayHandle, node: Node, key: str) -> ZarrArray:
    """Open with zarr; whatever it has against the metadata becomes one line."""
    try:
        array = handle.array()
    except _METADATA_ERRORS as error:
        name = "zarr.json" if node.zarr_format == 3 else ".zarray"
        found = f"{join(node.location, name)} is not valid ({describe(error)})"
        raise MetadataError(key, found, "restore the file or convert the array") from error
    if 0 in array.shape:
        raise VolumeError(key, f"{node.location} is empty, shape {array.shape}", "choose another")
    if 0 in array.chunks:  # zarr opens it and fails at the first read
        found = f"{node.location} has chunks of {array.chunks}"
        raise VolumeError(key, found, "restore the metadata")
    return array


def _check_chunk_size(
    node: Node, chunks: tuple[int, ...], units: tuple[int, ...], dtype: np.dtype[Any], key: str
) -> None:
    size = prod(chunks) * dtype.itemsize
    in_shard = prod(u // c for u, c in zip(units, chunks, strict=True))
    if in_shard * INDEX_BYTES > MAX_CHUNK_BYTES:
        found = f"{node.location} has {in_shard:,} chunks in a shard"
        raise VolumeError(key, found, "write it with larger chunks, or smaller shards")
    if size > MAX_CHUNK_BYTES:
        shape = " x ".join(map(str, chunks))
        found = f"{node.location} has chunks of {shape}, {size / 2**30:.0f} GiB each"
        raise VolumeError(key, found, "rechunk the array, for instance to 128 x 128 x 128")


_NAN_WORDS = ("NaN", "AAAAAAAA+H8=")
"""NaN in JSON: zarr's word, and the base64 of its eight bytes that xarray writes."""


def _is_nan(value: object) -> bool:
    return value in _NAN_WORDS if isinstance(value, str) else value != value


@dataclass(frozen=True)
class ArrayVolume(Volume):
    """An array in memory that is read as a volume is; all of it counts as stored."""

    values: np.ndarray[Any, Any] = field(kw_only=True, repr=False, compare=False)

    @classmethod
    def of(cls, values: np.ndarray[Any, Any], spacing: Spacing, name: str) -> "ArrayVolume":
        """The volume of (Z, Y, X) or (C, Z, Y, X) values, which messages call by the name.

        Raises:
            ValueError: another number of axes, or no voxel.
        """
        if values.ndim not in (3, 4) or not values.size:
            raise ValueError(f"{name} has shape {values.shape}; give (Z, Y, X) or (C, Z, Y, X)")
        values = values if values.ndim == 4 else values[None]
        depth, height, width = values.shape[1:]
        z, y, x = (min(n, MEMORY_CHUNK) for n in (depth, height, width))
        node = Node(name, "array", 3, {}, {}, b"")
        counts = (-(-depth // z), -(-height // y), -(-width // x))
        return cls(
            location=name,
            key=name,
            extent=(depth, height, width),
            channels=len(values),
            axes=AxisMap(("c", "z", "y", "x"), (1, 2, 3), 0),
            dtype=values.dtype.newbyteorder("="),
            chunks=(z, y, x),
            shards=None,
            spacing=spacing,
            offset=(0.0, 0.0, 0.0),
            unit=None,
            has_spacing=True,
            fill_value=0.0,
            attributes={},
            node=node,
            names=ChunkNames("", "/", (1, *counts)),
            handle=ArrayHandle(name, 3, "r"),
            spacing_notes=(),
            axes_notes=(),
            values=values,
        )

    @cached_property
    def listing(self) -> Listing | None:
        """None: there is no store to list."""
        return None

    def require_stored(self, within: Box, setting: str) -> None:
        """Nothing: all of it is there."""

    def fingerprint(self) -> str:
        """A sha256 of the values."""
        digest = hashlib.sha256(f"{self.values.shape} {self.dtype}".encode())
        digest.update(np.ascontiguousarray(self.values, self.dtype).data)
        return digest.hexdigest()

    def _read_inside(self, box: Box) -> np.ndarray[Any, Any]:
        # A copy: readers change what they get.
        return np.array(self.values[(slice(None), *box.slices())], self.dtype, order="C")


MEMORY_CHUNK = 128
"""Edge of the blocks in which an array in memory is looked at, in voxels."""
