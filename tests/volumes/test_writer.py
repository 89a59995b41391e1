import json
import multiprocessing
import os
import pickle

import numpy as np
import pytest
import zarr

from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import Box
from vcmodels.volumes import (
    Description,
    Grid,
    Storage,
    create_array,
    group_attributes,
    open_volume,
    set_group_attributes,
    write_multiscale_group,
)

ALL = Box((0, 0, 0), (6, 7, 8))


@pytest.mark.parametrize(
    ("version", "shards"), [(2, None), (3, None), (3, (4, 6, 6))], ids=["v2", "v3", "sharded"]
)
def test_what_is_written_reads_back_here_and_with_zarr(tmp_path, stores, version, shards):
    root = str(tmp_path / "out.zarr")
    array = create_array(
        root,
        "some/sheet",
        shape=(6, 7, 8),
        chunks=(2, 3, 3),
        dtype=">u2",
        attributes={"task": "x"},
        grid=Grid((1, 2, 3), unit="micrometer"),
        storage=Storage(version, shards=shards),
    )
    data = stores.numbers()
    pickle.loads(pickle.dumps(array)).write(Box((0, 0, 0), (4, 7, 8)), data[None, :4])
    array.write(Box((4, 0, 0), (2, 7, 8)), data[None, 4:])
    volume = open_volume(f"{root}/some/sheet", key="k")
    np.testing.assert_array_equal(volume.read(volume.box)[0], data)
    assert (volume.spacing, volume.unit) == ((1, 2, 3), "micrometer")
    assert volume.attributes["task"] == "x"
    plain = zarr.open_group(root, mode="r", zarr_format=version)["some/sheet"]
    np.testing.assert_array_equal(plain[...], data)
    assert plain.shards == shards


ZSTD_WITH_CHECKSUM = 0x04
"""The bit of a frame's fifth byte (RFC 8878, 3.1.1.1.1)."""


def test_chunks_carry_a_checksum_of_which_metadata_of_version_2_is_silent(tmp_path):
    data = np.arange(336, dtype="u1").reshape(1, 6, 7, 8)
    codecs = {}
    for version, first in ((2, "0/0/0"), (3, "c/0/0/0")):
        root = tmp_path / f"{version}.zarr"
        array = create_array(
            str(root), "a", shape=(6, 7, 8), chunks=(2, 3, 3), dtype="u1", storage=Storage(version)
        )
        pickle.loads(pickle.dumps(array)).write(ALL, data)
        array.write(ALL, data)
        frame = (root / "a" / first).read_bytes()
        assert frame[:4] == bytes.fromhex("28b52ffd")
        assert frame[4] & ZSTD_WITH_CHECKSUM
        codecs[version] = json.loads((root / "a" / NAMES[version]).read_text())
    assert codecs[2]["compressor"] == {"id": "zstd", "level": 3}
    assert codecs[3]["codecs"][-1]["configuration"] == {"level": 3, "checksum": True}


NAMES = {2: ".zarray", 3: "zarr.json"}


def test_arrays_of_before_that_name_the_checksum_in_version_2_are_read_and_written(tmp_path):
    data = np.arange(336, dtype="u1").reshape(1, 6, 7, 8)
    array = create_array(
        str(tmp_path), "a", shape=(6, 7, 8), chunks=(2, 3, 3), dtype="u1", storage=Storage(2)
    )
    document = json.loads((tmp_path / "a" / ".zarray").read_text())
    document["compressor"]["checksum"] = True
    (tmp_path / "a" / ".zarray").write_text(json.dumps(document))
    array.write(ALL, data)
    assert (tmp_path / "a" / "0/0/0").read_bytes()[4] & ZSTD_WITH_CHECKSUM
    np.testing.assert_array_equal(open_volume(array.location, key="k").read(ALL), data)


@pytest.mark.parametrize("channels", [3, 1])
def test_channels_are_stored_first(tmp_path, stores, channels):
    root = str(tmp_path / "out.zarr")
    data = stores.numbers((channels, 6, 7, 8))
    array = create_array(root, "n", shape=data.shape, chunks=(channels, 2, 3, 3), dtype=data.dtype)
    array.write(ALL, data)
    volume = open_volume(f"{root}/n", key="k", channels="any")
    assert volume.axes.channel == 0
    np.testing.assert_array_equal(volume.read(ALL), data)


@pytest.mark.parametrize("empty", [True, False])
def test_empty_chunks_are_written_only_when_asked(tmp_path, empty):
    array = create_array(
        str(tmp_path / "o.zarr"),
        "a",
        shape=(6, 7, 8),
        chunks=(2, 3, 3),
        dtype="u1",
        storage=Storage(write_empty_chunks=empty),
    )
    pickle.loads(pickle.dumps(array)).write(ALL, np.zeros((1, 6, 7, 8), "u1"))
    assert open_volume(array.location, key="k").missing_blocks() == (0 if empty else 27)


def test_the_one_empty_chunk_of_a_box_is_not_stored(tmp_path):
    array = create_array(
        str(tmp_path / "o.zarr"), "a", shape=(2, 6, 7, 8), chunks=(1, 2, 3, 3), dtype="f4"
    )
    data = np.full((2, 6, 7, 8), np.nan, "f4")
    data[1, 2:4, 3:6, 6:] = 0
    array.write(ALL, data)
    assert open_volume(array.location, key="k", channels="any").missing_blocks() == 1
    data[1, 2, 3, 6] = 1
    array.write(ALL, data)
    assert open_volume(array.location, key="k", channels="any").missing_blocks() == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_other_processes_write_their_own_chunks(tmp_path, stores, start):
    data = stores.numbers()
    array = create_array(
        str(tmp_path / "o.zarr"), "a", shape=(6, 7, 8), chunks=(2, 3, 3), dtype="u2"
    )
    array.write(Box((0, 0, 0), (2, 7, 8)), data[None, :2])
    with multiprocessing.get_context(start).Pool(2) as pool:
        jobs = [
            pool.apply_async(array.write, (Box((z, 0, 0), (2, 7, 8)), data[None, z : z + 2]))
            for z in (2, 4)
        ]
        for job in jobs:
            job.get(timeout=60)
    np.testing.assert_array_equal(open_volume(array.location, key="k").read(ALL)[0], data)


