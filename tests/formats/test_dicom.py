import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

from tests.formats.made_dicom import (
    ALONG_Y,
    PATIENT,
    SERIES,
    enhanced,
    numbers,
    positions,
    save,
    series_of,
    slice_of,
)
from vcmodels.cli import main
from vcmodels.errors import VolumeError
from vcmodels.formats import dicom_frames, format_of
from vcmodels.formats.dicom import Dicom
from vcmodels.formats.dicom_series import DicomImage
from vcmodels.formats.imported import examined, open_located
from vcmodels.formats.tiff import Tiff
from vcmodels.geometry.affine import flipped_world
from vcmodels.reporting import Silent
from vcmodels.volumes import open_volume
from vcmodels.volumes.world import place_notes, source_note

SHAPE = (5, 6, 8)


def opened(location: object) -> DicomImage:
    image = Dicom().open(str(location), "input")
    assert isinstance(image, DicomImage)
    return image


def voxels(image: DicomImage) -> np.ndarray:
    found = np.full((1, *image.header.shape), 99, image.header.dtype)
    for box, values in image.pieces():
        found[(slice(None), *box.slices())] = values
    return found[0]


def by_itk(files: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and RAS+ affine, as ITK reads files of a series."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), flipped_world(affine)


def gdcm_names(folder: Path) -> list[str]:
    return list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), SERIES))


def test_a_shuffled_series_has_the_voxels_and_the_place_that_itk_finds(tmp_path):
    values = numbers(SHAPE)
    folder = save(series_of(values), tmp_path / "ct")
    image = opened(folder)
    found, affine = by_itk(gdcm_names(folder))
    assert image.header.dtype == np.int16
    np.testing.assert_array_equal(voxels(image), 2 * values - 1024)
    np.testing.assert_array_equal(voxels(image), found)
    np.testing.assert_allclose(image.header.affine, affine, atol=1e-6)
    np.testing.assert_allclose(image.header.grid.spacing, (1.25, 0.5, 0.75))
    assert image.header.grid.unit == "millimeter"


def test_slices_are_sorted_by_place_though_names_fall(tmp_path):
    values = numbers(SHAPE)
    made = series_of(values)
    folder = save(made[::-1], tmp_path / "ct", [f"{n}.dcm" for n in range(len(made))])
    np.testing.assert_array_equal(voxels(opened(folder)), 2 * values - 1024)


@pytest.mark.parametrize(("slope", "intercept"), [(None, None), (1, 0)])
def test_what_is_not_rescaled_keeps_its_type(tmp_path, slope, intercept):
    values = numbers(SHAPE, "uint16")
    image = opened(save(series_of(values, slope=slope, intercept=intercept), tmp_path / "ct"))
    assert image.header.dtype == np.uint16
    np.testing.assert_array_equal(voxels(image), values)


def test_a_scale_of_its_own_for_each_slice_and_fractions_make_float32(tmp_path):
    values, scales = numbers(SHAPE), (0.5, 1, 1.5, 2, 0.25)
    made = [
        slice_of(one, place, uid=f"{SERIES}.{n}", slope=scales[n], intercept=n)
        for n, (one, place) in enumerate(zip(values, positions(5), strict=True))
    ]
    image = opened(save(made, tmp_path / "ct"))
    expected = values * np.array(scales)[:, None, None] + np.arange(5)[:, None, None]
    assert image.header.dtype == np.float32
    np.testing.assert_array_equal(voxels(image), expected.astype(np.float32))


def test_values_beyond_int16_become_int32(tmp_path):
    values = numbers(SHAPE, "uint16")
    values[2, 3, 4] = 60_000
    image = opened(save(series_of(values, slope=1), tmp_path / "ct"))
    assert image.header.dtype == np.int32
    np.testing.assert_array_equal(voxels(image), values.astype(np.int32) - 1024)


@pytest.mark.parametrize(
    ("rows", "size", "match"),
    [
        (2001, 8e-4, r"shapes \(rows, columns\): 1 of \(2000, 3\), 1 of \(2001, 3\)"),
        (2000, 4e-4, r"spacings: 1 of \(0.0008, 0.0008\), 1 of \(0.0004, 0.0004\)"),
    ],
)
def test_slices_that_differ_by_a_row_or_by_little_lengths_are_refused(tmp_path, rows, size, match):
    first, second = positions(2)
    made = [
        slice_of(np.zeros((2000, 3), np.int16), first, uid="1.1", spacing=(8e-4, 8e-4)),
        slice_of(np.zeros((rows, 3), np.int16), second, uid="1.2", spacing=(size, size)),
    ]
    with pytest.raises(VolumeError, match=match):
        opened(save(made, tmp_path / "ct"))


