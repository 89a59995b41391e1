"""Decompression that never gives more than a chunk may hold, whatever its bytes say.

A few kilobytes can unpack to gigabytes. What a decoder would give is asked of the header where the
format has one (zstd, blosc, lz4: RFC 8878; the headers of Blosc 1 and of numcodecs), before any
memory is taken; the others are unpacked up to the limit. Codecs that keep the size pass as they are.
"""

import asyncio
import bz2
import lzma
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from zarr.abc.codec import BytesBytesCodec, Codec
from zarr.codecs import ShardingCodec
from zarr.core.buffer.cpu import as_numpy_array_wrapper
from zarr.core.codec_pipeline import BatchedCodecPipeline

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer

EXCESS = 1 << 20
"""Bytes that a chunk may unpack to beyond those of its voxels: the checksums of inner codecs."""
UNKNOWN_EXCESS = 1 << 26
"""The same where a zstd frame does not state its size, and is counted in blocks of 128 KiB."""
_WIDEST = 8
"""Bytes of a voxel, at most, between the filters of version 2."""


_Bytes = bytes | memoryview | np.ndarray[Any, Any]


class _Numcodec(Protocol):
    """What is used of a codec of numcodecs."""

    codec_id: str

    def decode(self, buf: _Bytes) -> _Bytes: ...


