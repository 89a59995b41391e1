import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.uid import RTStructureSetStorage

from tests.formats.made_dicom import (
    ALONG_X,
    ALONG_Y,
    SERIES,
    _image,
    numbers,
    positions,
    save,
    series_of,
)
from vcmodels.errors import VolumeError
from vcmodels.formats import dicom_labels
from vcmodels.formats.base import ForeignImage
from vcmodels.formats.dicom import Dicom

SHAPE = (5, 24, 32)
Z, Y, X = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")


def opened(location: object) -> ForeignImage:
    return Dicom().open(str(location), "label")


def voxels(image: ForeignImage) -> np.ndarray:
    """As an import reads them, in a thread."""
    found = np.full((1, *image.header.shape), 99, image.header.dtype)
    with ThreadPoolExecutor(1) as pool:
        for box, values in pool.submit(lambda: list(image.pieces())).result():
            found[(slice(None), *box.slices())] = values
    return found[0]


def write_seg(path: Path, masks: np.ndarray, names: tuple[str, ...], kind: str = "BINARY") -> Path:
    """(Z, Y, X, segments) on the made series, through highdicom."""
    described = [
        hd.seg.SegmentDescription(
            segment_number=n,
            segment_label=name,
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for n, name in enumerate(names, start=1)
    ]
    seg = hd.seg.Segmentation(
        series_of(numbers(SHAPE)), masks, kind, described, f"{SERIES}.500", 2, f"{SERIES}.501", 1,
        "made", "made", "1", "1",
    )  # fmt: skip
    seg.save_as(path)
    return path


def image_of(folder: Path) -> ForeignImage:
    return opened(save(series_of(numbers(SHAPE)), folder))


def test_a_seg_lies_on_the_grid_of_its_image_and_has_the_numbers_of_its_segments(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(dicom_labels, "_SLAB", 2)
    masks = np.stack([(X < 9) & (Z > 0), (X > 20) & (Y > 5) & (Z < 4)], -1)
    image = opened(write_seg(tmp_path / "seg.dcm", masks, ("Liver", "Spine")))
    np.testing.assert_array_equal(voxels(image), masks[..., 0] + 2 * masks[..., 1])
    np.testing.assert_allclose(
        image.header.affine, image_of(tmp_path / "ct").header.affine, atol=1e-6
    )
    assert image.header.dtype == np.uint8
    assert image.header.is_label
    assert image.header.original == {"segments": {"1": "Liver", "2": "Spine"}}


def test_slices_that_a_seg_leaves_out_are_zero_or_cut_off(tmp_path):
    masks = ((X < 9) & ((Z == 1) | (Z == 3)))[..., None]
    image = opened(write_seg(tmp_path / "seg.dcm", masks, ("Liver",)))
    np.testing.assert_array_equal(voxels(image), masks[1:4, ..., 0])
    whole = image_of(tmp_path / "ct").header.affine
    np.testing.assert_allclose(image.header.affine, whole @ _moved(2, 1), atol=1e-6)


def _moved(axis: int, by: float) -> np.ndarray:
    moved = np.eye(4)
    moved[axis, 3] = by
    return moved


def test_overlapping_segments_are_refused_and_read_one_by_one(tmp_path):
    masks = np.stack([X < 9, X < 12, X > 20], -1)
    path = write_seg(tmp_path / "seg.dcm", masks, ("Liver", "Spine", "Heart"))
    with pytest.raises(VolumeError, match="overlap, and a voxel can have one value only; read one"):
        voxels(opened(path))
    for choice, n in (("2", 1), ("spine", 1), ("Heart", 2)):
        image = opened(f"{path}#{choice}")
        np.testing.assert_array_equal(voxels(image), masks[..., n])
    with pytest.raises(VolumeError, match='"Lung" is no segment, or not one, of 1 Liver'):
        opened(f"{path}#Lung")


def test_fractions_are_refused(tmp_path):
    fractions = np.full((*SHAPE, 1), 0.5)
    path = write_seg(tmp_path / "seg.dcm", fractions, ("Liver",), "FRACTIONAL")
    with pytest.raises(VolumeError, match="holds fractions"):
        opened(path)


def test_a_cut_seg_is_one_line(tmp_path):
    path = write_seg(tmp_path / "seg.dcm", (X < 9)[..., None], ("Liver",))
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(VolumeError, match="cannot be read"):
        opened(path)


def contour(points: np.ndarray, z: float, kind: str = "CLOSED_PLANAR") -> Dataset:
    """A contour through points (y, x) in voxels of a slice."""
    made = Dataset()
    origin = positions(1)[0] + z * (positions(2)[1] - positions(1)[0])
    steps = points[:, :1] * 0.5 * np.array(ALONG_Y) + points[:, 1:] * 0.75 * np.array(ALONG_X)
    made.ContourData = [f"{n:.6f}" for n in (origin + steps).ravel()]
    made.ContourGeometricType, made.NumberOfContourPoints = kind, len(points)
    return made


def write_struct(path: Path, regions: dict[tuple[int, str], list[Dataset]]) -> Path:
    made = _image(
        np.zeros((1, 1), np.uint8), f"{SERIES}.900", f"{SERIES}.901", RTStructureSetStorage
    )
    for tag in ("Rows", "Columns", "PixelData", "SamplesPerPixel"):
        delattr(made, tag)
    made.Modality = "RTSTRUCT"
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = SERIES
    study.RTReferencedSeriesSequence = Items([series])
    frame.RTReferencedStudySequence = Items([study])
    made.ReferencedFrameOfReferenceSequence = Items([frame])
    rois, drawn = [], []
    for (number, name), contours in regions.items():
        roi, lines = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        lines.ReferencedROINumber, lines.ContourSequence = number, Items(contours)
        rois.append(roi)
        drawn.append(lines)
    made.StructureSetROISequence, made.ROIContourSequence = Items(rois), Items(drawn)
    path.parent.mkdir(exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def circle(y: float, x: float, radius: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    return np.stack([y + radius * np.sin(angles), x + radius * np.cos(angles)], 1)


def test_contours_fill_the_voxels_whose_centre_they_enclose(tmp_path):
    save(series_of(numbers(SHAPE)), tmp_path / "patient" / "ct")
    path = write_struct(
        tmp_path / "patient" / "labels" / "rtstruct.dcm",
        {
            (3, "Cord"): [contour(circle(10.3, 12.2, 7.1), 1), contour(circle(10.3, 12.2, 2.6), 1)],
            (7, "Box"): [
                contour(np.array([[0.6, 24.6], [0.6, 29.4], [9.4, 29.4], [9.4, 24.6]]), 3)
            ],
        },
    )
    image = opened(path)
    away = np.hypot(Y - 10.3, X - 12.2)
    expected = 3 * ((Z == 1) & (away < 7.1) & (away > 2.6))
    expected += 7 * ((Z == 3) & (Y >= 1) & (Y <= 9) & (X >= 25) & (X <= 29))
    np.testing.assert_array_equal(voxels(image), expected)
    np.testing.assert_allclose(image.header.affine, image_of(tmp_path / "again").header.affine)
    assert image.header.notes == ("segments: 3 Cord, 7 Box",)


def test_overlapping_regions_are_refused_and_read_one_by_one(tmp_path):
    save(series_of(numbers(SHAPE)), tmp_path / "ct")
    regions = {
        (1, "Body"): [contour(circle(10, 12, 9), 2)],
        (2, "Cord"): [contour(circle(10, 12, 3), 2)],
    }
    path = write_struct(tmp_path / "rtstruct.dcm", regions)
    with pytest.raises(VolumeError, match=r"1 Body and 2 Cord overlap.*rtstruct.dcm#2"):
        voxels(opened(path))
    expected = (Z == 2) & (np.hypot(Y - 10, X - 12) <= 3)
    assert (voxels(opened(f"{path}#cord")) != expected).sum() <= 4  # corners that lie on the line


def test_points_are_left_out_with_a_word_and_contours_between_slices_refused(tmp_path):
    save(series_of(numbers(SHAPE)), tmp_path / "ct")
    point = contour(np.array([[1.0, 1.0]]), 2, "POINT")
    path = write_struct(tmp_path / "rtstruct.dcm", {(1, "Cord"): [point]})
    assert opened(path).header.notes[1] == "contours that are points or open lines, left out: 1"
    between = write_struct(tmp_path / "off.dcm", {(1, "Cord"): [contour(circle(10, 12, 3), 1.4)]})
    with pytest.raises(VolumeError, match=r"1 Cord lies 0.4 slices off slice 1"):
        voxels(opened(between))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda made: delattr(made, "ROIContourSequence"), "cannot be read .AttributeError"),
        (
            lambda made: made.ROIContourSequence[0].ContourSequence[0].ContourData.pop(),
            "cannot be read .ValueError",
        ),
        (
            lambda made: setattr(made.ROIContourSequence[0], "ReferencedROINumber", 9),
            "contours of a region 9, which it does not name; export it again",
        ),
    ],
    ids=["no contours", "not in threes", "no such region"],
)
def test_a_damaged_rtstruct_is_refused(tmp_path, damage, match):
    save(series_of(numbers(SHAPE)), tmp_path / "ct")
    path = write_struct(tmp_path / "a.dcm", {(1, "Cord"): [contour(circle(10, 12, 3), 1)]})
    made = pydicom.dcmread(path)
    damage(made)
    made.save_as(path)
    with pytest.raises(VolumeError, match=match):
        voxels(opened(path))


def test_a_region_that_is_chosen_is_read_whatever_the_others_are(tmp_path):
    save(series_of(numbers(SHAPE)), tmp_path / "ct")
    off, point = contour(circle(10, 12, 3), 1.4), contour(np.array([[1.0, 1.0]]), 2, "POINT")
    regions = {(1, "Body"): [off, point], (2, "Cord"): [contour(circle(10, 12, 3), 1)]}
    image = opened(f"{write_struct(tmp_path / 'a.dcm', regions)}#Cord")
    assert voxels(image)[1, 10, 12] == 1
    assert image.header.notes == ("segments: 1 Body, 2 Cord; 2 is read, as 1",)
    with pytest.raises(VolumeError, match=r"1 Body lies 0.4 slices off slice 1"):
        voxels(opened(tmp_path / "a.dcm"))


def test_contours_without_their_image_say_where_it_is_looked_for(tmp_path):
    save(series_of(numbers(SHAPE), series="1.2.3"), tmp_path / "a" / "ct")
    path = write_struct(tmp_path / "a" / "rtstruct.dcm", {(1, "Cord"): []})
    with pytest.raises(VolumeError, match="neither next to it nor in the folder above"):
        opened(path)


@pytest.mark.skipif("VCMODELS_DATA" not in os.environ, reason="needs the shared data")
def test_the_shared_seg_equals_the_same_label_as_nrrd():
    folder = Path(os.environ["VCMODELS_DATA"]) / "dicom"
    image = opened(folder / "labels" / "liver_dicomseg.dcm")
    other = sitk.ReadImage(str(folder / "labels" / "liver_seg.nrrd"))
    np.testing.assert_array_equal(voxels(image) > 0, sitk.GetArrayFromImage(other) > 0)
    series = opened(folder / "dcmqi_ct3slice")
    np.testing.assert_allclose(image.header.affine, series.header.affine, atol=1e-3)