def test_localizers_and_copies_are_left_out_with_a_word(tmp_path):
    values = numbers(SHAPE)
    made = series_of(values)
    overview = slice_of(
        values[0, :4], (0, 0, 0), uid=f"{SERIES}.77", image_type=("A", "B", "LOCALIZER")
    )
    again = slice_of(values[2], positions(5)[2], uid=f"{SERIES}.78")
    image = opened(save([*made, overview, made[1], again], tmp_path / "ct"))
    np.testing.assert_array_equal(voxels(image), 2 * values - 1024)
    assert image.header.notes == (
        "localizers left out: 1",
        "slices that are there twice, left out: 2",
    )


def test_a_localizer_of_its_own_series_is_never_meant(tmp_path):
    values = numbers(SHAPE)
    overview = slice_of(
        values[0], (0, 0, 0), uid="1.2.3.4", series="1.2.3", image_type=("LOCALIZER",)
    )
    image = opened(save([*series_of(values), overview], tmp_path / "ct"))
    assert image.header.shape == SHAPE


def test_two_different_slices_at_one_place_are_refused(tmp_path):
    made = series_of(numbers(SHAPE))
    other = slice_of(numbers(SHAPE, seed=1)[2], positions(5)[2], uid=f"{SERIES}.9")
    with pytest.raises(VolumeError, match=r"2 different slices lie at 42.5 mm"):
        opened(save([*made, other], tmp_path / "ct"))


def test_a_missing_slice_is_named_by_its_neighbours(tmp_path):
    made = series_of(numbers(SHAPE))
    folder = save(made[:2] + made[3:], tmp_path / "ct")
    with pytest.raises(
        VolumeError, match=r"slices are missing: 1, 1.25 mm apart, between .* and .* mm"
    ):
        opened(folder)


def test_uneven_slices_are_refused_with_their_place(tmp_path):
    made = series_of(numbers(SHAPE))
    moved = positions(5)[3] + 0.3 * np.array((-1, 0, 0))
    made[3] = slice_of(numbers(SHAPE)[3], moved, uid=f"{SERIES}.4")
    with pytest.raises(VolumeError, match=r"0.95 to 1.55 mm apart, as at"):
        opened(save(made, tmp_path / "ct"))


def test_rounded_positions_are_even(tmp_path):
    places = [np.round(place, 1) for place in positions(9, step=0.625)]
    values = numbers((9, 6, 8))
    made = [
        slice_of(v, p, uid=f"{SERIES}.{n}")
        for n, (v, p) in enumerate(zip(values, places, strict=True))
    ]
    assert opened(save(made, tmp_path / "ct")).header.grid.spacing[0] == pytest.approx(0.625)


def test_a_tilted_gantry_is_refused_with_its_angle(tmp_path):
    angle = np.radians(12.5)
    values = numbers(SHAPE)
    lean = np.array(ALONG_Y) * np.tan(angle) * 1.25
    made = [
        slice_of(v, p + n * lean, uid=f"{SERIES}.{n}")
        for n, (v, p) in enumerate(zip(values, positions(5), strict=True))
    ]
    with pytest.raises(VolumeError, match=r"lean by 12.50 degrees"):
        opened(save(made, tmp_path / "ct"))


def test_a_lean_of_less_than_a_tenth_of_a_voxel_is_none(tmp_path):
    values = numbers(SHAPE)
    lean = np.array(ALONG_Y) * 0.01
    made = [
        slice_of(v, p + n * lean, uid=f"{SERIES}.{n}")
        for n, (v, p) in enumerate(zip(values, positions(5), strict=True))
    ]
    affine = opened(save(made, tmp_path / "ct")).header.affine
    np.testing.assert_allclose(affine[:3, :3].T @ affine[:3, :3], np.diag([0.5625, 0.25, 1.5625]))


def test_a_slice_that_is_shifted_sideways_is_refused_with_its_place(tmp_path):
    made = series_of(numbers(SHAPE))
    moved = positions(5)[2] + 0.2 * np.array(ALONG_Y)
    made[2] = slice_of(numbers(SHAPE)[2], moved, uid=f"{SERIES}.3")
    with pytest.raises(VolumeError, match=r"\(-42.5, 12.5, 29.8\) is shifted sideways by 0.2 mm"):
        opened(save(made, tmp_path / "ct"))


