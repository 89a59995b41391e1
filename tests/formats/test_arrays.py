import json

import h5py
import numpy as np
import pytest
import tensorstore
from hypothesis import given
from hypothesis import strategies as st

from tests.formats.pieces import opened, read
from vcmodels.errors import VolumeError
from vcmodels.formats import arrays, file_stem
from vcmodels.formats.arrays import array_pieces, guessed_axes
from vcmodels.volumes import expand_pattern
from vcmodels.volumes.location import split_inside

VOLUME = np.random.default_rng(0).integers(0, 4000, (7, 12, 11), np.uint16)
CHANNELS = np.random.default_rng(0).normal(size=(2, 7, 12, 11)).astype(np.float32)


@given(
    letters=st.permutations("zyxc-"),
    lengths=st.tuples(*[st.integers(1, 6)] * 4),
    chunks=st.tuples(*[st.integers(1, 4)] * 3),
    most=st.integers(1, 100),
)
def test_axes_in_any_order_are_brought_to_channels_z_y_x(letters, lengths, chunks, most):
    sizes = dict(zip("zyxc", lengths, strict=True)) | {"-": 1}
    stored = np.arange(np.prod(lengths)).reshape([sizes[a] for a in letters])
    wanted = np.einsum(f"{''.join(letters).replace('-', 'o')}->czyx", stored)
    found = np.full(wanted.shape, -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_PIECE_BYTES", most * 8)
        for box, piece in array_pieces(stored, "".join(letters), stored.dtype, chunks):
            assert (found[(slice(None), *box.slices())] == -1).all()
            found[(slice(None), *box.slices())] = piece
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("shape", "letters"),
    [
        ((7, 8), "yx"), ((7, 8, 9), "zyx"), ((1, 8, 9), "zyx"), ((3, 7, 8, 9), "czyx"),
        ((7, 8, 9, 2), "zyxc"), ((2, 3, 6, 7), "czyx"), ((1, 1, 1), "zyx"), ((1, 1, 1, 1), "-zyx"), ((1, 7, 8, 9), "-zyx"), ((1, 1, 3, 7, 8, 9), "--czyx"),
    ],
)  # fmt: skip
def test_axes_without_names_are_guessed_where_nothing_else_can_be_meant(shape, letters):
    assert guessed_axes(shape, "a.npy", "input")[0] == letters


@pytest.mark.parametrize("shape", [(7,), (7, 8, 9, 10), (3, 7, 8, 3), (2, 5, 7, 8, 9)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(
        VolumeError, match=r"does not name its axes; write \(z, y, x\), a file for each"
    ):
        guessed_axes(shape, "a.npy", "input")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["uint16", ">f4", "bool"])
def test_npy_is_mapped(tmp_path, order, dtype):
    np.save(tmp_path / "a.npy", np.asarray(VOLUME.astype(dtype), order=order))
    header, found = read(tmp_path / "a.npy")
    np.testing.assert_array_equal(found[0], VOLUME.astype(dtype))
    assert header.dtype == np.dtype(dtype).newbyteorder("=")
    assert not header.grid.is_known


def test_npz_by_the_name_of_npy_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", VOLUME)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(VolumeError, match=r"a.npy cannot be read"):
        opened(tmp_path / "a.npy")


@pytest.mark.parametrize("name", ["a.h5:/empty", "a.h5:/none", "a.npy"])
def test_arrays_without_voxels_are_refused(tmp_path, name):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["empty"] = np.zeros((0, 5, 6))
        file["none"] = h5py.Empty("f4")
    np.save(tmp_path / "a.npy", np.zeros((0, 5, 6)))
    with pytest.raises(VolumeError, match=r"has the shape \(0, 5, 6\), and so no|is no array"):
        opened(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "inside", "remedy"),
    [
        ("a.npy", "#1", "leave it out"),
        ("a.nii.gz", "#1", "leave it out"),
        ("a.nrrd", ":/x", "leave it out"),
        ("slices", "#1", "leave it out"),
        ("a.n5", "#c0", r"give \S+/a.n5/c0"),
    ],
)
def test_nothing_is_chosen_inside_files_of_one_image(tmp_path, name, inside, remedy):
    (tmp_path / "slices").mkdir()
    (tmp_path / "slices" / "1.tif").touch()
    write_n5(tmp_path / "a.n5" / "c0", VOLUME.T, {}, (4, 5, 6))
    (tmp_path / name).exists() or (tmp_path / name).touch()
    with pytest.raises(VolumeError, match=rf"nothing can be chosen in \S+{name}, .*; {remedy}$"):
        opened(f"{tmp_path / name}{inside}")


