"""Labels on the grid of their image, with NumPy and nibabel as the other way to the same voxels."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.formats.made_dicom import numbers, save, series_of
from vcmodels.data.placing import placed_label, require_one_place
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import VolumeError
from vcmodels.formats.imported import open_located
from vcmodels.geometry.affine import index_affine
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.gridmap import GridMap
from vcmodels.geometry.symmetries import CUBE_SYMMETRIES
from vcmodels.reporting import Silent
from vcmodels.volumes import Description, Volume, open_volume, write_volume
from vcmodels.volumes.world import OURS, geometry_note

SHAPE = (5, 6, 8)
AFFINE = index_affine(
    np.array([[1.25, 0, 0, -7], [0, 0.5, 0.1, 3], [0, 0.1, 0.75, 9], [0, 0, 0, 1.0]])
)


def stored(path: object, values: np.ndarray, affine: np.ndarray | None) -> Volume:
    notes = {} if affine is None else {OURS: {"geometry": geometry_note(affine)}}
    write_volume(str(path), values, chunks=(4, 4, 4), description=Description("x", notes))
    return open_volume(str(path), key="label", channels="any")


@pytest.mark.parametrize("number", range(0, 48, 9))
def test_a_turned_label_is_put_back(tmp_path, number):
    values = numbers(SHAPE, "uint8")
    turn = CUBE_SYMMETRIES[number]
    derived = GridMap.identity(SHAPE).turned(turn).affine(AFFINE)
    image = stored(tmp_path / "image.zarr", np.zeros(SHAPE, np.uint8), AFFINE)
    label = stored(tmp_path / "label.zarr", np.ascontiguousarray(turn(values)), derived)
    reporter = Silent()
    placed = placed_label(label, image, reporter)
    np.testing.assert_array_equal(placed.read(placed.box)[0], values)
    assert (placed is label) == turn.is_identity == (not reporter.lines)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=5)
@given(
    st.tuples(*[st.integers(-3, 3)] * 3), st.tuples(*[st.integers(3, 9)] * 3), st.integers(0, 99)
)
def test_a_label_that_was_cut_out_has_zeros_around_it(tmp_path_factory, low, length, seed):
    folder = tmp_path_factory.mktemp("cut")
    values = numbers(length, "uint8", seed) + 1
    cut = GridMap.identity(SHAPE).cropped(Box(low, length))
    image = stored(folder / "image.zarr", np.zeros(SHAPE, np.uint8), AFFINE)
    label = stored(folder / "label.zarr", values, cut.affine(AFFINE))
    expected = np.zeros(SHAPE, np.uint8)
    common = Box(low, length).intersect(Box((0, 0, 0), SHAPE))
    if not common.voxels:
        with pytest.raises(VolumeError, match="lies outside of"):
            placed_label(label, image, Silent())
        return
    expected[common.slices()] = values[common.slices(Box(low, length))]
    placed = placed_label(label, image, Silent())
    np.testing.assert_array_equal(placed.read(placed.box)[0], expected)


@pytest.mark.parametrize(("off", "is_taken"), [(0.05, True), (0.5, False)])
def test_a_label_between_voxels_is_measured_and_refused(tmp_path, off, is_taken):
    moved = AFFINE.copy()
    moved[:3, 3] += off * moved[:3, 0]
    image = stored(tmp_path / "image.zarr", np.zeros(SHAPE, np.uint8), AFFINE)
    label = stored(tmp_path / "label.zarr", numbers(SHAPE, "uint8"), moved)
    if is_taken:
        assert placed_label(label, image, Silent()) is label
        return
    with pytest.raises(VolumeError, match=r"lies up to 0.5 voxels \(0.378 mm\) off the voxels of"):
        placed_label(label, image, Silent())


def test_what_says_no_place_is_left_as_it_is(tmp_path):
    image = stored(tmp_path / "image.zarr", np.zeros(SHAPE, np.uint8), AFFINE)
    label = stored(tmp_path / "label.zarr", np.zeros((3, 3, 3), np.uint8), None)
    assert placed_label(label, image, Silent()) is label


def test_several_inputs_must_lie_at_one_place(tmp_path):
    image = stored(tmp_path / "image.zarr", np.zeros(SHAPE, np.uint8), AFFINE)
    turn = CUBE_SYMMETRIES[1]
    other = GridMap.identity(SHAPE).turned(turn).affine(AFFINE)
    turned = stored(tmp_path / "other.zarr", np.zeros(turn.turned_shape(SHAPE), np.uint8), other)
    require_one_place([image, image])
    with pytest.raises(VolumeError, match=r"has its axes otherwise than .*image.zarr"):
        require_one_place([image, turned])


def test_channels_are_cut_but_not_turned(tmp_path):
    image = stored(tmp_path / "image.zarr", np.zeros(SHAPE, np.uint8), AFFINE)
    values = np.stack([numbers((3, 4, 5), "uint8", n) for n in range(2)])
    cut = GridMap.identity(SHAPE).cropped(Box((1, 1, 1), (3, 4, 5)))
    label = stored(tmp_path / "cut.zarr", values, cut.affine(AFFINE))
    placed = placed_label(label, image, Silent())
    np.testing.assert_array_equal(placed.read(Box((1, 1, 1), (3, 4, 5))), values)
    turned = GridMap.identity(SHAPE).turned(CUBE_SYMMETRIES[3])
    label = stored(
        tmp_path / "turned.zarr", np.zeros((2, *turned.shape), np.uint8), turned.affine(AFFINE)
    )
    with pytest.raises(VolumeError, match="has 2 channels along other axes"):
        placed_label(label, image, Silent())


def test_a_nifti_label_on_a_dicom_series_is_trained_on_in_its_place(tmp_path, make_task):
    folder = save(series_of(numbers(SHAPE)), tmp_path / "ct")
    image = open_located(str(folder), key="x", channels="any")
    mask = image.read(image.box)[0] > 1000
    affine = np.array(image_affine(folder))
    whole = nib.Nifti1Image(mask.T.astype(np.uint8), affine)
    label = nib.as_closest_canonical(whole).slicer[1:, :, :]
    nib.save(label, tmp_path / "mask.nii.gz")
    assert nib.aff2axcodes(label.affine) != nib.aff2axcodes(affine)
    entry = {"input": str(folder), "sheet": str(tmp_path / "mask.nii.gz"), "ref_label": "sheet"}
    reporter = Silent()
    (volume,) = open_volumes(make_task([entry]), reporter)
    found = volume.labels["sheet"].read(image.box)[0]
    at = label_index(affine, label)
    expected = np.zeros_like(found)
    for index, value in np.ndenumerate(np.asarray(label.dataobj)):
        x, y, z = np.rint(at @ [*index, 1])[:3].astype(int)
        expected[z, y, x] = value
    np.testing.assert_array_equal(found, expected)
    assert any("is placed there" in line for line in reporter.lines)


def image_affine(folder: object) -> np.ndarray:
    from vcmodels.formats.dicom import Dicom

    return Dicom().open(str(folder), "x").header.affine


def label_index(affine: np.ndarray, label: nib.Nifti1Image) -> np.ndarray:
    return np.linalg.inv(affine) @ label.affine


@pytest.mark.skipif("VCMODELS_DATA" not in os.environ, reason="needs the shared data")
def test_the_shared_labels_lie_on_their_series_whatever_their_format():
    folder = Path(os.environ["VCMODELS_DATA"]) / "dicom"
    image = open_located(str(folder / "dcmqi_ct3slice"), key="x")
    found = []
    for name in ("liver_dicomseg.dcm", "liver_seg.nrrd"):
        label = open_located(str(folder / "labels" / name), key="x")
        placed = placed_label(label, image, Silent())
        found.append(placed.read(image.box) > 0)
    np.testing.assert_array_equal(*found)
    inside = image.read(image.box)[found[0]]
    assert 0 < np.median(inside) < 80  # a liver, in Hounsfield units
