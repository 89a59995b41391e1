"""Whole volumes written as OME-Zarr images, with their levels, seen when they are complete."""

import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import zarr
from ome_zarr_models.v04.image import Image as Image04
from ome_zarr_models.v05.image import Image as Image05
from pydantic_zarr.v2 import ArraySpec

from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import Box, coarse_extent
from vcmodels.volumes import (
    Blocks,
    Description,
    Grid,
    Pyramid,
    Storage,
    group_attributes,
    open_volume,
    whole_folder,
    write_volume,
)
from vcmodels.volumes.multiscale import mean_of, most_frequent

# Its 0.4 model names a class that it imports for type checkers alone, which pydantic 2.14 wants.
Image04.model_rebuild(_types_namespace={"ArraySpec": ArraySpec})

SHAPE = (9, 14, 17)
GRID = Grid((2.0, 1.0, 1.0), (10.0, 20.0, 30.0), "micrometer")
FACTORS = [(1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8)]
"""Of the levels for that spacing: z is halved once y and x are as coarse."""


def numbers(dtype="uint16", shape=SHAPE) -> np.ndarray:
    values = np.random.default_rng(0).random(shape) * 250
    return (values if np.dtype(dtype).kind == "f" else np.rint(values)).astype(dtype)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(place: Path, level: int) -> np.ndarray:
    volume = open_volume(str(place), key="k", level=level, channels="any")
    return volume.read(volume.box)


def groups(stored, factor):
    """For each voxel of the coarser level, the voxels under it: (S, n)."""
    for index in product(*map(range, coarse_extent(stored.shape[1:], factor))):
        where = tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factor, strict=True))
        yield index, stored[(slice(None), *where)].reshape(len(stored), -1)


def validated(place: Path, version: int):
    """The multiscales of an image; raises where the group breaks the specification."""
    image = {2: Image04, 3: Image05}[version].from_zarr(zarr.open_group(str(place), mode="r"))
    holder = image.attributes if version == 2 else image.ome_attributes
    return holder.multiscales[0]


@pytest.mark.parametrize(
    "storage", [Storage(2), Storage(3), Storage(3, shards=(8, 8, 16))], ids=str
)
@pytest.mark.parametrize("channels", [None, 2])
def test_an_image_has_its_voxels_its_levels_and_its_place_in_the_world(tmp_path, storage, channels):
    lead = () if channels is None else (channels,)
    data, place = numbers(shape=(*lead, *SHAPE)), tmp_path / "scan.zarr"
    description = Description("scan", {"made": "here"})
    made = write_volume(
        str(place), data, grid=GRID, chunks=(4, 4, 8), storage=storage, description=description
    )
    assert made == place
    first = data if channels else data[None]
    np.testing.assert_array_equal(read(place, 0), first)
    for level, factor in enumerate(FACTORS):
        volume = open_volume(str(place), key="k", level=level, channels="any")
        size = np.array(GRID.spacing) * factor
        assert volume.spacing == tuple(size)
        np.testing.assert_allclose(volume.offset, GRID.offset + (size - GRID.spacing) / 2)
        assert (volume.unit, volume.chunks, volume.shards) == (
            "micrometer", (4, 4, 8), storage.shards,
        )  # fmt: skip
        assert volume.extent == coarse_extent(SHAPE, factor)
    for level, step in ((1, (1, 2, 2)), (2, (2, 2, 2)), (3, (2, 2, 2))):
        fine, coarse = read(place, level - 1), read(place, level)
        for (z, y, x), voxels in groups(fine, step):
            np.testing.assert_array_equal(coarse[:, z, y, x], np.rint(voxels.mean(axis=1)))
    scales = validated(place, storage.zarr_format)
    assert [dataset.path for dataset in scales.datasets] == ["0", "1", "2", "3"]
    assert [axis.name for axis in scales.axes] == [*("c" * len(lead)), "z", "y", "x"]
    assert group_attributes(str(place))["made"] == "here"
    assert names(tmp_path) == ["scan.zarr"]


