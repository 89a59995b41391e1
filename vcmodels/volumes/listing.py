"""The stored chunks of an array: from one listing of its files, or asked one by one."""

import hashlib
import importlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

from vcmodels.errors import VolumeError
from vcmodels.geometry.boxes import Shape
from vcmodels.volumes.decoding import LONGEST_HEADER, zstd_header
from vcmodels.volumes.location import is_remote, join
from vcmodels.volumes.nodes import Node
from vcmodels.volumes.remote import (
    FORBIDDEN,
    METADATA,
    RemoteError,
    StoredFile,
    list_files,
    patiently,
    read_bytes,
    remote_files,
)

_ANY_CHUNK = re.compile(r"(c[./])?\d+([./]\d+)*")


@dataclass(frozen=True)
class ChunkNames:
    """How the file of a chunk is named: `0.1.2`, `0/1/2`, `c/0/1/2`, `c.0.1.2`."""

    prefix: str
    separator: str
    counts: tuple[int, ...]
    """How many stored units (chunks, or shards) there are along each axis of the array."""

    @classmethod
    def of(cls, node: Node, counts: tuple[int, ...]) -> "ChunkNames":
        """The naming that the metadata of an array declares."""
        if node.zarr_format == 2:
            return cls("", str(node.document.get("dimension_separator") or "."), counts)
        encoding = cast("dict[str, Any]", node.document.get("chunk_key_encoding") or {})
        options = cast("dict[str, Any]", encoding.get("configuration") or {})
        if encoding.get("name") == "v2":
            return cls("", str(options.get("separator", ".")), counts)
        separator = str(options.get("separator", "/"))
        return cls(f"c{separator}", separator, counts)

    def name(self, index: tuple[int, ...]) -> str:
        """The file of a chunk, relative to the array."""
        return self.prefix + self.separator.join(map(str, index))

    def is_folder(self, name: str) -> bool:
        """Whether chunks lie below a folder of this name."""
        if self.separator != "/":
            return False
        if name == self.prefix.rstrip("/"):
            return bool(name)
        parts = name.removeprefix(self.prefix).split("/")
        is_below = name.startswith(self.prefix) and len(parts) < len(self.counts)
        return is_below and all(part.isdecimal() for part in parts)

    def index(self, name: str) -> tuple[int, ...] | None:
        """The chunk that a file holds; None when it is not a chunk of this array."""
        if not name.startswith(self.prefix):
            return None
        parts = name[len(self.prefix) :].split(self.separator)
        if len(parts) != len(self.counts):
            return None
        if not all(p.isdecimal() and (p == "0" or p[0] != "0") for p in parts):
            return None
        index = tuple(map(int, parts))
        return index if all(i < n for i, n in zip(index, self.counts, strict=True)) else None


@dataclass(frozen=True)
class Listing:
    """The chunk files of which something is read, sorted by chunk index."""

    files: dict[tuple[int, ...], StoredFile]
    spatial: frozenset[tuple[int, int, int]]
    """The spatial part of the indices, for quick look-up."""

    @property
    def empty(self) -> list[tuple[int, ...]]:
        """Chunks that hold nothing: files without a byte, folders, and links that lead nowhere."""
        return [index for index, file in self.files.items() if not file.size]


def list_chunks(
    node: Node, names: ChunkNames, place: Callable[[tuple[int, ...]], Shape | None], key: str
) -> Listing | None:
    """List the stored chunks of an array; None where the store cannot be listed.

    Args:
        node: the array.
        names: its chunk naming.
        place: the (z, y, x) of a chunk by its index; None for one of which nothing is read.
        key: the dotted task key, for messages.

    Raises:
        VolumeError: there are chunks, but all of them are named otherwise; a file, or a link to
            nothing, stands where chunks should lie.
    """
    files = list_files(node.location, key)
    if files is None:
        return None
    found: dict[tuple[int, ...], StoredFile] = {}
    stray = None
    for file in files:
        # A folder in the place of a chunk is stored, too, and nothing can be read there.
        index = names.index(file.name.removesuffix("/"))
        if index is not None:
            found[index] = file
        elif names.is_folder(file.name) and not is_remote(node.location):
            found_at = join(node.location, file.name)
            raise VolumeError(key, f"{found_at} {_NO_FOLDER}", "restore it")
        elif _ANY_CHUNK.fullmatch(file.name):
            stray = file.name
    if stray and not found:
        raise misnamed_error(key, node, names, stray)
    places = {index: place(index) for index in sorted(found)}
    ordered = {index: found[index] for index, at in places.items() if at is not None}
    return Listing(ordered, frozenset(at for at in places.values() if at is not None))


