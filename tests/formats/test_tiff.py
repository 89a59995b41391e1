from importlib.util import find_spec

import numpy as np
import pytest
import tifffile

from tests.formats.pieces import opened, read
from vcmodels.errors import VolumeError
from vcmodels.formats import file_stem, format_of

STACK = np.random.default_rng(0).integers(0, 4000, (5, 24, 17), np.uint16)


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"byteorder": ">"}]
)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_a_stack_of_pages_is_a_volume(tmp_path, options, dtype):
    stack = STACK.astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", **options)
    header, found = read(tmp_path / "a.tif")
    assert (header.shape, header.dtype) == (stack.shape, np.dtype(dtype))
    np.testing.assert_array_equal(found[0], stack)
    assert not header.grid.is_known


def test_pages_apart_are_a_volume(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for plane in STACK:
            tif.write(plane, contiguous=False, compression="zlib", metadata=None)
    header, found = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(found[0], STACK)
    assert header.notes == ()


def test_one_page_is_one_plane(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK[0])
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[1][0], STACK[:1])


@pytest.mark.parametrize("axes", ["ZCYX", "CZYX"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_ome_says_axes_lengths_and_names(tmp_path, axes, compression):
    stack = np.random.default_rng(1).integers(
        0, 99, (3, 2, 6, 7) if axes == "ZCYX" else (2, 3, 6, 7)
    )
    about = {
        "axes": axes,
        "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm",
        "PhysicalSizeZ": 2000, "PhysicalSizeZUnit": "nm",
        "Channel": {"Name": ["nuclei", "membrane"]},
    }  # fmt: skip
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, stack.astype(np.uint8), metadata=about, compression=compression)
    header, found = read(path)
    np.testing.assert_array_equal(found, stack.swapaxes(0, 1) if axes == "ZCYX" else stack)
    assert header.grid.spacing == pytest.approx((2, 0.5, 0.25))
    assert header.grid.unit == "micrometer"
    assert header.channels == ("nuclei", "membrane")


def test_imagej_says_lengths(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", STACK, imagej=True, resolution=(4, 2),
        metadata={"axes": "ZYX", "spacing": 1.5, "unit": "um"},
    )  # fmt: skip
    header, found = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(found[0], STACK)
    assert (header.grid.spacing, header.grid.unit) == ((1.5, 0.5, 0.25), "micrometer")


def test_an_imagej_hyperstack_has_channels(tmp_path):
    stack = np.arange(4 * 3 * 6 * 7, dtype=np.uint16).reshape(4, 3, 6, 7)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[1], stack.swapaxes(0, 1))


def test_a_length_that_is_missing_is_said(tmp_path):
    about = {"axes": "ZYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK, metadata=about)
    header = opened(tmp_path / "a.ome.tif").header
    assert not header.grid.is_known
    assert header.notes == ('it says a voxel size along y 0.5, x 0.25 only; give "spacing"',)


@pytest.mark.parametrize(("axes", "word"), [("TYX", "times is read as z"), ("TZYX", "as channels")])
def test_times_are_taken_for_what_is_missing_and_said(tmp_path, axes, word):
    stack = np.arange(2 * 3 * 6 * 7, dtype=np.uint8).reshape(2, 3, 6, 7)
    stack = stack[0] if axes == "TYX" else stack
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": axes})
    header, found = read(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(found, stack if axes == "TZYX" else stack[None])
    assert word in header.notes[0]


def test_colours_become_channels(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (5, 8, 9, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb")
    header, found = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(found, np.moveaxis(rgb, -1, 0))
    assert "colour" in header.notes[0]


def test_times_and_channels_together_are_refused(tmp_path):
    stack = np.zeros((2, 3, 2, 6, 7), np.uint8)
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "TZCYX"})
    with pytest.raises(VolumeError, match=r"the axes t, z, c, y, x of lengths \(2, 3, 2, 6, 7\)"):
        opened(tmp_path / "a.ome.tif")


def test_one_of_several_series_is_chosen(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(STACK, photometric="minisblack")
        tif.write(STACK[:2, :9].astype(np.uint8), photometric="minisblack")
    with pytest.raises(
        VolumeError, match=r"holds 2 series; give one of \S+a.tif#0 \(5, 24, 17\) .*#1"
    ):
        opened(tmp_path / "a.tif")
    np.testing.assert_array_equal(read(f"{tmp_path}/a.tif#1")[1][0], STACK[:2, :9].astype(np.uint8))
    with pytest.raises(VolumeError, match=r"a.tif#2 is no series; give one of"):
        opened(f"{tmp_path}/a.tif#2")


def test_a_folder_of_slices_is_read_in_natural_order(tmp_path):
    for number, plane in enumerate(STACK, 8):
        tifffile.imwrite(tmp_path / f"s{number}.tif", plane, compression="zlib")
    (tmp_path / "._s8.tif").touch()
    (tmp_path / "notes.txt").touch()
    header, found = read(tmp_path)
    np.testing.assert_array_equal(found[0], STACK)
    assert header.notes == ()
    assert len(opened(tmp_path).files) == 5


def test_slices_that_are_missing_are_said(tmp_path):
    for number in (1, 2, 3, 6, 7):
        tifffile.imwrite(tmp_path / f"{number:03}.tif", STACK[0])
    said = "slices follow each other unevenly in 1 places, first 003.tif, 006.tif"
    assert opened(tmp_path).header.notes == (said,)


def test_slices_of_another_shape_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "1.tif", STACK[0])
    tifffile.imwrite(tmp_path / "2.tif", STACK[0, :9])
    with pytest.raises(VolumeError, match=r"2.tif holds \(9, 17\) uint16, 1.tif \(24, 17\) uint16"):
        opened(tmp_path)


def test_a_folder_of_stacks_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "1.tif", STACK, photometric="minisblack")
    with pytest.raises(VolumeError, match=r"1.tif holds 5 planes; give one stack, or a pattern"):
        opened(tmp_path)


@pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="all codecs are there")
def test_a_codec_that_is_not_there_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK[0], compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tif:
        tif.pages[0].tags["Compression"].overwrite(5)
    for location in (tmp_path, tmp_path / "a.tif"):
        with pytest.raises(VolumeError, match=r"compressed as LZW, .*; pip install imagecodecs"):
            opened(location)


def test_broken_xml_of_ome_is_refused(tmp_path):
    text = '<?xml version="1.0"?><OME><Image></OME>'
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((5, 6), np.uint8), description=text)
    with pytest.raises(VolumeError, match=r"a.ome.tif cannot be read .*cut or damaged"):
        opened(tmp_path / "a.ome.tif")


@pytest.mark.parametrize("cut", [0, 5, 300])
def test_a_file_that_was_cut_is_refused(tmp_path, cut):
    tifffile.imwrite(tmp_path / "a.tif", STACK, photometric="minisblack", compression="zlib")
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:cut])
    with pytest.raises(VolumeError, match=r"a.tif cannot be read .*cut or damaged"):
        read(tmp_path / "a.tif")


def test_several_files_of_one_ome_tiff_are_all_known(tmp_path):
    about = {"axes": "ZYX"}
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK, metadata=about)
    assert [path.name for path in opened(tmp_path / "a.ome.tif").files] == ["a.ome.tif"]
    assert file_stem("x/a.ome.tif") == "a"
    assert file_stem("x/a.tif#1") == "a"
    assert format_of(str(tmp_path / "no")) is None