def test_labels_keep_the_most_frequent_and_holes_stay_holes(tmp_path):
    data = np.random.default_rng(0).choice([40, 7, 200], SHAPE).astype(np.uint8)
    data[:, 8:] = 0
    place = write_volume(
        str(tmp_path / "labels.zarr"), data, chunks=(4, 4, 8), pyramid=Pyramid(1, "mode")
    )
    coarse = read(place, 1)[0]
    for index, voxels in groups(data[None], (2, 2, 2)):
        counts = Counter(voxels[0].tolist())
        most = max(counts.values())
        assert coarse[index] == min(value for value, count in counts.items() if count == most)
    assert open_volume(str(place), key="k", level=1).missing_blocks() == 2 * 1 * 2
    assert not (place / "2").exists()


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2), (2, 1, 1)], ids=str)
@pytest.mark.parametrize(
    "dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]
)
def test_a_mean_is_that_of_the_values_and_an_integer_is_rounded_once(dtype, factor):
    data = numbers("f8", (2, 5, 6, 7)) - 125 * (np.dtype(dtype).kind in "if")
    data = data.astype(dtype)
    if np.dtype(dtype).kind in "ui" and data.itemsize < 8:
        data[:, :2, :2, :2] = np.iinfo(dtype).max  # sums must not overflow
    half = mean_of(data, factor)
    assert half.dtype == data.dtype
    for (z, y, x), voxels in groups(data, factor):
        mean = voxels.astype(np.float64).mean(axis=1)
        expected = np.rint(mean) if half.dtype.kind in "ui" else mean
        np.testing.assert_allclose(
            half[:, z, y, x].astype(np.float64), expected,
            rtol={"f2": 1e-3, "f4": 1e-6}.get(dtype, 1e-12), atol={"f2": 1e-3, "f4": 1e-5}.get(dtype, 0),
        )  # fmt: skip


def test_a_mask_has_no_mean():
    data = np.random.default_rng(0).random((1, 5, 6, 7)) < 0.5
    np.testing.assert_array_equal(mean_of(data, (1, 2, 2)), most_frequent(data, (1, 2, 2)))


def test_pieces_in_any_order_and_of_any_size_give_the_same_volume(tmp_path):
    data = numbers(">u2")
    whole = write_volume(str(tmp_path / "a.zarr"), data, chunks=(4, 4, 8))
    boxes = [Box((z, 0, x), (3, 14, 5)) for x in (12, 0, 7) for z in (6, 0, 3)]
    boxes = [box.intersect(Box((0, 0, 0), SHAPE)) for box in boxes]
    boxes.append(Box((0, 0, 5), (9, 14, 2)))
    native = data.astype("u2")
    pieces = ((box, native[box.slices()][None]) for box in boxes)
    parts = write_volume(
        str(tmp_path / "b.zarr"), Blocks(SHAPE, np.dtype("u2"), pieces), chunks=(4, 4, 8)
    )
    for level in range(3):
        np.testing.assert_array_equal(read(parts, level), read(whole, level))
    np.testing.assert_array_equal(read(parts, 0)[0], data)


def test_memory_does_not_grow_with_the_volume(tmp_path):
    def pieces(depth):
        for z in range(0, depth, 32):
            yield Box((z, 0, 0), (32, 96, 96)), numbers("u1", (1, 32, 96, 96))

    def peak(depth):
        blocks = Blocks((depth, 96, 96), np.dtype("u1"), pieces(depth))
        tracemalloc.start()
        write_volume(str(tmp_path / f"{depth}.zarr"), blocks, chunks=(32, 32, 32))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(64)
    assert peak(1024) < 1.3 * peak(128)


def test_nothing_is_there_before_all_is_and_nothing_stays_after_a_failure(tmp_path):
    place = tmp_path / "a.zarr"

    def pieces():
        yield Box((0, 0, 0), (4, 14, 17)), numbers("u1", (1, 4, 14, 17))
        assert not place.exists()
        raise OSError("the tape is torn")

    with pytest.raises(OSError, match="torn"):
        write_volume(str(place), Blocks(SHAPE, np.dtype("u1"), pieces()), chunks=(4, 4, 8))
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
import numpy as np
from vcmodels.geometry.boxes import Box
from vcmodels.volumes import Blocks, write_volume