class _Stream(Protocol):
    """What is used of the decompressors of the standard library."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


_Unpack = Callable[[_Numcodec, memoryview, int], _Bytes]
"""What some bytes unpack to, by a codec, where that is at most so many bytes."""


def bound_decoding(array: object) -> None:
    """Make an open zarr array decode within bounds; what it reads stays the same.

    A pipeline that the user has put in the place of zarr's own is left alone.
    """
    opened = cast("Any", array)._async_array
    pipeline = opened.codec_pipeline
    if type(pipeline) is not BatchedCodecPipeline:
        return
    if opened.metadata.zarr_format == 2:
        voxels, size = prod(opened.chunks), opened.dtype.itemsize
        most = voxels * (max(size, _WIDEST) if opened.metadata.filters else size) + EXCESS
        codecs = [_bounded_v2(codec, most) for codec in pipeline]
    else:
        codecs = _bounded_v3(pipeline)
    bounded = BatchedCodecPipeline.from_codecs(codecs)
    object.__setattr__(opened, "codec_pipeline", bounded)


def _bounded_v2(v2: object, most: int) -> Codec:
    """The one codec of a version 2 array, with filters and compressor that keep to a limit."""
    codec = cast("Any", v2)
    filters = codec.filters and tuple(_BoundedFilter(f, most) for f in codec.filters)
    compressor = codec.compressor and _BoundedFilter(codec.compressor, most)
    return type(codec)(filters=filters, compressor=compressor)


@dataclass(frozen=True)
class _BoundedFilter:
    """A filter or compressor of version 2, as its pipeline calls it to decode."""

    codec: _Numcodec
    most: int

    def decode(self, buf: _Bytes) -> _Bytes:
        unpack = _UNPACK.get(self.codec.codec_id)
        if unpack is None:
            return self.codec.decode(buf)
        return unpack(self.codec, _view(buf), self.most)


def _bounded_v3(codecs: Iterable[Codec]) -> list[Codec]:
    return [_bounded(codec) for codec in codecs]


def _bounded(codec: Codec) -> Codec:
    if isinstance(codec, ShardingCodec):
        return ShardingCodec(
            chunk_shape=codec.chunk_shape,
            codecs=_bounded_v3(codec.codecs),
            index_codecs=codec.index_codecs,
            index_location=codec.index_location,
        )
    inner = next((getattr(codec, n) for n in _INNER if hasattr(codec, n)), None)
    if inner is None or inner.codec_id not in _UNPACK or not isinstance(codec, BytesBytesCodec):
        return codec
    return _BoundedCodec(codec, inner)


_INNER = ("_zstd_codec", "_gzip_codec", "_blosc_codec", "_codec")
"""Where codecs of version 3 have that of numcodecs which does the work."""


@dataclass(frozen=True)
class _BoundedCodec(BytesBytesCodec):
    """A compressor of version 3 that decodes within the bytes of its chunk."""

    codec: BytesBytesCodec
    inner: _Numcodec
    is_fixed_size = False

    async def _decode_single(self, chunk_data: "Buffer", chunk_spec: "ArraySpec") -> "Buffer":
        size = prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize
        unpack = cast("Any", partial(self._unpack, most=size + EXCESS))
        return await asyncio.to_thread(
            as_numpy_array_wrapper, unpack, chunk_data, chunk_spec.prototype
        )

    def _unpack(self, data: _Bytes, most: int) -> _Bytes:
        return _UNPACK[self.inner.codec_id](self.inner, _view(data), most)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: "ArraySpec") -> int:
        return self.codec.compute_encoded_size(input_byte_length, chunk_spec)

    def to_dict(self) -> dict[str, Any]:
        return self.codec.to_dict()


def _view(data: _Bytes) -> memoryview:
    """Any buffer as bytes."""
    return memoryview(cast("Any", np.asarray(data))).cast("B")


def _require(size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"it unpacks to {size:,} bytes and may hold {most:,}")


def _zstd(codec: _Numcodec, data: memoryview, most: int) -> _Bytes:
    size, is_stated = zstd_size(data)
    _require(size, most if is_stated else most + UNKNOWN_EXCESS)
    return codec.decode(data)


def zstd_size(data: memoryview) -> tuple[int, bool]:
    """The most bytes that zstd frames can unpack to, and whether all frames state their size.

    Frames that are cut short count as far as they go; the decoder refuses them. That costs some
    microseconds, and one for each block of 128 KiB.
    """
    total, at, is_stated = 0, 0, True
    while at + 5 <= len(data):
        magic = int.from_bytes(data[at : at + 4], "little")
        if magic & 0xFFFFFFF0 == _SKIPPABLE:
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
            continue
        at, stated, has_checksum = zstd_header(data, at)
        at, most = _zstd_blocks(data, at)
        at += 4 * has_checksum
        total += most if stated is None else stated
        is_stated &= stated is not None
    return total, is_stated


_SKIPPABLE = 0x184D2A50
LONGEST_HEADER = 18
_ZSTD_BLOCK = 1 << 17


def zstd_header(data: memoryview, at: int) -> tuple[int, int | None, bool]:
    """Where the blocks of a frame begin, its stated size, and whether a checksum follows them.

    RFC 8878, 3.1.1.1; the first `LONGEST_HEADER` bytes of a frame are enough.
    """
    descriptor = data[at + 4]
    is_single = bool(descriptor & 0x20)
    at += 5 + (not is_single) + (0, 1, 2, 4)[descriptor & 3]
    width = (int(is_single), 2, 4, 8)[descriptor >> 6]
    stated = int.from_bytes(data[at : at + width], "little") if width else None
    if stated is not None and width == 2:
        stated += 256
    return at + width, stated, bool(descriptor & 4)


def _zstd_blocks(data: memoryview, at: int) -> tuple[int, int]:
    """Where the blocks of a frame end, and the most that they unpack to."""
    most = 0
    while at < len(data):
        header = int.from_bytes(data[at : at + 3], "little")
        is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
        at += 3 + (1 if kind == 1 else size)  # kind 1: one byte that is repeated
        most += _ZSTD_BLOCK if kind == 2 else size
        if is_last:
            break
    return at, most


def _blosc(codec: _Numcodec, data: memoryview, most: int) -> _Bytes:
    _require(int.from_bytes(data[4:8], "little"), most)
    return codec.decode(data)


def _lz4(codec: _Numcodec, data: memoryview, most: int) -> _Bytes:
    _require(int.from_bytes(data[:4], "little"), most)
    return codec.decode(data)


def _packbits(codec: _Numcodec, data: memoryview, most: int) -> _Bytes:
    _require(8 * len(data), most)
    return codec.decode(np.asarray(data))


def _gzip(_codec: _Numcodec, data: memoryview, most: int) -> bytes:
    return _streamed(lambda: zlib.decompressobj(31), data, most, padded=True)


def _zlib(_codec: _Numcodec, data: memoryview, most: int) -> bytes:
    return _streamed(zlib.decompressobj, data, most, most_streams=1)


def _bz2(_codec: _Numcodec, data: memoryview, most: int) -> bytes:
    return _streamed(bz2.BZ2Decompressor, data, most)


def _lzma(codec: _Numcodec, data: memoryview, most: int) -> bytes:
    options = cast("Any", codec)
    memory = None if options.format == lzma.FORMAT_RAW else most + _LZMA_MEMORY
    make = partial(lzma.LZMADecompressor, options.format, memory, options.filters)
    return _streamed(make, data, most)


_LZMA_MEMORY = 1 << 27
"""Beyond the chunk: the dictionary of the highest preset takes 64 MiB."""


def _streamed(
    make: Callable[[], _Stream],
    data: memoryview,
    most: int,
    *,
    padded: bool = False,
    most_streams: int | None = None,
) -> bytes:
    """What one or several streams unpack to.

    Args:
        make: a decompressor of the standard library.
        data: the streams, one after the other.
        most: bytes that may come out.
        padded: zeros may follow the last stream.
        most_streams: what follows these is ignored.

    Raises:
        ValueError: more would come out.
        EOFError: a stream is cut short.
    """
    found: list[bytes] = []
    size, rest = 0, bytes(data)
    while not found or (rest and len(found) != most_streams):
        stream = make()
        found.append(stream.decompress(rest, most - size + 1))
        size += len(found[-1])
        if size > most:
            raise ValueError(f"it unpacks to more than the {most:,} bytes that it may hold")
        if not stream.eof:
            raise EOFError("the compressed stream is cut short")
        rest = stream.unused_data.lstrip(b"\0") if padded else stream.unused_data
    return found[0] if len(found) == 1 else b"".join(found)


_UNPACK: dict[str, _Unpack] = {
    "zstd": _zstd,
    "blosc": _blosc,
    "lz4": _lz4,
    "packbits": _packbits,
    "gzip": _gzip,
    "zlib": _zlib,
    "bz2": _bz2,
    "lzma": _lzma,
}
