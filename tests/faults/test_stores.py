"""1,000 damaged stores in full: what is read is right, or one line names what is not."""

import random
import shutil

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from vcmodels.errors import VcmodelsError
from vcmodels.geometry.boxes import Box
from vcmodels.volumes import Storage, create_array, open_volume

SHAPE, CHUNKS = (12, 14, 9), (4, 5, 3)
FOREIGN = [
    {"zarr_format": 2, "compressors": numcodecs.GZip()},
    {"zarr_format": 2, "compressors": numcodecs.Zstd(checksum=True)},
    {"zarr_format": 3, "compressors": GzipCodec()},
    {"zarr_format": 3, "compressors": ZstdCodec(checksum=True)},
    {"zarr_format": 3, "compressors": ZstdCodec(checksum=True), "shards": (8, 10, 6)},
]
"""Codecs that notice a changed byte."""
BLIND = [
    {"zarr_format": 2, "compressors": numcodecs.Blosc()},
    {"zarr_format": 3, "compressors": BloscCodec()},
    {"zarr_format": 3, "compressors": None},
]
"""Codecs that do not."""


def values() -> np.ndarray:
    return np.random.default_rng(0).normal(120, 20, SHAPE).astype(np.uint8)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Stores without damage, and which of them notice a changed byte."""
    folder = tmp_path_factory.mktemp("sound")
    stores = []
    for index, options in enumerate([*FOREIGN, *BLIND]):
        array = zarr.create_array(
            folder / str(index), shape=SHAPE, chunks=CHUNKS, dtype="u1", **options
        )
        array[...] = values()
        stores.append((folder / str(index), index < len(FOREIGN)))
    for version, shards in ((2, None), (3, None), (3, (8, 10, 6))):
        name = f"own{len(stores)}"
        storage = Storage(version, shards=shards)
        array = create_array(
            str(folder / name), "raw", shape=SHAPE, chunks=CHUNKS, dtype="u1", storage=storage
        )
        array.write(Box((0, 0, 0), SHAPE), values()[None])
        stores.append((folder / name / "raw", True))
    return stores


def damage(rng: random.Random, files: list) -> str:
    """Do something to one of the files; what."""
    file = rng.choice(files)
    whole = file.read_bytes()
    match kind := rng.choice(["cut", "flip", "random", "empty", "folder", "link", "lengthen"]):
        case "cut":
            file.write_bytes(whole[: rng.randrange(len(whole))])
        case "flip":
            at = rng.randrange(len(whole))
            file.write_bytes(
                whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :]
            )
        case "random":
            file.write_bytes(rng.randbytes(len(whole)))
        case "empty":
            file.write_bytes(b"")
        case "folder":
            file.unlink()
            file.mkdir()
        case "link":
            file.unlink()
            file.symlink_to(file.with_name("nowhere"))
        case "lengthen":
            file.write_bytes(whole + rng.randbytes(9))
    return kind


@pytest.mark.parametrize("part", ["chunks", "metadata"])
def test_a_damaged_store_is_read_right_or_named(tmp_path, sound, count, part):
    rng, wrong = random.Random(part), 0
    for number in range(count(500)):
        source, notices = rng.choice(sound)
        store = tmp_path / "store.zarr"
        shutil.copytree(source.parent if source.name == "raw" else source, store)
        array = store / "raw" if source.name == "raw" else store
        files = sorted(file for file in array.rglob("*") if file.is_file())
        is_metadata = {f: f.name in (".zarray", ".zattrs", "zarr.json") for f in files}
        what = damage(rng, [f for f in files if is_metadata[f] == (part == "metadata")])
        found = read_or_refuse(str(array))
        if isinstance(found, str):
            assert "\n" not in found, (number, what)
        else:
            is_same = found.shape[1:] == SHAPE and np.array_equal(found[0], values())
            assert is_same or not notices or part == "metadata", (number, what, source)
            wrong += not is_same
        shutil.rmtree(store)
    # A foreign codec without a checksum cannot tell; a changed name of an attribute is no damage.
    assert wrong < count(500) / 4


def read_or_refuse(location: str) -> np.ndarray | str:
    try:
        volume = open_volume(location, key="input")
        return volume.read(volume.box)
    except VcmodelsError as error:
        return str(error)