def misnamed_chunk(node: Node, names: ChunkNames, key: str) -> str | None:
    """A file that shows that the chunks are named otherwise than the metadata says.

    zarr reads such an array as zeros without a word. Stops at the first file that settles it.
    """
    stray = None
    for file in list_files(node.location, key) or ():
        if names.index(file.name) is not None:
            return None
        if stray is None and _ANY_CHUNK.fullmatch(file.name):
            stray = file.name
    return stray


def misnamed_error(key: str, node: Node, names: ChunkNames, stray: str) -> VolumeError:
    """A message about an array whose chunks have other names than its metadata says."""
    expected = names.name((0,) * len(names.counts))
    found = (
        f"0 of {prod(names.counts)} chunks found in {node.location}: "
        f"its metadata expects names like {expected}, the files look like {stray}"
    )
    return VolumeError(key, found, "correct the separator in the metadata")


def silent_damage(name: str, node: Node, most: int) -> str | None:
    """What is wrong with a local chunk file that zarr 3.1 and numcodecs 0.16 do not notice.

    A link to nothing, an empty shard and a folder in a chunk's place read as the fill value, and a
    blosc chunk that was cut short can decode to noise (all seen).

    Args:
        name: of the file, relative to the array.
        node: the array.
        most: bytes that a chunk's file can need.

    Returns:
        Words that follow the path of the file; None where there is none, or nothing is wrong.
    """
    path = Path(node.location, name)
    try:
        status = path.stat()
    except OSError as error:
        return _out_of_reach(path, name.count("/"), error)
    size = status.st_size
    if not stat.S_ISREG(status.st_mode):
        return "is a folder" if stat.S_ISDIR(status.st_mode) else "is no file"
    if not size:
        return "is empty"
    if size > most:
        return f"has {size:,} bytes, where a chunk takes at most {most:,}"
    if not _is_blosc(node):
        return None
    with path.open("rb") as file:
        header = file.read(16)
    # Bytes 12 to 15 of a blosc 1 header are the compressed size, header included.
    stated = int.from_bytes(header[12:], "little")
    return None if stated == size else f"has {size} bytes and should have {stated}"


def header_damage(path: Path, node: Node, size: int, inner: int | None) -> str | None:
    """What shows in a few bytes of a local file that it is no whole zstd chunk, or shard.

    Args:
        path: of the file.
        node: the array; None is returned where it is stored otherwise.
        size: bytes of a decoded chunk.
        inner: how many chunks there are in a shard; None where there are no shards.
    """
    if not (_is_zstd(node) if inner is None else _is_indexed_at_end(node)):
        return None
    try:
        with path.open("rb") as file:
            if inner is None:
                return _frame_damage(file.read(LONGEST_HEADER), size)
            return _index_damage(file, inner)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _frame_damage(head: bytes, size: int) -> str | None:
    """The same of the first bytes of a zstd frame."""
    if len(head) < 6 or head[:4] != _ZSTD_MAGIC:
        return "does not begin as a zstd chunk"
    _, stated, _ = zstd_header(memoryview(head), 0)
    return None if stated in (None, size) else f"holds {stated} bytes and should hold {size}"


def _index_damage(file: BinaryIO, inner: int) -> str | None:
    """The same of the index at the end of a shard: 16 bytes for each chunk, and their CRC32C."""
    length = 16 * inner + 4
    if os.fstat(file.fileno()).st_size < length:
        return "is too short for its index"
    file.seek(-length, os.SEEK_END)
    index = file.read()
    is_right = _crc32c.value(index[:-4]) == int.from_bytes(index[-4:], "little")
    return None if is_right else "has a damaged index"


