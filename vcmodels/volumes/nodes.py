"""The zarr nodes (arrays and groups) of a store as plain JSON documents, and the axes of an array.

zarr is not asked here: it raises five kinds of error for damaged metadata, none of which names the
file, and opening a group as an array only fails after the fact.
"""

import json
import os
import stat
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


class MetadataError(VolumeError):
    """The metadata of a node is damaged, or of a version that this reader does not know."""


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
    if _is_absent(location):
        return None
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


def _is_absent(location: str) -> bool:
    """Whether there is no such local folder: one look in the place of one for each metadata file."""
    if is_remote(location):
        return False
    try:
        return not stat.S_ISDIR(Path(location).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):  # whoever reads in it says what is wrong
        return False


def group_attributes(location: str) -> dict[str, Any]:
    """The attributes of a group.

    Raises:
        FileNotFoundError: there is no group.
        MetadataError: its metadata is damaged.
        VolumeError: it cannot be read.
    """
    node = read_node(location, location)
    if node is None or node.kind != "group":
        raise FileNotFoundError(location)
    return node.attributes


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
        raise MetadataError(key, f"{path} is not JSON ({reason})", "restore the file") from error
    if not isinstance(document, dict):
        raise MetadataError(key, f"{path} holds no JSON object", "restore the file")
    return cast("dict[str, Any]", document)


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _unsupported(location: str, name: str, found: str, key: str) -> MetadataError:
    found = f"{join(location, name)} has {found}, which is not supported"
    return MetadataError(key, found, "use zarr version 2 or 3")


_FILE = "give a zarr folder, or a file of a format that docs/formats.md lists"


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
        return VolumeError(key, f"{location} is a file, not a zarr array", _FILE)
    if not any(path.iterdir()):
        return VolumeError(key, f"{location} is an empty folder", "give a zarr array")
    return VolumeError(key, f"{location} is a folder without zarr metadata", "give a zarr array")


def _is_v3_array(folder: Path) -> bool:
    try:
        document = json.loads((folder / "zarr.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return _mapping(document).get("node_type") == "array"