def test_npy_of_objects_or_cut_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(VolumeError, match=r"a.npy cannot be read"):
        opened(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", VOLUME)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
    with pytest.raises(VolumeError, match="cut or damaged"):
        opened(tmp_path / "a.npy")


@pytest.fixture
def h5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("volumes/raw", data=VOLUME, chunks=(4, 5, 6), compression="gzip")
        file["volumes/labels"] = VOLUME // 1000
        file["count"] = np.arange(3)
    return tmp_path / "a.h5"


@pytest.mark.parametrize("between", [":/", "/"])
def test_an_array_of_hdf5_is_named_behind_the_file(h5, between):
    for path, wanted in (("volumes/raw", VOLUME), ("volumes/labels", VOLUME // 1000)):
        np.testing.assert_array_equal(read(f"{h5}{between}{path}")[1][0], wanted)


def test_several_arrays_of_hdf5_are_listed(h5):
    with pytest.raises(
        VolumeError, match=r"2 arrays; give one of \S+a.h5:/volumes/labels, \S+a.h5:/volumes/raw$"
    ):
        opened(h5)
    with pytest.raises(VolumeError, match=r"a.h5:/volumes is no array; give one of"):
        opened(f"{h5}:/volumes")


def test_the_only_array_of_hdf5_needs_no_name(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = VOLUME
    np.testing.assert_array_equal(read(tmp_path / "a.h5")[1][0], VOLUME)


@pytest.mark.parametrize(
    ("attributes", "spacing", "unit"),
    [
        ({"element_size_um": [2.0, 0.5, 0.25]}, (2, 0.5, 0.25), "micrometer"),
        ({"resolution": [40.0, 4, 4], "offset": [80.0, 0, 8]}, (40, 4, 4), "nanometer"),
        ({"resolution": [40.0, 4, 4], "units": "mm"}, (40, 4, 4), "millimeter"),
        (
            {"element_size_um": [2.0, 0.5, 0.25], "offset": [80.0, 0, 8]},
            (2, 0.5, 0.25),
            "micrometer",
        ),
    ],
)
@pytest.mark.parametrize("place", ["array", "file"])
def test_attributes_of_hdf5_say_the_voxel_size(tmp_path, attributes, spacing, unit, place):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = VOLUME
        (file["data"] if place == "array" else file).attrs.update(attributes)
    grid = opened(tmp_path / "a.h5").header.grid
    assert (grid.spacing, grid.unit, grid.is_known) == (spacing, unit, True)
    assert grid.offset == tuple(attributes.get("offset", (0, 0, 0)))


def test_hdf5_that_says_micrometers_and_a_unit_has_its_offset_in_that(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = VOLUME
        size = {"element_size_um": [2.0, 0.5, 0.25], "resolution": [2e3, 500, 250]}
        file["data"].attrs.update(size | {"offset": [8e3, 0, 80], "units": "nm"})
    grid = opened(tmp_path / "a.h5").header.grid
    assert (grid.spacing, grid.unit, grid.offset) == ((2, 0.5, 0.25), "micrometer", (8, 0, 0.08))


@pytest.mark.parametrize("way", ["axistags", "axes", "labels"])
def test_axes_of_hdf5_may_have_names(tmp_path, way):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        stored = file.create_dataset("data", data=CHANNELS.transpose(3, 2, 1, 0)[None])
        if way == "axistags":
            stored.attrs["axistags"] = json.dumps({"axes": [{"key": a} for a in "txyzc"]})
        elif way == "axes":
            stored.attrs["axes"] = "txyzc"
        else:
            for dimension, name in zip(stored.dims, "txyzc", strict=True):
                dimension.label = name
    np.testing.assert_array_equal(read(tmp_path / "a.h5")[1], CHANNELS)


def test_hdf5_that_was_cut_is_refused(h5):
    h5.write_bytes(h5.read_bytes()[:700])
    with pytest.raises(VolumeError, match=r"a.h5 cannot be read"):
        opened(f"{h5}:/volumes/raw")


def write_n5(folder, values, attributes, block):
    """An N5 of values with axes (x, y, z, ...)."""
    store = tensorstore.open(
        {
            "driver": "n5",
            "kvstore": {"driver": "file", "path": f"{folder}/"},
            "metadata": {
                "dataType": values.dtype.name, "dimensions": list(values.shape),
                "blockSize": list(block), "compression": {"type": "gzip"},
            },
        },
        create=True,
    ).result()  # fmt: skip
    store.write(values).result()
    path = folder / "attributes.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | attributes))


def test_n5_is_read_with_x_first(tmp_path):
    resolution = {"pixelResolution": {"unit": "um", "dimensions": [0.25, 0.5, 2]}}
    write_n5(tmp_path / "a.n5" / "raw", VOLUME.T, resolution, (4, 5, 6))
    header, found = read(tmp_path / "a.n5" / "raw")
    np.testing.assert_array_equal(found[0], VOLUME)
    assert (header.grid.spacing, header.grid.unit) == ((2, 0.5, 0.25), "micrometer")
    np.testing.assert_array_equal(read(tmp_path / "a.n5")[1][0], VOLUME)
    stored = json.loads((tmp_path / "a.n5" / "raw" / "attributes.json").read_text())
    assert stored["dimensions"] == [11, 12, 7]


def test_n5_with_levels_is_its_finest(tmp_path):
    place = tmp_path / "a.n5" / "c0"
    write_n5(place / "s0", VOLUME.T, {}, (4, 5, 6))
    write_n5(place / "s1", VOLUME.T[::2, ::2], {"downsamplingFactors": [2, 2, 1]}, (4, 5, 6))
    (place / "attributes.json").write_text(
        '{"pixelResolution": [3, 4, 5], "units": ["nm", "nm", "nm"]}'
    )
    for location in (tmp_path / "a.n5", place, place / "s0"):
        header, found = read(location)
        np.testing.assert_array_equal(found[0], VOLUME)
        assert (header.grid.spacing, header.grid.unit) == ((5, 4, 3), "nanometer")
    assert opened(place / "s1").header.grid.spacing == (5, 8, 6)


def test_n5_of_channels_has_them_last(tmp_path):
    write_n5(tmp_path / "a.n5", CHANNELS.T, {}, (4, 5, 6, 1))
    np.testing.assert_array_equal(read(tmp_path / "a.n5")[1], CHANNELS)


def test_several_images_of_n5_are_listed(tmp_path):
    for name in ("c0/s0", "c1/s0"):
        write_n5(tmp_path / "a.n5" / name, VOLUME.T, {}, (4, 5, 6))
    with pytest.raises(VolumeError, match=r"a.n5 holds 2 images; give one of \S+/c0, \S+/c1$"):
        opened(tmp_path / "a.n5")


def test_a_damaged_block_of_n5_is_refused(tmp_path):
    write_n5(tmp_path / "a.n5", VOLUME.T, {}, (4, 5, 6))
    (tmp_path / "a.n5" / "0" / "0" / "0").write_bytes(b"x" * 30)
    with pytest.raises(VolumeError, match=r"a.n5 cannot be read"):
        read(tmp_path / "a.n5")


def test_what_is_chosen_inside_a_file_is_split_off(tmp_path):
    (tmp_path / "a#b.h5").touch()
    (tmp_path / "c.tif").touch()
    assert split_inside(f"{tmp_path}/a#b.h5") == (f"{tmp_path}/a#b.h5", "")
    assert split_inside(f"{tmp_path}/a#b.h5:/x/y") == (f"{tmp_path}/a#b.h5", "x/y")
    assert split_inside(f"{tmp_path}/a#b.h5/x/y") == (f"{tmp_path}/a#b.h5", "x/y")
    assert split_inside(f"{tmp_path}/c.tif#2") == (f"{tmp_path}/c.tif", "2")
    assert split_inside(f"{tmp_path}/gone") == (f"{tmp_path}/gone", "")
    assert file_stem(f"{tmp_path}/a#b.h5:/x/y") == "a#b"


def test_a_pattern_matches_files_whose_ending_it_says(tmp_path):
    for name in ("1.h5", "2.h5", ".3.h5", "4.txt"):
        (tmp_path / name).touch()
    (tmp_path / "x").mkdir()
    found = expand_pattern(f"{tmp_path}/*.h5:/raw")
    assert found == [(n, f"{tmp_path}/{n}.h5:/raw") for n in "12"]
    assert expand_pattern(f"{tmp_path}/*") == [("x", f"{tmp_path}/x")]
