"""Files that are written, read again by other libraries."""

import base64
import gzip
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.formats.made_dicom import PATIENT, numbers, save, series_of
from vcmodels.errors import OutputError
from vcmodels.formats import outgoing
from vcmodels.formats.dicom import Dicom
from vcmodels.formats.exporters import exporter_of, written_stem
from vcmodels.formats.outgoing import Outgoing
from vcmodels.geometry.affine import flipped_world
from vcmodels.geometry.boxes import Box
from vcmodels.volumes import Grid

OBLIQUE = np.array(
    [[0.8, -0.3, 0.1, -40], [0.3, 0.8, 0.2, 12], [-0.14, -0.13, 2.5, 7], [0, 0, 0, 1.0]]
)
LPS = np.diag([-0.5, -0.75, 2.0, 1.0])
LPS[:3, 3] = (10, 20, -30)
GRID = Grid((2.0, 0.75, 0.5), (0.0, 0.0, 0.0), "millimeter", is_known=True)
SHAPE = (5, 6, 8)


class Read:
    """Gives boxes of an array, and counts how often each voxel was read."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.times = values, np.zeros(values.shape[1:], int)

    def __call__(self, box: Box) -> np.ndarray:
        self.times[box.slices()] += 1
        return self.values[(slice(None), *box.slices())]


def made(values: np.ndarray, **kept) -> Outgoing:
    channels_first = values if values.ndim == 4 else values[None]
    settled = {"chunks": (2, 4, 3), "grid": GRID, "affine": LPS, "is_label": False} | kept
    return Outgoing("sheet", channels_first.shape, values.dtype, Read(channels_first), **settled)


def written(image: Outgoing, path: Path) -> Path:
    """As it is written, under another name, and then renamed."""
    exporter, temporary = exporter_of(path, "-o"), path.with_name(".temporary")
    exporter.check(image, "-o")
    done: list[float] = []
    exporter.write(image, temporary, lambda amount, _: done.append(amount))
    assert sum(done) == np.prod(image.extent)
    return temporary.rename(path)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32", "float64"])
def test_itk_reads_the_voxels_at_their_places(tmp_path, name, dtype):
    values = numbers(SHAPE, dtype)
    read = sitk.ReadImage(str(written(made(values), tmp_path / name)))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), values)
    assert sitk.GetArrayFromImage(read).dtype == values.dtype
    for index in ((0, 0, 0), (7, 5, 4), (3, 0, 2)):
        wanted = flipped_world(LPS) @ [*index, 1]
        np.testing.assert_allclose(read.TransformIndexToPhysicalPoint(index), wanted[:3], atol=1e-5)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_itk_reads_oblique_axes_and_several_channels(tmp_path, name):
    turned = OBLIQUE.copy()
    turned[:3, :3] = np.linalg.qr(OBLIQUE[:3, :3])[0] * (0.5, 0.75, 2)
    values = np.stack([numbers(SHAPE, "uint16", n) for n in range(3)])
    read = sitk.ReadImage(str(written(made(values, affine=turned), tmp_path / name)))
    np.testing.assert_array_equal(np.moveaxis(sitk.GetArrayFromImage(read), -1, 0), values)
    wanted = flipped_world(turned) @ [7, 5, 4, 1]
    np.testing.assert_allclose(read.TransformIndexToPhysicalPoint((7, 5, 4)), wanted[:3], atol=1e-5)


@pytest.mark.parametrize("affine", [OBLIQUE, LPS], ids=["sheared", "turned"])
def test_nibabel_reads_affine_channels_and_scale(tmp_path, affine):
    values = np.stack([numbers(SHAPE, "uint8", n) for n in range(3)])
    image = made(values, affine=affine, scale=(1 / 255, -0.5))
    read = nib.load(written(image, tmp_path / "a.nii.gz"))
    np.testing.assert_allclose(read.affine, affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(read.dataobj.get_unscaled()).T, values)
    np.testing.assert_allclose(read.get_fdata().T, values / 255 - 0.5, atol=1e-6)


def test_a_label_says_so_and_equal_voxels_make_equal_files(tmp_path):
    values = numbers(SHAPE, "uint8")
    first = written(made(values, is_label=True), tmp_path / "a.nii.gz")
    again = written(made(values, is_label=True), tmp_path / "b.nii.gz")
    assert nib.load(first).header.get_intent()[0] == "label"
    assert first.read_bytes() == again.read_bytes()


NAMED = {
    *("dim", "datatype", "bitpix", "vox_offset", "magic"),
    *("scl_slope", "scl_inter", "cal_min", "cal_max"),
}


def original(
    tmp_path: Path, endian: str = "<", kind: type = nib.Nifti1Header
) -> tuple[bytes, np.ndarray]:
    """The header of a file of another program, and its affine."""
    header = kind(endianness=endian)
    header.set_data_shape((8, 6, 5))
    header.set_data_dtype(np.float32)
    header.set_sform(LPS, 4)
    header.set_qform(np.diag([0.5, 0.75, 2, 1]), 2)
    header["descrip"], header["cal_max"], header["toffset"] = b"of a patient", 70, 3.5
    header["slice_code"], header["intent_code"], header["xyzt_units"] = 3, 0, 10
    header["scl_slope"], header["scl_inter"] = 2, -1024
    image = {nib.Nifti1Header: nib.Nifti1Image, nib.Nifti2Header: nib.Nifti2Image}[kind]
    nib.save(image(np.zeros((8, 6, 5), np.float32), None, header), tmp_path / "original.nii")
    raw = (tmp_path / "original.nii").read_bytes()
    return raw[: header.sizeof_hdr], nib.load(tmp_path / "original.nii").affine


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
def test_the_header_of_the_original_is_kept_but_for_named_fields(tmp_path, endian, kind):
    raw, affine = original(tmp_path, endian, kind)
    values = numbers(SHAPE, "uint8")
    image = made(values, affine=affine, original={"header": base64.b64encode(raw).decode()})
    path = written(image, tmp_path / "a.nii")
    before, after = kind(raw), kind(path.read_bytes()[: len(raw)])
    assert {n for n in before if before[n].tobytes() != after[n].tobytes()} <= NAMED
    read = nib.load(path)
    np.testing.assert_array_equal(np.asarray(read.dataobj).T, values)
    np.testing.assert_allclose(read.affine, affine)


@pytest.mark.parametrize("shift", [5, 0.002])
def test_a_header_that_lies_elsewhere_is_placed_anew(tmp_path, shift):
    raw, affine = original(tmp_path)
    moved = affine.copy()
    moved[:3, 3] += shift
    image = made(numbers(SHAPE), affine=moved, original={"header": base64.b64encode(raw).decode()})
    read = nib.load(written(image, tmp_path / "a.nii.gz"))
    np.testing.assert_allclose(read.affine, moved, atol=1e-5)
    assert bytes(read.header["descrip"]).startswith(b"of a patient")


def test_small_voxels_lie_elsewhere_by_their_size(tmp_path):
    affine = np.diag([1e-6, 1e-6, 1e-6, 1.0])  # mm
    raw = nib.Nifti1Header()
    raw.set_data_shape((8, 6, 5))
    raw.set_sform(affine, 1)
    kept = {"header": base64.b64encode(raw.binaryblock).decode()}
    moved = affine.copy()
    moved[:3, 3] += 3e-6
    read = nib.load(written(made(numbers(SHAPE), affine=moved, original=kept), tmp_path / "a.nii"))
    np.testing.assert_allclose(read.affine, moved, atol=1e-9)


def test_a_header_without_a_voxel_size_gets_that_of_the_volume(tmp_path):
    raw = nib.Nifti1Header()
    raw.set_data_shape((8, 6, 5))
    raw["pixdim"] = 0
    kept = {"header": base64.b64encode(raw.binaryblock).decode()}
    read = nib.load(written(made(numbers(SHAPE), original=kept), tmp_path / "a.nii"))
    np.testing.assert_allclose(read.affine, LPS, atol=1e-5)


def test_an_axis_too_long_for_the_first_version_makes_a_second(tmp_path):
    values = np.zeros((1, 1, 40_000), np.uint8)
    path = written(made(values, chunks=(1, 1, 40_000)), tmp_path / "a.nii.gz")
    assert isinstance(nib.load(path), nib.Nifti2Image)
    assert nib.load(path).shape == (40_000, 1, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_ome_tiff_says_axes_and_voxel_size(tmp_path, channels):
    values = np.squeeze(np.stack([numbers(SHAPE, "uint16", n) for n in range(channels)]))
    path = written(made(values), tmp_path / "a.ome.tif")
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        assert file.series[0].axes == "CZYX"[-values.ndim :]
        np.testing.assert_array_equal(file.asarray(), values)
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
    sizes = [pixels[f"PhysicalSize{axis}"] for axis in "ZYX"]
    assert sizes == [2.0, 0.75, 0.5]
    assert pixels["PhysicalSizeZUnit"] == "mm"


def test_a_plain_tiff_is_what_imagej_writes(tmp_path):
    values = numbers(SHAPE, "uint8")
    micrometers = Grid((2.0, 0.75, 0.5), (0.0, 0.0, 0.0), "micrometer", is_known=True)
    path = written(made(values, grid=micrometers), tmp_path / "a.tif")
    with tifffile.TiffFile(path) as file:
        assert file.imagej_metadata["spacing"] == 2
        assert file.imagej_metadata["unit"] == "\\u00B5m"
        across, down = (file.pages[0].tags[name].value for name in ("XResolution", "YResolution"))
    np.testing.assert_allclose([across[1] / across[0], down[1] / down[0]], [0.5, 0.75], rtol=1e-6)
    np.testing.assert_array_equal(tifffile.imread(path), values)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), values)


def test_hdf5_says_voxel_size_and_place(tmp_path):
    values = np.stack([numbers(SHAPE, "float32", n) for n in range(2)])
    with h5py.File(written(made(values), tmp_path / "a.h5")) as file:
        data = file["sheet"]
        np.testing.assert_array_equal(data[:], values)
        assert data.chunks == (2, 2, 4, 3)
        np.testing.assert_array_equal(data.attrs["element_size_um"], (2000, 750, 500))
        np.testing.assert_array_equal(data.attrs["affine_ras_mm"], LPS)
        assert data.attrs["axes"] == "czyx"


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(*[st.integers(1, 7)] * 3),
    st.tuples(*[st.integers(1, 4)] * 3),
    st.integers(1, 3),
    st.sampled_from(["npy", "h5", "nii", "tif", "nrrd"]),
)
def test_any_shape_and_chunks_give_all_voxels_each_read_once(
    tmp_path_factory, shape, chunks, channels, ending
):
    values = np.stack([numbers(shape, "float32", n) for n in range(channels)])
    image = made(values, chunks=chunks)
    path = written(image, tmp_path_factory.mktemp("any") / f"a.{ending}")
    reads = channels if ending in ("npy", "nii", "tif") else 1
    assert (image.read.times == reads).all()
    read = {
        "npy": np.load,
        "h5": lambda p: h5py.File(p)["sheet"][:],
        "nii": lambda p: np.asarray(nib.load(p).dataobj).T,
        "tif": tifffile.imread,
        "nrrd": lambda p: (
            np.moveaxis(sitk.GetArrayFromImage(sitk.ReadImage(str(p))), -1, 0)
            if channels > 1
            else sitk.GetArrayFromImage(sitk.ReadImage(str(p)))
        ),
    }[ending](path)
    np.testing.assert_array_equal(read.reshape(values.shape), values)


def test_slabs_that_are_too_large_for_the_memory_are_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(outgoing, "ROOM_BYTES", 10)
    values = numbers(SHAPE, "uint16")
    np.testing.assert_array_equal(np.load(written(made(values), tmp_path / "a.npy")), values)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_a_seg_has_a_segment_for_each_class_on_the_slices_of_the_series(tmp_path):
    folder = save(series_of(numbers(SHAPE)), tmp_path / "ct")
    like = Dicom().open(str(folder), "x")
    values = np.random.default_rng(0).choice([0, 2, 7], SHAPE).astype(np.uint8)
    path = written(made(values, is_label=True, like=like), tmp_path / "out.seg.dcm")
    again = Dicom().open(str(path), "x")
    found = np.zeros(SHAPE, np.uint8)
    for box, voxels in again.pieces():
        found[box.slices()] = voxels[0]
    np.testing.assert_array_equal(found, np.searchsorted([0, 2, 7], values))
    np.testing.assert_allclose(again.header.affine, like.header.affine, atol=1e-6)
    assert again.header.original == {"segments": {"1": "sheet 2", "2": "sheet 7"}}


@pytest.mark.parametrize(
    ("kept", "match"),
    [
        ({}, "holds values, and a SEG holds classes"),
        ({"is_label": True}, "none is named; name its folder: --like"),
    ],
)
def test_what_no_seg_can_hold_is_refused(tmp_path, kept, match):
    with pytest.raises(OutputError, match=match):
        written(made(numbers(SHAPE, "uint8"), **kept), tmp_path / "a.seg.dcm")
    with pytest.raises(OutputError, match="has 2 channels"):
        written(made(np.zeros((2, *SHAPE), np.uint8), is_label=True), tmp_path / "a.dcm")
    assert not list(tmp_path.iterdir())


def test_a_seg_of_nothing_is_refused_without_naming_the_patient(tmp_path):
    like = Dicom().open(str(save(series_of(numbers(SHAPE)), tmp_path / "ct")), "x")
    with pytest.raises(OutputError, match="has 0 values above 0") as refused:
        written(made(np.zeros(SHAPE, np.uint8), is_label=True, like=like), tmp_path / "a.dcm")
    assert PATIENT not in str(refused.value)


def test_endings_are_known_whatever_their_case():
    assert written_stem("a/Case.NII.GZ") == "a/Case"
    assert written_stem("x.ome.tif") == "x"
    assert written_stem("x.zarr") == written_stem("x") == ""
    with pytest.raises(OutputError, match=r"ending of x.zarr is of no format .* one of .nii.gz"):
        exporter_of(Path("x.zarr"), "-o")


def test_gzip_holds_no_name(tmp_path):
    path = written(made(numbers(SHAPE)), tmp_path / "a.nii.gz")
    assert path.read_bytes()[3] == 0
    assert gzip.decompress(path.read_bytes())[:1] == b"\x5c"
