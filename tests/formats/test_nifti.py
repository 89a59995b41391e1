import base64
import gzip
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.nifti1 import Nifti1Extension

import vcmodels
from vcmodels.errors import VolumeError
from vcmodels.formats import file_stem, format_of
from vcmodels.formats.nifti import Nifti
from vcmodels.volumes.world import source_note, world_affine

DATA = os.environ.get("VCMODELS_DATA")
SHAPE = (7, 6, 5)
AFFINE = np.array([[0, -1.5, 0, 9.0], [0.5, 0, 0, -4], [0, 0, 4, 2], [0, 0, 0, 1]])


def voxels(dtype: str, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    rng = np.random.default_rng(1)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    info, native = np.iinfo(dtype), np.dtype(dtype).newbyteorder("=")
    return rng.integers(info.min, info.max, shape, native, endpoint=True).astype(dtype)


def opened(path: Path):
    return Nifti().open(str(path), "input")


def read(path: Path) -> np.ndarray:
    """All voxels, put together from pieces by their boxes."""
    image = opened(path)
    header, lead = image.header, image.header.shape[:-3] or (1,)
    found = np.full((*lead, *header.shape[-3:]), 99, header.dtype)
    for box, piece in image.pieces():
        assert piece.dtype == header.dtype
        found[(slice(None), *box.slices())] = piece
    return found


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", ">f4", "float64", "uint32", "int64"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_voxels_and_type_are_those_that_nibabel_reads(tmp_path, ending, dtype, kind):
    path = tmp_path / f"a{ending}"
    header = kind.header_class(endianness=">" if dtype.startswith(">") else "<")
    image = kind(voxels(dtype), AFFINE, header, dtype=np.dtype(dtype).newbyteorder("="))
    nibabel.save(image, path)
    assert nibabel.load(path).header.endianness == ("<" if dtype[0] != ">" else ">")
    found = read(path)
    np.testing.assert_array_equal(found[0], np.asarray(nibabel.load(path).dataobj).T)
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_allclose(opened(path).header.affine, AFFINE)


@pytest.mark.parametrize(("slope", "shift"), [(2.0, -1024.0), (1 / 3, 0.0), (1.0, 0.5)])
def test_a_slope_gives_float32_of_what_nibabel_computes(tmp_path, slope, shift):
    path = tmp_path / "a.nii.gz"
    image = nibabel.Nifti1Image(voxels("int16"), AFFINE)
    image.header.set_slope_inter(slope, shift)
    image.header["vox_offset"] = 352
    with gzip.open(path, "wb") as file:
        file.write(image.header.binaryblock + bytes(4) + voxels("int16").tobytes("F"))
    stored = opened(path)
    assert stored.header.dtype == np.float32
    wanted = np.asarray(nibabel.load(path).dataobj).T.astype(np.float32)
    assert not np.array_equal(wanted, voxels("int16").T)
    np.testing.assert_array_equal(read(path)[0], wanted)


def test_a_slope_of_zero_or_one_changes_nothing(tmp_path):
    for slope in (0.0, 1.0, float("nan")):
        path = tmp_path / "a.nii"
        image = nibabel.Nifti1Image(voxels("int16"), AFFINE)
        image.header["scl_slope"], image.header["scl_inter"] = slope, 0
        path.write_bytes(image.header.binaryblock + bytes(4) + voxels("int16").tobytes("F"))
        assert opened(path).header.dtype == np.int16


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_times_become_channels_and_it_is_said(tmp_path, ending):
    many = voxels("int16", (*SHAPE, 3))
    nibabel.save(nibabel.Nifti1Image(many, AFFINE), tmp_path / f"a{ending}")
    image = opened(tmp_path / f"a{ending}")
    assert image.header.shape == (3, 5, 6, 7)
    assert "3 behind (x, y, z) is read as channels" in image.header.notes[0]
    np.testing.assert_array_equal(read(tmp_path / f"a{ending}"), many.transpose(3, 2, 1, 0))


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((7, 6), (1, 6, 7)),
        ((7, 6, 5, 1), (5, 6, 7)),
        ((7, 6, 5, 1, 3), (3, 5, 6, 7)),
        ((7, 6, 5, 2, 1), (2, 5, 6, 7)),
    ],
)
def test_axes_of_length_one_behind_the_space_are_none(tmp_path, shape, wanted):
    nibabel.save(nibabel.Nifti1Image(voxels("uint8", shape), AFFINE), tmp_path / "a.nii.gz")
    assert opened(tmp_path / "a.nii.gz").header.shape == wanted
    flat = read(tmp_path / "a.nii.gz").ravel()
    np.testing.assert_array_equal(flat, voxels("uint8", shape).ravel("F"))


@given(
    seed=st.integers(0, 10**6), sform=st.sampled_from([0, 1, 4]), qform=st.sampled_from([0, 1, 2])
)
@settings(max_examples=25, deadline=None)
def test_the_place_is_that_of_nibabel_for_any_codes(tmp_path_factory, seed, sform, qform):
    rng = np.random.default_rng(seed)
    image = nibabel.Nifti1Image(voxels("uint8"), None)
    turned = np.eye(4)
    sizes = rng.uniform(0.3, 5, 3)
    turned[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] * sizes
    turned[:3, 3] = rng.normal(size=3)
    image.set_qform(turned, qform)
    moved = turned.copy()
    moved[:3, :3] *= (1, -1, 1)
    image.set_sform(moved, sform)
    path = tmp_path_factory.mktemp("place") / "a.nii"
    nibabel.save(image, path)
    header = opened(path).header
    np.testing.assert_allclose(header.affine, nibabel.load(path).affine, atol=1e-6)
    zooms = np.linalg.norm(nibabel.load(path).affine[:3, :3], axis=0)[::-1]
    np.testing.assert_allclose(header.grid.spacing, zooms, rtol=1e-6)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e3), ("micron", 1e-3), ("unknown", 1)])
