"""Whatever the bytes of a chunk say, it unpacks to no more than its voxels and a little."""

import bz2
import gzip
import json
import lzma
import struct
import tracemalloc
import zlib

import numcodecs
import numpy as np
import pytest

from vcmodels.geometry.boxes import Box
from vcmodels.volumes import ChunkError, open_volume
from vcmodels.volumes.decoding import EXCESS, UNKNOWN_EXCESS, zstd_size

SHAPE = (6, 7, 8)
BLOCK = 1 << 17
LONG = 1 << 27
ZEROS = np.zeros(LONG, np.uint8)


def frame(size: int, stated: int | None) -> bytes:
    """A zstd frame of sevens in blocks of one repeated byte, by the letter of RFC 8878."""
    descriptor = 0 if stated is None else 0b11 << 6
    header = struct.pack("<IBB", 0xFD2FB528, descriptor, 0x58)
    header += b"" if stated is None else struct.pack("<Q", stated)
    blocks = [BLOCK] * (size // BLOCK) + [size % BLOCK]
    last = len(blocks) - 1
    return header + b"".join(
        struct.pack("<I", n << 3 | 1 << 1 | (i == last))[:3] + b"\7" for i, n in enumerate(blocks)
    )


SKIPPED = struct.pack("<II", 0x184D2A53, 4) + b"text"
BOMBS = {
    "zstd": ("zstd", numcodecs.Zstd().encode(ZEROS)),
    "zstd without a size": ("zstd", frame(LONG, None)),
    "zstd that states too much": ("zstd", frame(6 * 7 * 8, 1 << 50)),
    "zstd that states too little": ("zstd", frame(LONG, 6 * 7 * 8)),
    "zstd in the second frame": ("zstd", frame(6 * 7 * 8, 6 * 7 * 8) + frame(LONG, None)),
    "zstd behind what is skipped": ("zstd", SKIPPED + frame(LONG, LONG)),
    "gzip": ("gzip", gzip.compress(ZEROS)),
    "gzip in the second stream": ("gzip", gzip.compress(b"0" * 6 * 7 * 8) + gzip.compress(ZEROS)),
    "zlib": ("zlib", zlib.compress(ZEROS)),
    "bz2": ("bz2", bz2.compress(ZEROS)),
    "lzma": ("lzma", lzma.compress(ZEROS, preset=0)),
    "blosc": ("blosc", numcodecs.Blosc().encode(ZEROS)),
    "lz4": ("lz4", numcodecs.LZ4().encode(ZEROS)),
    "lz4 that states too much": ("lz4", struct.pack("<I", 0x7FFFFFFF) + b"abc"),
    "packbits": ("packbits", bytes(LONG // 8)),
}
BLOSC = {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0}
SETTINGS_3 = {
    "zstd": ("zstd", {"level": 0, "checksum": False}),
    "gzip": ("gzip", {"level": 1}),
    "blosc": ("blosc", BLOSC),
}


def array_2(path, compressor, filters, data):
    path.mkdir()
    document = {
        "zarr_format": 2, "shape": SHAPE, "chunks": SHAPE, "dtype": "|u1", "order": "C",
        "compressor": compressor, "filters": filters, "fill_value": 0,
    }  # fmt: skip
    (path / ".zarray").write_text(json.dumps(document))
    (path / "0.0.0").write_bytes(data)
    return str(path)


def array_3(path, name, data, *, is_sharded):
    (path / "c/0/0").mkdir(parents=True)
    codec, settings = SETTINGS_3.get(name, (f"numcodecs.{name}", {}))
    codecs = [{"name": "bytes"}, {"name": codec, "configuration": settings}]
    if is_sharded:
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        inner = {"chunk_shape": (3, 7, 8), "codecs": codecs, "index_codecs": [little]}
        codecs = [{"name": "sharding_indexed", "configuration": inner}]
        data = data + struct.pack("<4Q", 0, len(data), 2**64 - 1, 2**64 - 1)
    document = {
        "zarr_format": 3, "node_type": "array", "shape": SHAPE, "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": SHAPE}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": codecs, "fill_value": 0, "attributes": {},
    }  # fmt: skip
    (path / "zarr.json").write_text(json.dumps(document))
    (path / "c/0/0/0").write_bytes(data)
    return str(path)


def made(path, where, name, data):
    if where == "compressor":
        return array_2(path, {"id": name}, None, data)
    if where == "filter":
        return array_2(path, None, [{"id": name}], data)
    if where == "filter below a compressor":
        return array_2(path, {"id": "zlib"}, [{"id": name}], zlib.compress(data))
    return array_3(path, name, data, is_sharded=where == "shard")


WAYS = ["compressor", "filter", "filter below a compressor", "version 3", "shard"]


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
@pytest.mark.parametrize("where", WAYS)
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_chunk_that_unpacks_to_too_much_is_damaged_and_takes_no_memory(tmp_path, where, bomb):
    name, data = BOMBS[bomb]
    if name == "packbits" and where in ("version 3", "shard"):
        pytest.skip("a filter, not a compressor")
    volume = open_volume(made(tmp_path / "a", where, name, bytes(data)))
    tracemalloc.start()
    try:
        with pytest.raises(ChunkError, match=r"\(0, 0, 0\): .* cannot be read "):
            volume.read(Box((0, 0, 0), (3, 7, 8)))
        assert tracemalloc.get_traced_memory()[1] < 1.5 * UNKNOWN_EXCESS
    finally:
        tracemalloc.stop()


CODECS = [
    numcodecs.Zstd(), numcodecs.GZip(), numcodecs.Zlib(), numcodecs.BZ2(), numcodecs.LZMA(),
    numcodecs.LZMA(format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 1}]),
    numcodecs.LZ4(), numcodecs.Blosc(cname="zlib", shuffle=2),
]  # fmt: skip


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("dtype", ["<u2", ">i4"])
def test_what_is_no_bomb_reads_as_before_through_filters_too(tmp_path, codec, dtype):
    values = np.random.default_rng(0).integers(0, 99, SHAPE).astype(dtype)
    filters = [numcodecs.Delta(dtype, astype="<i8"), numcodecs.Shuffle(8)]
    data = values
    for one in (*filters, codec):
        data = one.encode(data)
    location = array_2(
        tmp_path / "a", codec.get_config(), [f.get_config() for f in filters], bytes(data)
    )
    document = json.loads((tmp_path / "a" / ".zarray").read_text())
    (tmp_path / "a" / ".zarray").write_text(json.dumps({**document, "dtype": dtype}))
    np.testing.assert_array_equal(open_volume(location).read(Box((0, 0, 0), SHAPE))[0], values)