def pieces():
    yield Box((0, 0, 0), (4, 8, 8)), np.ones((1, 4, 8, 8), np.uint8)
    os.kill(os.getpid(), signal.SIGKILL)

write_volume(sys.argv[1], Blocks((8, 8, 8), np.dtype("u1"), pieces()), chunks=(4, 8, 8))
"""


def test_what_a_killed_process_left_is_swept_by_the_next(tmp_path):
    place = tmp_path / "a.zarr"
    code = subprocess.run([sys.executable, "-c", KILLED, str(place)], check=False).returncode
    assert code == -signal.SIGKILL
    assert not place.exists()
    assert len(list(tmp_path.iterdir())) == 2  # the folder that was begun, and its lock
    write_volume(str(place), numbers("u1"))
    assert names(tmp_path) == ["a.zarr"]
    np.testing.assert_array_equal(read(place, 0)[0], numbers("u1"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("taken", "taken: exists already; choose another path or remove it"),
        ("link", "link: exists already"),
        ("taken/thesis.txt/a.zarr", r"taken/thesis.txt cannot be written \(File exists\)"),
        ("s3://bucket/a.zarr", "s3://bucket/a.zarr: is a URL; give a local path"),
        ("busy", "busy: another process writes it; wait for it"),
    ],
)
def test_a_place_that_cannot_be_taken_is_left_as_it_is(tmp_path, monkeypatch, name, message):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").touch()
    (tmp_path / "link").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    with whole_folder(tmp_path / "busy"), pytest.raises(OutputError, match=message):
        write_volume(name, numbers())
    assert names(Path()) == ["busy", "link", "taken"]
    assert names(Path("taken")) == ["thesis.txt"]


def test_what_stood_there_goes_only_for_something_whole(tmp_path):
    place = tmp_path / "a.zarr"
    write_volume(str(place), numbers())

    def fail():
        with whole_folder(place, replaces=lambda path: (path / "0").is_dir()) as folder:
            (folder / "new").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (place / "0").is_dir()
    with whole_folder(place, replaces=lambda path: (path / "0").is_dir()) as folder:
        (folder / "new").touch()
    assert names(place) == ["new"]
    assert names(tmp_path) == ["a.zarr"]


@pytest.mark.parametrize("shape", [(6, 7), (2, 3, 6, 7, 8)], ids=str)
def test_other_axes_are_refused(tmp_path, shape):
    with pytest.raises(ValueError, match=r"expected axes .* got shape"):
        write_volume(str(tmp_path / "a.zarr"), np.zeros(shape, np.uint8))
    assert not list(tmp_path.iterdir())


def import_npy(source: Path, place: Path, spacing_um: tuple[float, float, float]) -> Path:
    """What somebody outside the package writes to bring in another format."""
    voxels = np.load(source, mmap_mode="r")
    return write_volume(
        str(place),
        voxels,
        grid=Grid(spacing_um, unit="micrometer"),
        chunks=(8, 8, 8),
        description=Description(source.stem, {"imported_from": source.name}),
    )


def test_a_stranger_writes_an_importer_in_a_few_lines(tmp_path):
    data = numbers("i2", (20, 25, 33))
    np.save(tmp_path / "scan.npy", data)
    place = import_npy(tmp_path / "scan.npy", tmp_path / "imported" / "scan.zarr", (3.0, 1.5, 1.5))
    volume = open_volume(str(place), key="input")
    np.testing.assert_array_equal(volume.read(volume.box)[0], data)
    assert (volume.spacing, volume.unit) == ((3.0, 1.5, 1.5), "micrometer")
    scales = validated(place, 2)
    assert (scales.name, len(scales.datasets)) == ("scan", 4)
    assert group_attributes(str(place))["imported_from"] == "scan.npy"
