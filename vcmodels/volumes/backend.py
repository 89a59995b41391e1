"""The few doors to zarr, numcodecs and fsspec, typed: their own stubs are partly unknown.

An open zarr array must not cross a fork: the thread of its event loop does not exist in the child,
and the next read never ends. So arrays are held by handles that open them on first
use in each process, and that neither pickle nor fork copies.
"""

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import zarr
from zarr.abc.store import RangeByteRequest
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore, MemoryStore

from vcmodels.volumes.decoding import bound_decoding
from vcmodels.volumes.location import is_remote
from vcmodels.volumes.remote import PatientStore, require_bytes

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

ZarrFormat = Literal[2, 3]


class ZarrArray(Protocol):
    """What is used of `zarr.Array`."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    dtype: np.dtype[Any]
    fill_value: object

    def __getitem__(self, where: tuple[slice, ...]) -> np.ndarray[Any, Any]: ...
    def __setitem__(self, where: tuple[slice, ...], values: np.ndarray[Any, Any]) -> None: ...
    def with_config(self, config: Mapping[str, bool]) -> "ZarrArray": ...


_LOOKED_AT = 1 << 22
"""Bytes of a shard from which its size is asked before they are read, since memory is taken for them."""


class _SoundStore(LocalStore):
    """A folder; what the index of a shard says is compared with the file before it is read."""

    async def get(
        self,
        key: str,
        prototype: "BufferPrototype | None" = None,
        byte_range: "ByteRequest | None" = None,
    ) -> "Buffer | None":
        """Bytes of a file; None when there is none."""
        if not isinstance(byte_range, RangeByteRequest):
            return await super().get(key, prototype, byte_range)
        path = self.root / key
        # A look at the file costs as much as a small chunk; what is read shows its end, too.
        is_long = byte_range.end - byte_range.start > _LOOKED_AT and path.exists()
        require_bytes(byte_range, path.stat().st_size if is_long else None)
        found = await super().get(key, prototype, byte_range)
        if found is not None:
            require_bytes(byte_range, byte_range.start + len(found))
        return found


class ArrayHandle:
    """A zarr array, opened on first use and again in every other process."""

    def __init__(self, location: str, zarr_format: ZarrFormat, mode: Literal["r", "r+"]) -> None:
        self.location, self.zarr_format, self.mode = location, zarr_format, mode
        self._opened: tuple[int, ZarrArray] | None = None

    def array(self) -> ZarrArray:
        """The array, opened in this process."""
        if self._opened is None or self._opened[0] != os.getpid():
            store = _store(self.location, read_only=self.mode == "r")
            array = _zarr.open_array(store=store, mode=self.mode, zarr_format=self.zarr_format)
            if (self.mode, self.zarr_format) == ("r+", 2):
                array = _with_checksums(array)
            if self.mode == "r":
                bound_decoding(array)
            self._opened = (os.getpid(), array)
        return self._opened[1]

    def __reduce__(self) -> tuple[type, tuple[str, int, str]]:
        """Pickle where the array is, not the array."""
        return type(self), (self.location, self.zarr_format, self.mode)


@dataclass(frozen=True)
class Storage:
    """How an array is stored: all but its chunks."""

    zarr_format: ZarrFormat = 2
    """2 (with "/" between chunk indices), or 3."""
    shards: Sequence[int] | None = None
    """Multiples of the chunks; version 3 only."""
    fill_value: float = 0
    """What chunks that are not stored read as."""
    write_empty_chunks: bool = False
    """Also store chunks that hold only the fill value."""
    zstd_level: int = 3
    """1 is three times as fast as 3, and leaves noise a few percent larger."""


PLAIN = Storage()


def array_documents(
    *,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: np.dtype[Any],
    axes: tuple[str, ...],
    attributes: Mapping[str, object],
    storage: Storage,
) -> dict[str, bytes]:
    """The metadata files of an array with zstd chunks, `/` between their indices.

    Version 3 asks for checksums in its metadata. In version 2 a "checksum" there is refused by
    tensorstore, zarrs and zarr 2, and not needed: a zstd frame says itself whether it has one
    (RFC 8878, 3.1.1.1.1), and who writes it decides (`_with_checksums`).
    """
    if storage.zarr_format == 2:
        layout: dict[str, object] = {
            "compressors": _numcodecs.Zstd(level=storage.zstd_level),
            "chunk_key_encoding": {"name": "v2", "separator": "/"},
        }
    else:
        codec = ZstdCodec(level=storage.zstd_level, checksum=True)
        shards = tuple(storage.shards) if storage.shards else None
        layout = {"compressors": codec, "dimension_names": axes, "shards": shards}
    files: dict[str, Any] = {}
    _zarr.create_array(
        MemoryStore(files),
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=storage.fill_value,
        attributes=dict(attributes),
        zarr_format=storage.zarr_format,
        **layout,
    )
    return {name: file.to_bytes() for name, file in files.items()}


_zarr: Any = zarr
_numcodecs: Any = importlib.import_module("numcodecs")  # it has no types


def _with_checksums(array: Any) -> Any:  # noqa: ANN401 - a zarr array
    """The same array, but that writing gives zstd chunks a checksum, of which its metadata is silent."""
    compressor = array.metadata.compressor
    if not isinstance(compressor, _numcodecs.Zstd):
        return array
    codec = _numcodecs.Zstd(level=compressor.level, checksum=True)
    inner = array.async_array
    metadata = replace(array.metadata, compressor=codec)
    return _zarr.Array(_zarr.AsyncArray(metadata, inner.store_path, inner.config))


def _store(location: str, *, read_only: bool) -> PatientStore | LocalStore:
    """A zarr store whose root is the node itself."""
    if is_remote(location):
        return PatientStore.at(location, read_only=read_only)
    return _SoundStore(location, read_only=read_only)