def test_lengths_become_millimetres(tmp_path, unit, factor):
    image = nibabel.Nifti1Image(voxels("uint8"), AFFINE)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii")
    header = opened(tmp_path / "a.nii").header
    np.testing.assert_allclose(header.affine[:3], factor * AFFINE[:3])
    np.testing.assert_allclose(header.grid.spacing, np.array([4, 1.5, 0.5]) * factor)
    assert header.grid.unit == "millimeter"


@pytest.mark.parametrize("size", [0.0, float("nan")])
def test_a_header_without_a_voxel_size_has_none(tmp_path, size):
    image = nibabel.Nifti1Image(voxels("uint8"), None)
    image.header["pixdim"][2] = size
    raw = image.header.binaryblock + bytes(4) + voxels("uint8").tobytes("F")
    (tmp_path / "a.nii").write_bytes(raw)
    header = opened(tmp_path / "a.nii").header
    assert header.affine is None
    assert not header.grid.is_known
    assert "no voxel size" in header.notes[0]


def test_a_negative_voxel_size_is_a_length(tmp_path):
    image = nibabel.Nifti1Image(voxels("uint8"), None)
    image.header["pixdim"][1:4] = -2, 3, 4
    raw = image.header.binaryblock + bytes(4) + voxels("uint8").tobytes("F")
    (tmp_path / "a.nii").write_bytes(raw)
    assert opened(tmp_path / "a.nii").header.grid.spacing == (4, 3, 2)


def test_the_header_is_kept_without_its_free_texts_and_extensions(tmp_path):
    image = nibabel.Nifti1Image(voxels("int16"), AFFINE)
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = b"Jane Doe"
    image.header.extensions.append(Nifti1Extension("comment", b"Jane Doe"))
    image.header["slice_duration"] = 0.25
    nibabel.save(image, tmp_path / "a.nii.gz")
    kept = base64.b64decode(opened(tmp_path / "a.nii.gz").header.original["header"])
    assert b"Doe" not in kept
    stored = nibabel.load(tmp_path / "a.nii.gz").header
    again = nibabel.Nifti1Header(kept)
    named = {"descrip", "aux_file", "db_name", "intent_name"}
    for field in {*stored} - named - {"scl_slope", "scl_inter", "vox_offset"}:  # blanked on loading
        np.testing.assert_array_equal(again[field], stored[field], err_msg=field)


def test_a_file_that_names_itself_a_label_is_one(tmp_path):
    image = nibabel.Nifti1Image(voxels("uint8"), AFFINE)
    nibabel.save(image, tmp_path / "a.nii")
    assert not opened(tmp_path / "a.nii").header.is_label
    image.header.set_intent("label")
    nibabel.save(image, tmp_path / "a.nii")
    assert opened(tmp_path / "a.nii").header.is_label


@pytest.mark.parametrize("dtype", [[("R", "u1"), ("G", "u1"), ("B", "u1")], "complex64"])
def test_colours_and_complex_numbers_are_refused(tmp_path, dtype):
    nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, dtype), AFFINE), tmp_path / "a.nii.gz")
    with pytest.raises(VolumeError, match=r"a.nii.gz holds (colours|complex).*; write one number"):
        opened(tmp_path / "a.nii.gz")


def test_two_more_axes_are_refused(tmp_path):
    image = nibabel.Nifti1Image(voxels("uint8", (*SHAPE, 2, 3)), AFFINE)
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(VolumeError, match=r"has shape \(7, 6, 5, 2, 3\); write \(x, y, z\)"):
        opened(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("ending", "cut"), [(e, n) for e in (".nii", ".nii.gz") for n in (0, 40, 500)]
)
def test_a_file_that_was_cut_is_refused(tmp_path, ending, cut):
    path = tmp_path / f"a{ending}"
    nibabel.save(nibabel.Nifti1Image(voxels("int16"), AFFINE), path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(VolumeError, match=r"a\.nii.* cannot be read .*cut or damaged"):
        read(path)


def test_a_damaged_byte_of_a_compressed_file_is_found(tmp_path):
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels("int16", (40, 30, 20)), AFFINE), path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(VolumeError, match="cut or damaged"):
        read(path)


def test_names_are_known_by_their_endings(tmp_path):
    for name in ("sub-01_T2w.nii.gz", "A.NII", "b.txt", "c.nii.zst"):
        (tmp_path / name).touch()
    kinds = {p.name: format_of(str(p)) for p in tmp_path.iterdir()}
    assert {name for name, kind in kinds.items() if kind} == {"sub-01_T2w.nii.gz", "A.NII"}
    assert file_stem("/x/sub-01_T2w.nii.gz") == "sub-01_T2w"
    assert file_stem("/x/run.1/0") == ""
    assert format_of(str(tmp_path / "missing.nii")) is None
    assert format_of("https://host/a.nii.gz") is None


@pytest.mark.skipif(not DATA, reason="needs VCMODELS_DATA")
@pytest.mark.parametrize("name", ["sub-spleen2_ct", "t2_fake_lesion", "t2_fake_lesion_sc_seg"])
def test_real_files_are_what_nibabel_reads(name):
    path = f"{DATA}/nifti/{name}.nii.gz"
    volume, other = vcmodels.open_volume(path), nibabel.load(path)
    np.testing.assert_array_equal(volume.read(volume.box)[0], np.asarray(other.dataobj).T)
    np.testing.assert_allclose(world_affine(volume), other.affine)
    assert source_note(volume)["name"] == f"{name}.nii.gz"