_ZSTD_MAGIC = bytes.fromhex("28b52ffd")
_crc32c: Any = importlib.import_module("google_crc32c")  # it has no types; zarr needs it as well


def _is_zstd(node: Node) -> bool:
    """Whether the files of an array are bare zstd frames."""
    if node.zarr_format == 2:
        compressor = cast("dict[str, Any]", node.document.get("compressor") or {})
        return compressor.get("id") == "zstd" and not node.document.get("filters")
    return [codec.get("name") for codec in _codecs(node)] == ["bytes", "zstd"]


def _is_indexed_at_end(node: Node) -> bool:
    """Whether the files of an array are shards, with a checksummed index where it is by default."""
    codec, *more = _codecs(node)
    options = cast("dict[str, Any]", codec.get("configuration") or {})
    index = [one.get("name") for one in options.get("index_codecs") or ()]
    return not more and index == ["bytes", "crc32c"] and options.get("index_location") == "end"


def _codecs(node: Node) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", node.document.get("codecs") or [{}])


_NO_FOLDER = "is a file, or a link to nothing, where a folder of chunks should be"


def _out_of_reach(path: Path, depth: int, error: OSError) -> str | None:
    """Why a chunk file that cannot be looked at is damaged; None where it is only not stored.

    Args:
        path: the file.
        depth: how many folders are between it and the array.
        error: what looking at it came to.
    """
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"cannot be read ({error.strerror})"
    if path.is_symlink():
        return "is a link to nothing"
    for folder in list(path.parents)[:depth]:
        if folder.is_dir():
            return None
        if folder.is_symlink() or folder.exists():
            return f"cannot be read: {folder} {_NO_FOLDER}"
    return None


def _is_blosc(node: Node) -> bool:
    """Whether the files of an array are bare blosc buffers."""
    if node.zarr_format == 2:
        compressor = cast("dict[str, Any]", node.document.get("compressor") or {})
        return compressor.get("id") == "blosc"
    return _codecs(node)[-1].get("name") == "blosc"


def fingerprint(
    metadata: bytes, choice: str, files: dict[tuple[int, ...], StoredFile] | None
) -> str:
    """A sha256 that changes when what is read does: metadata, choice, chunk names, sizes, stamps."""
    digest = hashlib.sha256(metadata + choice.encode())
    if files is not None:
        for file in sorted(files.values()):
            digest.update(f"\0{file.name}\0{file.size}\0{file.stamp}".encode())
    return digest.hexdigest()


PROBES = 64
"""Requests at a time."""
_BATCH = 16 * PROBES


def probe_chunks(
    location: str, names: ChunkNames, indices: Iterable[tuple[int, ...]]
) -> Iterator[tuple[tuple[int, ...], StoredFile]]:
    """Those of the chunks that exist, in order, with size and ETag (or time).

    Chunks that a server refuses (403) are absent, as long as it gives the array's metadata.

    Raises:
        RemoteError: the server answers neither yes nor no, after some tries.
    """

    def probe(index: tuple[int, ...]) -> StoredFile | RemoteError | None:
        try:
            return _probe(location, names.name(index))
        except RemoteError as error:
            if error.status != FORBIDDEN:
                raise
            return error

    rest = iter(indices)
    with ThreadPoolExecutor(PROBES) as pool:
        while batch := list(islice(rest, _BATCH)):
            files = list(pool.map(probe, batch))
            refused = next((file for file in files if isinstance(file, RemoteError)), None)
            if refused is not None and not _gives_metadata(location):
                raise refused
            for index, file in zip(batch, files, strict=True):
                if isinstance(file, StoredFile):
                    yield index, file


def _gives_metadata(location: str) -> bool:
    """Whether the server still gives what it has: then a chunk that it refuses is absent."""
    return any(read_bytes(location, name, location) is not None for name in METADATA)


def _probe(location: str, name: str) -> StoredFile | None:
    """One file, None when it is not there."""
    place = join(location, name)
    try:
        info = patiently("asked for", place, lambda: remote_files(place).info(place))
    except FileNotFoundError:
        return None
    stamp = next((info[k] for k in ("ETag", "Last-Modified") if k in info), "")
    return StoredFile(name, int(info.get("size") or 0), str(stamp))