@pytest.mark.parametrize(
    ("version", "shards", "channels"),
    [(2, None, None), (2, None, 3), (3, None, 3), (3, (4, 6, 6), None)],
)
def test_the_files_of_a_box_are_those_that_writing_it_makes(
    tmp_path, monkeypatch, version, shards, channels
):
    lead = () if channels is None else (channels,)
    array = create_array(
        str(tmp_path),
        "a",
        shape=(*lead, 6, 7, 8),
        chunks=(*lead, 2, 3, 3),
        dtype="u1",
        storage=Storage(version, shards=shards),
    )
    box = Box((0, 3, 0), (4, 3, 8)) if shards is None else Box((0, 0, 0), (4, 6, 8))
    before = set(tmp_path.rglob("*"))
    array.write(box, np.ones((channels or 1, *box.shape), np.uint8))
    made = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert set(array.files(box)) == made
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    array.sync(ALL)
    wanted = made | {path.parent for path in made}
    assert set(synced) == {path.stat().st_ino for path in wanted}


def test_wrong_writes_are_refused(tmp_path):
    array = create_array(
        str(tmp_path / "o.zarr"), "a", shape=(6, 7, 8), chunks=(2, 3, 3), dtype="u1"
    )
    with pytest.raises(ValueError, match="holds uint8, got float32"):
        array.write(ALL, np.zeros((1, 6, 7, 8), "f4"))
    with pytest.raises(ValueError, match="expected shape"):
        array.write(ALL, np.zeros((1, 8, 7, 6), "u1"))
    with pytest.raises(ValueError, match="not inside"):
        array.write(Box((1, 0, 0), (6, 7, 8)), np.zeros((1, 6, 7, 8), "u1"))


@pytest.mark.parametrize(
    "name", ["../x", "/abs", "a\\b", ".", "", "a//b", "a/../b", ".zarray", "a\0"]
)
def test_names_that_leave_the_store_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="array name"):
        create_array(str(tmp_path / "o.zarr"), name, shape=(6, 7, 8), chunks=(2, 3, 3), dtype="u1")
    assert not list(tmp_path.iterdir())


def test_an_existing_array_or_a_store_of_another_version_is_never_touched(tmp_path):
    root = str(tmp_path / "o.zarr")
    options = {"shape": (6, 7, 8), "chunks": (2, 3, 3), "dtype": "u1"}
    create_array(root, "a", **options).write(ALL, np.ones((1, 6, 7, 8), "u1"))
    with pytest.raises(OutputError, match="exists already"):
        create_array(root, "a", **options)
    with pytest.raises(OutputError, match="version 2 group, not version 3"):
        create_array(root, "b", **options, storage=Storage(3))
    with pytest.raises(OutputError, match="https://b/x: cannot be written to; give a local folder"):
        create_array("https://b/x", "b", **options)
    with pytest.raises(ValueError, match="shards need zarr_format=3"):
        create_array(root, "b", **options, storage=Storage(shards=(4, 6, 6)))
    assert open_volume(f"{root}/a", key="k").read(ALL).all()


@pytest.mark.parametrize("version", [2, 3])
def test_an_image_group_follows_ngff(tmp_path, version):
    root = str(tmp_path / "o.zarr")
    location = f"{root}/sheet"
    for level, shape in enumerate([(3, 6, 8, 8), (3, 3, 4, 4)]):
        create_array(
            root,
            f"sheet/{level}",
            shape=shape,
            chunks=(3, 2, 2, 2),
            dtype="u1",
            storage=Storage(version),
        )
    grid = Grid((2, 1, 1), (10, 0, 0), "micrometer", ("c", "z", "y", "x"))
    levels = {"0": (1, 1, 1), "1": (2, 2, 2)}
    write_multiscale_group(
        location, grid, Description("sheet", {"made": "here"}), levels=levels, zarr_format=version
    )
    stored = group_attributes(location)
    assert stored["made"] == "here"
    (image,) = (stored if version == 2 else stored["ome"])["multiscales"]
    assert (image if version == 2 else stored["ome"])["version"] == (
        "0.4" if version == 2 else "0.5"
    )
    assert [a["name"] for a in image["axes"]] == ["c", "z", "y", "x"]
    assert image["axes"][0] == {"name": "c", "type": "channel"}
    assert image["axes"][1] == {"name": "z", "type": "space", "unit": "micrometer"}
    transforms = image["datasets"][1]["coordinateTransformations"]
    assert transforms[0] == {"type": "scale", "scale": [1.0, 4, 2, 2]}
    assert transforms[1] == {"type": "translation", "translation": [0.0, 11.0, 0.5, 0.5]}
    volume = open_volume(location, key="k", level=1, channels=3)
    assert (volume.spacing, volume.offset, volume.unit) == ((4, 2, 2), (11, 0.5, 0.5), "micrometer")


def test_group_attributes_are_added_and_kept(tmp_path):
    root = str(tmp_path / "o.zarr")
    set_group_attributes(root, {"a": 1}, zarr_format=3)
    set_group_attributes(root, {"b": [2]})
    assert group_attributes(root) == {"a": 1, "b": [2]}
    assert json.loads((tmp_path / "o.zarr" / "zarr.json").read_text())["node_type"] == "group"
