"""What the viewer's page gets, file by file: read by another library, it is what is stored."""

import json
import re
from itertools import product

import numpy as np
import ome_zarr_models.v05 as ome
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.reporting import Silent
from vcmodels.viewers.looks import Ids, Image
from vcmodels.viewers.scene import Frame, Layer, Scene
from vcmodels.viewers.served import (
    MissingFileError,
    ServedLevel,
    ServedScene,
    as_served,
    served_chunk,
)
from vcmodels.volumes import ArrayVolume, Grid, open_volume, write_volume
from vcmodels.volumes.chunk_cache import ChunkCache
from vcmodels.volumes.levels import StoredLevel, stored_levels

RNG = np.random.default_rng(0)


def scene_of(*arrays: np.ndarray, look=None) -> Scene:
    layers = [
        Layer(
            f"a{n}",
            (StoredLevel(ArrayVolume.of(a, (1.0, 1.0, 1.0), "a")),),
            look or Image((0, 1)),
            Frame(),
        )
        for n, a in enumerate(arrays)
    ]
    return Scene("scene", tuple(layers))


def save(served: ServedScene, number: int, folder) -> None:
    """All files of a layer, written to a folder as a page would ask for them."""

    def write(path: str) -> None:
        place = folder / path.partition("/")[2]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(served.answer(path)[0])

    write(f"{number}/zarr.json")
    for n, level in enumerate(served.levels[number]):
        write(f"{number}/{n}/zarr.json")
        counts = [-(-e // c) for e, c in zip(level.volume.extent, level.chunk, strict=True)]
        for index in product(*([range(1)] if level.has_channels else []), *map(range, counts)):
            write(f"{number}/{n}/c/{'/'.join(map(str, index))}")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16", "bool", "uint64", "float64"])
def test_another_library_reads_the_stored_values(tmp_path, channels, dtype):
    array = (100 * RNG.random((channels, 6, 7, 8))).round().astype(dtype)
    served = ServedScene(scene_of(array))
    served.levels[0][0].__dict__["chunk"] = (4, 4, 3)  # neither divides the extent
    save(served, 0, tmp_path)
    found = zarr.open_array(tmp_path / "0", mode="r")[:]
    np.testing.assert_array_equal(found, array if channels > 1 else array[0])


def test_a_pyramid_is_served_level_by_level_on_the_grid_of_the_first(tmp_path):
    grid = Grid((2.0, 1.0, 1.0), (10.0, 20.0, 30.0), "micrometer")
    array = RNG.integers(0, 255, (20, 33, 40), np.uint8)
    write_volume(str(tmp_path / "a.zarr"), array, grid=grid, chunks=(8, 8, 8))
    finest = open_volume(str(tmp_path / "a.zarr"), key="x")
    levels = stored_levels(finest)
    assert len(levels) > 2
    frame = Frame((4.0, 2.0, 2.0), (0.0, 0.0, 5.0), "nanometer", finest.extent)  # the task's own
    scene = Scene("s", (Layer("a", levels, Image((0, 1)), frame),))
    save(ServedScene(scene), 0, tmp_path / "served")
    group = zarr.open_group(tmp_path / "served", mode="r")
    image = ome.Image.from_zarr(group).ome_attributes.multiscales[0]
    assert [axis.unit for axis in image.axes] == ["nanometer"] * 3
    for n, dataset in enumerate(image.datasets):
        stored = zarr.open_array(tmp_path / "a.zarr" / str(n), mode="r")
        np.testing.assert_array_equal(group[str(n)][:], stored[:])
        scale, shift = (step.model_dump() for step in dataset.coordinateTransformations)
        # The corner of voxel 0 of every level is at the same place, which is that of the frame.
        corner = np.subtract(shift["translation"], np.array(scale["scale"]) / 2)
        np.testing.assert_allclose(corner, frame.offset)
        ratio = finest.extent[2] / stored.shape[2]
        assert scale["scale"][2] == pytest.approx(2 * round(ratio))


def test_a_level_in_the_middle_of_a_pyramid_has_the_coarser_ones_after_it(tmp_path):
    array = RNG.integers(0, 255, (16, 32, 48), np.uint8)
    write_volume(str(tmp_path / "a.zarr"), array, chunks=(8, 8, 8))
    every = stored_levels(open_volume(str(tmp_path / "a.zarr"), key="x"))
    later = stored_levels(open_volume(str(tmp_path / "a.zarr"), level=1, key="x"))
    assert [one.volume.location for one in later] == [one.volume.location for one in every[1:]]
    assert later[1].factor == tuple(
        b / a for a, b in zip(every[1].factor, every[2].factor, strict=True)
    )


def test_an_array_outside_of_a_pyramid_has_one_level(phantom):
    volume = open_volume(str(phantom / "ct"), key="x")
    assert [one.volume for one in stored_levels(volume)] == [volume]


@given(
    extent=st.tuples(*[st.integers(1, 300)] * 3),
    chunks=st.tuples(*[st.integers(1, 700)] * 3),
    channels=st.integers(1, 5),
    size=st.sampled_from([1, 2, 4, 8]),
)
def test_a_served_chunk_is_bounded_and_cuts_stored_ones_evenly(extent, chunks, channels, size):
    volume = ArrayVolume.of(np.zeros((1, 1, 1), np.uint8), (1, 1, 1), "x")
    volume.__dict__.update(extent=extent, chunks=chunks, channels=channels)
    chunk = served_chunk(volume, np.dtype(f"u{size}"))
    inside: Shape = tuple(min(a, b) for a, b in zip(extent, chunks, strict=True))
    assert all(1 <= a <= b for a, b in zip(chunk, inside, strict=True))
    bytes_ = channels * Box((0, 0, 0), chunk).voxels * size
    assert bytes_ <= 1 << 22 or chunk == (1, 1, 1)
    if channels * Box((0, 0, 0), inside).voxels * size <= 1 << 22:
        assert chunk == inside


@pytest.mark.parametrize(
    "path",
    [
        "", "0", "0/", "1/zarr.json", "0/1/zarr.json", "0/0/c/9/0/0", "0/0/c/0/0", "0/0/c/0/0/0/0",
        "../t.json", "0/../0/zarr.json", "0/0/c/../../x", "0/%2e%2e/zarr.json", "0/0/c/-1/0/0",
        "/etc/passwd", "0/0/c/0/0/0/", "0/0/c/0/0/٠", "0/c/0/0/0",
    ],
)  # fmt: skip
def test_nothing_but_the_layers_can_be_asked_for(path):
    served = ServedScene(scene_of(RNG.random((6, 7, 8))))
    with pytest.raises(MissingFileError):
        served.answer(path)


def test_channels_are_an_axis_that_a_shader_sees_whole():
    served = ServedScene(scene_of(RNG.random((3, 6, 7, 8))))
    axes = json.loads(served.answer("0/zarr.json")[0])["attributes"]["ome"]["multiscales"][0][
        "axes"
    ]
    assert [axis["name"] for axis in axes] == ["c^", "z", "y", "x"]
    assert served.levels[0][0].metadata()["chunk_grid"]["configuration"]["chunk_shape"][0] == 3
    with pytest.raises(MissingFileError):
        served.answer("0/0/c/1/0/0/0")


def test_ids_stay_whole_numbers_in_a_type_that_viewers_have():
    for stored, dtype in (("int16", "uint32"), ("int64", "uint64"), ("uint8", "uint8"),
                          ("float32", "uint32"), ("bool", "uint32")):  # fmt: skip
        served = ServedScene(scene_of(np.ones((6, 7, 8), stored), look=Ids()))
        assert served.levels[0][0].dtype == dtype, stored
    found = as_served(np.array([1.6, np.nan, 3.0]), np.dtype(np.uint32))
    np.testing.assert_array_equal(found, [2, 0, 3])


def test_large_stored_chunks_are_decoded_once_for_all_their_pieces(tmp_path, monkeypatch):
    array = zarr.create_array(
        tmp_path / "a", shape=(130, 200, 256), chunks=(130, 200, 256), dtype="uint8"
    )
    array[:] = RNG.integers(0, 255, array.shape, np.uint8)
    volume = open_volume(str(tmp_path / "a"), key="x")
    layer = Layer("a", (StoredLevel(volume),), Image((0, 1)), Frame())
    level = ServedLevel.of(layer, layer.levels[0], ChunkCache(1 << 24))
    reads, read = [], type(volume)._read_inside
    monkeypatch.setattr(
        type(volume), "_read_inside", lambda self, box: (reads.append(box), read(self, box))[1]
    )
    assert level.chunk != volume.chunks
    pieces = [level.read((0, 0, n)) for n in range(-(-256 // level.chunk[2]))]
    assert len(pieces) > 1
    assert len(reads) == 1


def test_a_damaged_chunk_is_reported_once(tmp_path):
    array = zarr.create_array(tmp_path / "a", shape=(6, 7, 8), chunks=(6, 7, 4), dtype="uint8")
    array[:] = 7
    chunks = [p for p in (tmp_path / "a" / "c").rglob("*") if p.is_file()]
    for chunk in chunks:
        chunk.write_bytes(b"broken")
    volume = open_volume(str(tmp_path / "a"), key="x")
    served = ServedScene(
        Scene("s", (Layer("the image", (StoredLevel(volume),), Image((0, 1)), Frame()),))
    )

    reporter = Silent()
    for path in ("0/0/c/0/0/0", "0/0/c/0/0/1"):
        with pytest.raises(RunError) as error:
            served.answer(path)
        served.report_once(path, error.value, reporter)
    assert len(reporter.lines) == 1
    assert re.match(r"the image: .*chunk", reporter.lines[0])