def test_an_added_file_deep_in_a_folder_is_seen(tmp_path):
    made = series_of(numbers(SHAPE))
    save(made[:4], tmp_path / "a" / "b", ["0", "1", "2", "3"])
    assert open_located(str(tmp_path / "a"), key="x").extent == (4, 6, 8)
    save(made[4:], tmp_path / "a" / "b", ["4"])
    assert open_located(str(tmp_path / "a"), key="x").extent == SHAPE


def test_several_series_are_listed_and_chosen_by_number_or_uid(tmp_path):
    values, other = numbers(SHAPE), numbers((3, 4, 8), seed=1)
    save(series_of(values), tmp_path / "all" / "a")
    save(series_of(other, series="1.2.3.45678"), tmp_path / "all" / "b")
    with pytest.raises(
        VolumeError, match=r"2 series in .*: #1 CT of 3 slices, 4 x 8 .*; #2 CT of 5"
    ):
        opened(tmp_path / "all")
    for choice, expected in (("1", other), ("5678", other), ("2", values)):
        found = voxels(opened(f"{tmp_path / 'all'}#{choice}"))
        np.testing.assert_array_equal(found, 2 * expected - 1024)
    with pytest.raises(VolumeError, match='"#9" is none'):
        opened(f"{tmp_path / 'all'}#9")


def test_a_file_of_many_frames_is_sorted_and_scaled_by_its_functional_groups(tmp_path):
    values = numbers(SHAPE)
    folder = save([enhanced(values, (3, 0, 4, 1, 2))], tmp_path / "ct")
    image = opened(folder)
    scale = np.arange(1, 6)[:, None, None]
    np.testing.assert_array_equal(voxels(image), scale * values - 5)
    single = opened(save(series_of(values), tmp_path / "single"))
    np.testing.assert_allclose(image.header.affine, single.header.affine)


def test_one_slice_has_the_thickness_that_it_says(tmp_path):
    folder = save(series_of(numbers((1, 6, 8))), tmp_path / "ct")
    assert opened(folder / "011-0.dcm").header.grid.spacing == (9, 0.5, 0.75)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("SamplesPerPixel", 3, "in colour"),
        ("ImagePositionPatient", None, "no ImagePositionPatient"),
        ("ImageType", ["ORIGINAL", "MOSAIC"], "MOSAIC"),
        ("NumberOfFrames", 7, "7 frames does not say where"),
        ("PixelSpacing", [0, 1], "PixelSpacing is"),
        ("PixelRepresentation", 5, r"an image of the series \(UID ....498.1.7\) cannot be read"),
    ],
)
def test_what_cannot_be_read_rightly_is_refused(tmp_path, key, value, match):
    made = series_of(numbers(SHAPE))
    for one in made:
        setattr(one, key, value)
    with pytest.raises(VolumeError, match=match):
        opened(save(made, tmp_path / "ct"))


@pytest.mark.parametrize("name", ["Columns", "BitsAllocated", "PixelRepresentation"])
def test_an_image_that_lacks_what_its_voxels_are_is_refused(tmp_path, name):
    folder = save(series_of(numbers((1, 6, 8))), tmp_path / "ct", ["a"])
    made = pydicom.dcmread(folder / "a")
    delattr(made, name)
    made.save_as(folder / "a")
    with pytest.raises(VolumeError, match="modality CT holds no whole numbers"):
        opened(folder)


def test_a_compression_without_its_package_names_one(tmp_path, monkeypatch):
    made = series_of(numbers(SHAPE))
    for one in made:
        one.compress("1.2.840.10008.1.2.5")  # RLE, which pydicom undoes itself
    folder = save(made, tmp_path / "ct")
    np.testing.assert_array_equal(voxels(opened(folder)), 2 * numbers(SHAPE) - 1024)
    monkeypatch.setattr(
        dicom_frames, "get_decoder", lambda _: type("Lacking", (), {"is_available": False})
    )
    with pytest.raises(
        VolumeError, match="RLE Lossless, for which a package is missing; pip install"
    ):
        opened(folder)


def test_a_file_that_is_cut_is_named_by_the_place_of_its_slice(tmp_path):
    folder = save(series_of(numbers(SHAPE)), tmp_path / "ct")
    cut = folder / "011-0.dcm"
    cut.write_bytes(cut.read_bytes()[:-20])
    with pytest.raises(VolumeError, match=r"a slice at \(-40, 12.5, 30\) cannot be decoded"):
        voxels(opened(folder))


