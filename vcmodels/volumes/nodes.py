"""The zarr nodes (arrays and groups) of a store as plain JSON documents, and the axes of an array.

zarr is not asked here: it raises five kinds of error for damaged metadata, none of which names the
file, and opening a group as an array only fails after the fact.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from vcmodels.errors import VolumeError
from vcmodels.volumes.location import is_remote, join
from vcmodels.volumes.remote import METADATA, read_bytes

_V3_DTYPES = {
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64",
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """One zarr node: where it is, what kind it is, and its JSON."""

    location: str
    kind: Literal["array", "group"]
    zarr_format: Literal[2, 3]
    document: dict[str, Any]
    attributes: dict[str, Any]
    raw: bytes
    """The metadata as stored, for a fingerprint."""


def read_node(location: str, key: str) -> Node | None:
    """Read the metadata of a node; None when there is none at the location.

    Raises:
        VolumeError: the metadata is damaged, or of a version that this reader does not know.
    """
    raw = read_bytes(location, "zarr.json", key)
    if raw is not None:
        document = _parse(raw, join(location, "zarr.json"), key)
        kind = document.get("node_type")
        if document.get("zarr_format") != 3 or kind not in ("array", "group"):
            found = f"zarr_format {document.get('zarr_format')!r}, node_type {kind!r}"
            raise _unsupported(location, "zarr.json", found, key)
        if document.get("storage_transformers"):
            raise _unsupported(location, "zarr.json", "storage_transformers", key)
        return Node(location, kind, 3, document, _mapping(document.get("attributes")), raw)
    return _read_v2_node(location, key)


def require_array(node: Node | None, location: str, key: str) -> Node:
    """The node if it is an array.

    Raises:
        VolumeError: nothing there, not zarr, or a group (its arrays are listed).
    """
    if node is None:
        raise _not_zarr(location, key)
    if node.kind == "group":
        arrays = find_arrays(location)
        remedy = f"choose one of {', '.join(arrays)}" if arrays else "give the path of an array"
        raise VolumeError(key, f"{location} is a zarr group, not an array", remedy)
    return node


def find_arrays(location: str, depth: int = 3, most: int = 12) -> list[str]:
    """Paths of the arrays below a local group, sorted, at most so many; [] for a remote one."""
    if is_remote(location):
        return []
    found: list[str] = []
    for folder, names, files in os.walk(location):
        inner = Path(folder).relative_to(location)
        if len(inner.parts) >= depth or len(found) >= most:
            names.clear()
        if ".zarray" in files or ("zarr.json" in files and _is_v3_array(Path(folder))):
            names.clear()  # what is below an array are its chunks
            found.append(inner.as_posix())
    return sorted(found)[:most]


def stored_dtype(node: Node, key: str) -> np.dtype[Any]:
    """The dtype of an array node, in native byte order.

    Raises:
        VolumeError: complex, text, objects, records or anything else that is no image.
    """
    name = node.document.get("data_type" if node.zarr_format == 3 else "dtype")
    dtype = None
    if node.zarr_format == 3:
        dtype = np.dtype(name) if isinstance(name, str) and name in _V3_DTYPES else None
    elif isinstance(name, str):
        try:
            dtype = np.dtype(name).newbyteorder("=")
        except TypeError:
            dtype = None
    if dtype is None or dtype.name not in _V3_DTYPES:
        found = f"{node.location} has dtype {name}"
        raise VolumeError(key, found, "supported: bool, (u)int8 to 64, float16, float32, float64")
    return dtype


def require_harmless(node: Node, key: str) -> None:
    """Refuse a filter of version 2 that runs what a chunk says as a program.

    Raises:
        VolumeError: the filter is a pickle.
    """
    document = node.document if node.zarr_format == 2 else {}
    filters = cast("list[object]", document.get("filters") or [])
    used = [*filters, cast("object", document.get("compressor"))]
    if any(_mapping(codec).get("id") == "pickle" for codec in used):
        found = f"{node.location} is stored as pickles, which can run any program"
        raise VolumeError(key, found, "convert the array where you trust it")


def _read_v2_node(location: str, key: str) -> Node | None:
    extra = read_bytes(location, ".zattrs", key)
    attributes = _parse(extra, join(location, ".zattrs"), key) if extra is not None else {}
    kinds: tuple[tuple[str, Literal["array", "group"]], ...] = (
        (".zarray", "array"),
        (".zgroup", "group"),
    )
    for name, kind in kinds:
        raw = read_bytes(location, name, key)
        if raw is None:
            continue
        document = _parse(raw, join(location, name), key)
        if document.get("zarr_format") != 2:
            raise _unsupported(location, name, f"zarr_format {document.get('zarr_format')!r}", key)
        return Node(location, kind, 2, document, attributes, raw)
    if extra is not None:  # written by tools that forget .zgroup
        return Node(location, "group", 2, {}, attributes, b"")
    return None


def _parse(raw: bytes, path: str, key: str) -> dict[str, Any]:
    try:
        document: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise VolumeError(key, f"{path} is not JSON ({reason})", "restore the file") from error
    if not isinstance(document, dict):
        raise VolumeError(key, f"{path} holds no JSON object", "restore the file")
    return cast("dict[str, Any]", document)


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _unsupported(location: str, name: str, found: str, key: str) -> VolumeError:
    found = f"{join(location, name)} has {found}, which is not supported"
    return VolumeError(key, found, "use zarr version 2 or 3")


def _not_zarr(location: str, key: str) -> VolumeError:
    if is_remote(location):
        for name in METADATA:  # a refusal is what is to be told, then
            read_bytes(location, name, key, is_needed=True)
        return VolumeError(key, f"no zarr metadata found at {location}", "check the URL")
    path = Path(location)
    try:
        path.stat()
    except FileNotFoundError:
        return VolumeError(key, f"{location} does not exist", "check the path")
    except OSError as error:
        return VolumeError(key, f"{location} cannot be opened ({error.strerror})")
    if not path.is_dir():
        return VolumeError(key, f"{location} is a file, not a zarr array", "give a zarr folder")
    if not any(path.iterdir()):
        return VolumeError(key, f"{location} is an empty folder", "give a zarr array")
    return VolumeError(key, f"{location} is a folder without zarr metadata", "give a zarr array")


def _is_v3_array(folder: Path) -> bool:
    try:
        document = json.loads((folder / "zarr.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return _mapping(document).get("node_type") == "array"


ChannelAxis = Literal["first", "last"]
Channels = int | Literal["any"] | None


def find_channel_axis(
    shape: tuple[int, ...],
    axes: tuple[str, ...] | None,
    channels: Channels,
    declared: ChannelAxis | None,
    *,
    key: str,
) -> ChannelAxis | None:
    """Where the channels of an array are; None for a plain (Z, Y, X) array. Never guessed.

    Args:
        shape: of the stored array.
        axes: names of its axes, as stored with it, if they are.
        channels: how many are wanted; None for no channel axis at all, "any" for whatever is there.
        declared: what the task says, which goes before what the store says.
        key: the dotted task key, for messages.

    Raises:
        VolumeError: not 3 or 4 axes, another order than z, y, x, the wrong number of channels, or
            a shape that can be read both ways.
    """
    _check_order(shape, axes, key)
    if len(shape) == 3:
        if channels not in (None, 1, "any"):
            found = f"shape {shape} has no channel axis"
            raise VolumeError(key, found, f"expected {channels} channels: (c, z, y, x)")
        return None
    if len(shape) != 4 or channels is None:
        wanted = "3 axes (z, y, x)"
        if channels is not None:
            wanted = f"{wanted} or 4, with channels first or last"
        raise VolumeError(key, f"shape {shape} has {len(shape)} axes", f"expected {wanted}")
    if declared is None:
        declared = _stored_axis(axes)
    if declared is None:
        declared = _only_reading(shape, channels, key)
    count = shape[0] if declared == "first" else shape[3]
    if channels not in ("any", count):
        found = f"shape {shape} has {count} channels on its {declared} axis"
        raise VolumeError(key, found, f"expected {channels}")
    return declared


def channel_last_to_first(block: np.ndarray[Any, Any], axis: ChannelAxis | None) -> np.ndarray:
    """Bring what was read into the form (C, Z, Y, X)."""
    if axis is None:
        return block[None]
    return np.moveaxis(block, 3, 0) if axis == "last" else block


def _check_order(shape: tuple[int, ...], axes: tuple[str, ...] | None, key: str) -> None:
    """Refuse stores that say their spatial axes are in another order."""
    if axes is None or len(axes) != len(shape) or not {"z", "y", "x"} <= set(axes):
        return
    spatial = [name for name in axes if name in "zyx"]
    if spatial != ["z", "y", "x"]:
        found = f"the store names its axes ({', '.join(axes)})"
        raise VolumeError(key, found, "expected the order z, y, x; transpose the array")


def _stored_axis(axes: tuple[str, ...] | None) -> ChannelAxis | None:
    if axes is None or len(axes) != 4:
        return None
    if axes[1:] == ("z", "y", "x"):
        return "first"
    return "last" if axes[:3] == ("z", "y", "x") else None


def _only_reading(shape: tuple[int, ...], channels: Channels, key: str) -> ChannelAxis:
    """The side on which the number of channels fits, when it fits on one side only."""
    fits: list[ChannelAxis] = []
    if channels in ("any", shape[0]):
        fits.append("first")
    if channels in ("any", shape[3]):
        fits.append("last")
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