def test_streams_may_follow_each_other_and_be_padded(tmp_path):
    values = np.random.default_rng(0).integers(0, 99, SHAPE).astype(np.uint8)
    first, rest = values.tobytes()[:100], values.tobytes()[100:]
    for name, module in (("gzip", gzip), ("bz2", bz2), ("lzma", lzma)):
        data = module.compress(first) + module.compress(rest) + bytes(5 * (name == "gzip"))
        volume = open_volume(array_2(tmp_path / name, {"id": name}, None, data))
        np.testing.assert_array_equal(volume.read(volume.box)[0], values)
    data = numcodecs.Zstd().encode(first) + SKIPPED + numcodecs.Zstd().encode(rest)
    volume = open_volume(array_2(tmp_path / "zstd", {"id": "zstd"}, None, data))
    np.testing.assert_array_equal(volume.read(volume.box)[0], values)


@pytest.mark.parametrize("stated", [None, 3 * BLOCK + 5])
def test_the_size_of_zstd_frames_is_read_from_their_headers(stated):
    size = 3 * BLOCK + 5
    frames = frame(size, stated) + SKIPPED + numcodecs.Zstd(checksum=True).encode(ZEROS[:300])
    assert zstd_size(memoryview(frames)) == (size + 300, stated is not None)
    assert len(numcodecs.Zstd().decode(frames)) == size + 300
    noise = np.random.default_rng(0).integers(0, 9, 2 * BLOCK).astype(np.uint8)
    for level in (1, 19):
        assert zstd_size(memoryview(numcodecs.Zstd(level).encode(noise))) == (len(noise), True)
    for end in range(len(frames)):  # cut anywhere: no crash, and never more than the whole
        assert zstd_size(memoryview(frames[:end]))[0] <= size + 300


def test_a_frame_without_a_size_may_hold_what_its_blocks_do(tmp_path):
    location = array_2(tmp_path / "a", {"id": "zstd"}, None, frame(6 * 7 * 8, None))
    assert (open_volume(location).read(Box((0, 0, 0), SHAPE)) == 7).all()
    assert EXCESS < UNKNOWN_EXCESS
