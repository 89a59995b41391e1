"""Opening volumes: which array a location means, and whether it is one that can be read."""

from math import prod
from typing import Any, cast

import numpy as np

from vcmodels.errors import VolumeError
from vcmodels.geometry.boxes import Shape
from vcmodels.volumes.backend import ArrayHandle, ZarrArray
from vcmodels.volumes.chunks import ChunkNames, misnamed_chunk, misnamed_error
from vcmodels.volumes.layout import ChannelAxis, Channels, find_channel_axis
from vcmodels.volumes.location import is_remote, join
from vcmodels.volumes.metadata import Grid, find_grid, level_location, read_multiscale
from vcmodels.volumes.nodes import Node, read_node, require_array, stored_dtype
from vcmodels.volumes.reader import Volume
from vcmodels.volumes.remote import describe

MAX_CHUNK_BYTES = 8 * 2**30
_METADATA_ERRORS = (
    *(ValueError, TypeError, KeyError, NotImplementedError, OSError),
    ArithmeticError,  # a fill value outside of the dtype overflows
)


def open_volume(
    location: str,
    *,
    key: str,
    level: int = 0,
    channels: Channels = None,
    channel_axis: ChannelAxis | None = None,
) -> Volume:
    """Open one array for reading; nothing but metadata is read.

    Args:
        location: an array, or an OME-Zarr group; a local path or a URL, already expanded.
        key: the dotted task key, for messages.
        level: which level of an OME-Zarr group.
        channels: how many channels are expected: None for a plain (Z, Y, X) array, a number for an
            array with that many (1 also takes a plain one), "any" for whatever is there.
        channel_axis: where the channels are, when the store does not tell.

    Raises:
        VolumeError: the location is missing, damaged, of an unsupported kind, or does not have the
            expected axes.
    """
    location = location.rstrip("/")
    node, grid = _resolve(location, level, key)
    dtype = stored_dtype(node, key)
    handle = ArrayHandle(node.location, node.zarr_format, "r")
    array = _open_checked(handle, node, key)
    shape = tuple(int(n) for n in array.shape)
    axis = find_channel_axis(shape, grid.axes, channels, channel_axis, key=key)
    units = tuple(array.shards or array.chunks)
    _check_chunk_size(node, tuple(array.chunks), dtype, key)
    counts = tuple(-(-n // u) for n, u in zip(shape, units, strict=True))
    names = ChunkNames.of(node, counts)
    if not is_remote(location):
        stray = misnamed_chunk(node, names, key)
        if stray is not None:
            raise misnamed_error(key, node, names, stray)
    return Volume(
        location=node.location,
        key=key,
        extent=_spatial(shape, axis),
        channels=1 if axis is None else shape[0 if axis == "first" else 3],
        channel_axis=axis,
        dtype=dtype,
        chunks=_spatial(tuple(array.chunks), axis),
        shards=_spatial(tuple(array.shards), axis) if array.shards else None,
        spacing=grid.spacing,
        offset=grid.offset,
        unit=grid.unit,
        fill_value=float(cast("float", array.fill_value or 0)),
        attributes=node.attributes,
        node=node,
        names=names,
        handle=handle,
    )


def _resolve(location: str, level: int, key: str) -> tuple[Node, Grid]:
    """The array that a location and a level stand for."""
    node = read_node(location, key)
    if node is not None and node.kind == "group" and read_multiscale(node.attributes):
        inner, grid = level_location(node, level, key)
        array = require_array(read_node(inner, key), inner, key)
        own = find_grid(array, key).axes
        return array, Grid(grid.spacing, grid.offset, grid.unit, grid.axes or own)
    array = require_array(node, location, key)
    if level:
        found = f"{location} is an array, which has no level {level}"
        raise VolumeError(key, found, "give the OME-Zarr group, or leave level out")
    return array, find_grid(array, key)


def _open_checked(handle: ArrayHandle, node: Node, key: str) -> ZarrArray:
    """Open with zarr; whatever it has against the metadata becomes one line."""
    try:
        array = handle.array()
    except _METADATA_ERRORS as error:
        name = "zarr.json" if node.zarr_format == 3 else ".zarray"
        found = f"{join(node.location, name)} is not valid ({describe(error)})"
        raise VolumeError(key, found, "restore the file or convert the array") from error
    if 0 in array.shape:
        raise VolumeError(key, f"{node.location} is empty, shape {array.shape}", "choose another")
    if 0 in array.chunks:  # zarr opens it and fails at the first read
        found = f"{node.location} has chunks of {array.chunks}"
        raise VolumeError(key, found, "restore the metadata")
    return array


def _check_chunk_size(node: Node, chunks: tuple[int, ...], dtype: np.dtype[Any], key: str) -> None:
    size = prod(chunks) * dtype.itemsize
    if size > MAX_CHUNK_BYTES:
        shape = " x ".join(map(str, chunks))
        found = f"{node.location} has chunks of {shape}, {size / 2**30:.0f} GiB each"
        raise VolumeError(key, found, "rechunk the array, for instance to 128 x 128 x 128")


def _spatial(shape: tuple[int, ...], axis: ChannelAxis | None) -> Shape:
    z, y, x = shape[1:] if axis == "first" else shape[:3]
    return int(z), int(y), int(x)
