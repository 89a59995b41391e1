import os

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own documentation calls it so

from tests.formats.pieces import opened, read
from vcmodels.errors import VolumeError
from vcmodels.formats import itk as module

DATA = os.environ.get("VCMODELS_DATA")
VOLUME = np.random.default_rng(0).integers(-999, 999, (7, 12, 11), np.int16)


def placed(values: np.ndarray, *, is_vector: bool = False):
    """An ITK image that is turned and moved."""
    image = sitk.GetImageFromArray(values, isVector=is_vector)
    if image.GetDimension() == 3:
        turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
        image.SetDirection(turn.ravel())
        image.SetSpacing((0.5, 1.5, 4.0))
        image.SetOrigin((10.0, -20.0, 30.0))
    return image


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd", ".nii", ".nii.gz"])
@pytest.mark.parametrize("compresses", [False, True])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32"])
def test_voxels_and_place_are_those_of_itk(tmp_path, ending, compresses, dtype, monkeypatch):
    monkeypatch.setattr(module, "_PIECE_BYTES", 600)
    image, path = placed(VOLUME.astype(dtype)), tmp_path / f"a{ending}"
    sitk.WriteImage(image, str(path), compresses)
    header, found = read(path)
    np.testing.assert_array_equal(found[0], VOLUME.astype(dtype))
    assert (header.dtype, header.grid.spacing) == (np.dtype(dtype), pytest.approx((4, 1.5, 0.5)))
    for index in ((0, 0, 0), (10, 0, 0), (3, 11, 6)):
        left, back, top = image.TransformIndexToPhysicalPoint(index)
        point = header.affine @ (*index, 1)
        np.testing.assert_allclose(point[:3], (-left, -back, top), atol=1e-4)
    assert len(opened(path).files) == (2 if ending in (".nhdr", ".mhd") else 1)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_components_are_channels(tmp_path, ending):
    values = np.random.default_rng(0).normal(size=(5, 6, 7, 3)).astype(np.float32)
    sitk.WriteImage(placed(values, is_vector=True), str(tmp_path / f"a{ending}"))
    np.testing.assert_array_equal(read(tmp_path / f"a{ending}")[1], np.moveaxis(values, -1, 0))


def test_times_are_channels(tmp_path):
    values = np.arange(2 * 5 * 6 * 7, dtype=np.uint8).reshape(2, 5, 6, 7)
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=False), str(tmp_path / "a.mha"))
    header, found = read(tmp_path / "a.mha")
    np.testing.assert_array_equal(found, values)
    assert "channels" in header.notes[0]


def test_one_plane_is_a_volume_of_one(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(VOLUME[0]), str(tmp_path / "a.mha"))
    np.testing.assert_array_equal(read(tmp_path / "a.mha")[1][0], VOLUME[:1])


def test_a_header_without_a_size_says_none(tmp_path):
    text = "NRRD0004\ntype: short\ndimension: 3\nsizes: 11 12 7\nendian: little\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(text.encode() + VOLUME.tobytes())
    header, found = read(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(found[0], VOLUME)
    assert header.affine is None
    assert not header.grid.is_known


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_what_was_cut_is_refused(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(placed(VOLUME), str(path), ending == ".nrrd")
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(VolumeError, match=r"a\.(nrrd|mha) cannot be read"):
        read(path)


def test_voxels_in_several_files_are_refused(tmp_path):
    header = "ObjectType = Image\nNDims = 3\nDimSize = 11 12 7\nElementType = MET_SHORT\n"
    (tmp_path / "a.mhd").write_text(f"{header}ElementDataFile = a%02d.raw 1 7 1\n")
    with pytest.raises(VolumeError, match=r"in several files; write it into one"):
        _ = opened(tmp_path / "a.mhd").files


@pytest.mark.skipif(not DATA, reason="needs VCMODELS_DATA")
@pytest.mark.parametrize("name", ["liver", "spine", "heart"])
def test_real_labels_are_what_itk_reads(name):
    path = f"{DATA}/dicom/labels/{name}_seg.nrrd"
    header, found = read(path)
    np.testing.assert_array_equal(found[0], sitk.GetArrayFromImage(sitk.ReadImage(path)))
    assert header.grid.is_known