def test_no_patient_is_in_header_or_messages_unless_asked_for(tmp_path):
    made = series_of(numbers(SHAPE))
    image = opened(save(made, tmp_path / "ct"))
    assert PATIENT not in repr(image.header)
    assert PATIENT in repr(image.full_header())
    with pytest.raises(VolumeError) as refused:
        opened(save([*made, *series_of(numbers(SHAPE), series="1.2.9")], tmp_path / "two"))
    assert PATIENT not in str(refused.value)


def test_names_of_files_are_not_shown(tmp_path, monkeypatch):
    shown = []

    class Bars(Silent):
        @contextmanager
        def bar(self, name, total):
            with super().bar(name, total):
                yield lambda _amount, text: shown.append((name, text))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = save(series_of(numbers((2, 6, 8))), tmp_path / "ct", ["Secret-1", "Secret-2"])
    open_located(str(folder), reporter=Bars())
    assert ("reading ct", "") in shown
    assert "Secret" not in str(shown)
    image = opened(folder)
    (folder / "Secret-1").unlink()
    with pytest.raises(VolumeError, match="ct cannot be read") as refused:
        examined(Dicom(), image, str(folder), "input", Silent())
    assert "Secret" not in str(refused.value)


def test_an_import_names_the_patient_only_if_it_is_asked_to(tmp_path, capsys):
    folder = save(series_of(numbers(SHAPE)), tmp_path / "ct")
    for option in ([], ["--keep-header"]):
        place = tmp_path / f"out{len(option)}.zarr"
        assert main(["import", str(folder), str(place), *option]) == 0
        texts = [
            path.read_text() for path in place.rglob("*") if path.name in (".zattrs", "zarr.json")
        ]
        assert any(PATIENT in text for text in texts) == bool(option)
        assert not any("011-0.dcm" in text for text in texts)
    assert PATIENT not in "".join(capsys.readouterr())
    image = open_volume(str(place), key="x")
    assert source_note(image)["header"]["00080060"]["Value"] == ["CT"]
    assert "header" not in place_notes(image)["source"]


def test_only_dicom_is_recognised(tmp_path):
    folder = save(series_of(numbers((2, 6, 8))), tmp_path / "deep" / "inner", ["a", "b"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.tif").write_bytes(b"II*")
    recognises = Dicom().recognises
    assert recognises(str(folder))
    assert recognises(str(tmp_path / "deep"))
    assert recognises(str(folder / "a"))
    assert not recognises(str(tmp_path / "other"))
    assert not recognises(str(tmp_path / "gone"))


def test_pictures_and_hidden_files_in_a_folder_of_dicom_do_not_count(tmp_path):
    folder = save(series_of(numbers((2, 6, 8))), tmp_path / "ct", ["a", "b"])
    (folder / "0.tif").write_bytes(b"II*")
    for n in range(20):
        (folder / f".{n}").touch()
    assert isinstance(format_of(str(folder)), Dicom)
    assert isinstance(format_of(str(folder / "0.tif")), Tiff)


def test_a_folder_without_images_says_so(tmp_path):
    with pytest.raises(VolumeError, match="holds no DICOM image"):
        opened(tmp_path)


@pytest.mark.skipif("VCMODELS_DATA" not in os.environ, reason="needs the shared data")
def test_the_shared_series_is_read_as_itk_reads_it():
    folder = Path(os.environ["VCMODELS_DATA"]) / "dicom" / "dcmqi_ct3slice"
    image = opened(folder)
    found, affine = by_itk(list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))))
    np.testing.assert_array_equal(voxels(image), found)
    np.testing.assert_allclose(image.header.affine, affine, atol=1e-9)
    assert image.header.dtype == np.int16


@pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="needs dcm2niix")
def test_dcm2niix_finds_the_same_values_at_the_same_places(tmp_path):
    image = opened(save(series_of(numbers(SHAPE)), tmp_path / "ct"))
    subprocess.run(["dcm2niix", "-o", tmp_path, "-f", "out", tmp_path / "ct"], check=True)
    other = nib.load(tmp_path / "out.nii")
    ours = np.asarray(voxels(image).T)
    to_other = np.linalg.inv(other.affine) @ image.header.affine
    index = np.stack(np.meshgrid(*map(np.arange, ours.shape), indexing="ij"), -1).reshape(-1, 3)
    at = index @ to_other[:3, :3].T + to_other[:3, 3]
    np.testing.assert_allclose(at, np.round(at), atol=1e-3)
    found = other.get_fdata()[tuple(np.round(at).astype(int).T)]
    np.testing.assert_array_equal(found, ours.reshape(-1))
