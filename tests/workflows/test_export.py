"""From files to a result and back to files."""

import nibabel as nib
import numpy as np
import pytest

from tests.formats.made_dicom import numbers, save, series_of
from tests.inference.conftest import Identity, Workplace
from vcmodels.blockwise import Crew
from vcmodels.cli import main
from vcmodels.config import parse_task
from vcmodels.errors import OutputError, VolumeError
from vcmodels.formats.dicom import Dicom
from vcmodels.formats.imported import open_located
from vcmodels.inference import predict_request
from vcmodels.reporting import Silent
from vcmodels.results import our_attributes
from vcmodels.volumes import Description, Grid, open_volume, place_at, write_volume
from vcmodels.volumes.spacing import in_unit
from vcmodels.volumes.world import geometry_note, world_affine
from vcmodels.workflows.export import ExportOptions, export
from vcmodels.workflows.postprocess import finish_request

SHAPE = (12, 21, 17)
AFFINE = np.array([[0, 0, -2.0, 30], [0.5, 0, 0, -4], [0, -0.75, 0, 9], [0, 0, 0, 1]])
STEPS = [
    {"name": "threshold", "output": "mask", "from": "value", "threshold": 0.5},
    {"name": "components", "output": "blobs", "from": "mask", "connectivity": 6},
]


class Case(Workplace):
    """Predictions that are the sigmoid of a NIfTI file or a DICOM folder."""

    source = "case.nii.gz"
    steps: tuple[dict, ...] = ()

    def task(self, **inference):
        given = {"input_path": str(self.folder / self.source), "output_type": "uint8"}
        record = super().task(**(given | inference)).to_json()
        record["dataset_config"]["targets"] = {"value": {"kind": "binary"}}
        record["postprocess"] = list(self.steps)
        return parse_task(record, "test", is_record=True)[0]

    @property
    def result(self):
        return str(self.folder / "out" / "net.zarr")


@pytest.fixture
def case(tmp_path):
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    made = Case(tmp_path, values, (8, 8, 8), Identity())
    image = nib.Nifti1Image(values.T, AFFINE)
    image.header["descrip"] = b"a name"
    nib.save(image, tmp_path / "case.nii.gz")
    return made


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values.astype(np.float64)))


def exported(case, name, target=None, **wanted):
    path = case.folder / name
    reporter = Silent()
    export(case.result, target, path, ExportOptions(**wanted), reporter)
    return path, reporter


def test_a_prediction_lies_on_the_grid_of_its_file_and_has_its_header(case):
    predict_request(case.request(case.task()))
    path, _ = exported(case, "out.nii.gz")
    read, before = nib.load(path), nib.load(case.folder / "case.nii.gz")
    np.testing.assert_array_equal(read.affine, before.affine)
    assert read.get_data_dtype() == np.uint8
    np.testing.assert_allclose(read.get_fdata().T, sigmoid(case.values), atol=0.5 / 255 + 1e-6)
    assert bytes(read.header["descrip"]).strip(b"\0") == b""  # a text may name a patient
    again, _ = exported(case, "like.nii.gz", like=str(case.folder / "case.nii.gz"))
    assert bytes(nib.load(again).header["descrip"]).startswith(b"a name")


def test_an_original_that_says_no_place_leaves_that_of_the_volume(case):
    predict_request(case.request(case.task()))
    np.save(case.folder / "like.npy", case.values)
    path, _ = exported(case, "out.nii.gz", like=str(case.folder / "like.npy"))
    np.testing.assert_array_equal(nib.load(path).affine, AFFINE)


def test_a_threshold_makes_a_mask(case):
    predict_request(case.request(case.task()))
    path, _ = exported(case, "out.nii.gz", threshold=0.75)
    read = nib.load(path)
    codes = np.round(255 * sigmoid(case.values))
    np.testing.assert_array_equal(np.asarray(read.dataobj.get_unscaled()).T, codes / 255 >= 0.75)


def test_formats_that_say_no_scale_hold_the_values_unless_codes_are_wanted(case):
    predict_request(case.request(case.task()))
    path, reporter = exported(case, "out.npy")
    np.testing.assert_allclose(np.load(path), sigmoid(case.values), atol=0.5 / 255 + 1e-6)
    assert np.load(path).dtype == np.float32
    assert not reporter.lines
    path, reporter = exported(case, "codes.npy", dtype=np.dtype(np.uint8))
    np.testing.assert_array_equal(np.load(path), np.round(255 * sigmoid(case.values)))
    assert "a voxel v means 0.00392157 v +0" in reporter.lines[0]
    with pytest.raises(OutputError, match="codes of uint8, and int16 would be others"):
        exported(case, "x.npy", dtype=np.dtype(np.int16))


def test_what_steps_make_is_exported_as_labels(case):
    case.steps = tuple(STEPS)
    request = case.request(case.task())
    predict_request(request)
    finish_request(request, Crew())
    with pytest.raises(OutputError, match="holds blobs, mask, value; name one, as --target blobs"):
        exported(case, "out.nii.gz")
    mask, _ = exported(case, "mask.nii.gz", "mask")
    np.testing.assert_array_equal(np.asarray(nib.load(mask).dataobj).T, case.values >= 0)
    blobs, _ = exported(case, "blobs.nii.gz", "blobs")
    read = nib.load(blobs)
    stored = open_volume(f"{case.result}/blobs/0", key="x")
    np.testing.assert_array_equal(np.asarray(read.dataobj).T, stored.read(stored.box)[0])
    assert read.get_data_dtype() == np.uint8
    assert stored.dtype == np.uint64
    np.testing.assert_array_equal(read.affine, AFFINE)
    np.testing.assert_array_equal(world_affine(stored), AFFINE)
    with pytest.raises(OutputError, match="no lung; name one"):
        exported(case, "x.nii.gz", "lung")


def test_a_series_gets_a_seg_cut_at_a_half_which_is_said(tmp_path):
    values = numbers(SHAPE)
    case = Case(tmp_path, values, (8, 8, 8), Identity())
    case.source = "ct"
    folder = save(series_of(values, slope=0.01, intercept=-10), tmp_path / "ct")
    predict_request(case.request(case.task()))
    path, reporter = exported(case, "out.seg.dcm", like=str(folder))
    assert any("0.5 or more is a segment" in line for line in reporter.lines)
    image = Dicom().open(str(path), "x")
    found = np.concatenate([voxels[0] for _, voxels in image.pieces()])
    np.testing.assert_array_equal(found, np.round(255 * sigmoid(values * 0.01 - 10)) / 255 >= 0.5)


def test_another_grid_than_that_of_the_original_is_refused(case):
    predict_request(case.request(case.task()))
    other = nib.Nifti1Image(np.zeros(SHAPE[::-1], np.uint8), np.diag([1, 1, 1, 1.0]))
    nib.save(other, case.folder / "other.nii")
    with pytest.raises(VolumeError, match="lie elsewhere than those of"):
        exported(case, "out.nii", like=str(case.folder / "other.nii"))
    nib.save(other.slicer[1:], case.folder / "short.nii")
    with pytest.raises(VolumeError, match=r"short.nii has shape \(12, 21, 16\)"):
        exported(case, "out.nii", like=str(case.folder / "short.nii"))
    assert not (case.folder / "out.nii").exists()


def stored(path, values, **attributes):
    write_volume(str(path), values, chunks=(4, 4, 4), description=Description("x", attributes))
    return str(path)


@pytest.mark.parametrize(
    ("dtype", "low", "high", "expected"),
    [
        ("uint64", 0, 200, "uint8"),
        ("int32", 0, 300, "uint16"),
        ("int16", -3, 100, "int8"),
        ("int8", 0, 1, "uint8"),
        ("int8", -1, 1, "int8"),
        ("uint32", 0, 70_000, "uint32"),
    ],
)
def test_labels_get_the_smallest_type(tmp_path, dtype, low, high, expected):
    values = np.random.default_rng(0).integers(low, high, (5, 6, 7)).astype(dtype)
    values[0, 0, :2] = low, high
    values[4:] = 0
    source = stored(tmp_path / "a.zarr", values, **{"image-label": {}})
    export(source, None, tmp_path / "a.nii", ExportOptions(), Silent())
    read = np.asarray(nib.load(tmp_path / "a.nii").dataobj).T
    assert read.dtype == expected
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize(
    ("stored_as", "wanted", "match"),
    [
        ("float32", "uint8", "values of float32 are no uint8"),
        ("int16", "uint8", "values of int16 are no uint8"),
        ("uint16", "float16", "holds no float16; give one of uint8"),
    ],
)
def test_a_type_that_loses_values_is_refused(tmp_path, stored_as, wanted, match):
    source = stored(tmp_path / "a.zarr", np.full((5, 6, 7), 300, stored_as))
    with pytest.raises(OutputError, match=match):
        export(source, None, tmp_path / "a.nii", ExportOptions(dtype=np.dtype(wanted)), Silent())


def test_a_mask_of_a_type_that_the_format_lacks_is_refused(tmp_path):
    source = stored(tmp_path / "a.zarr", np.ones((5, 6, 7), np.float32))
    wanted = ExportOptions(dtype=np.dtype(np.float32), threshold=0.5)
    with pytest.raises(OutputError, match="dicom-seg holds no float32; give one of uint8, uint16"):
        export(source, None, tmp_path / "a.dcm", wanted, Silent())


def test_a_type_that_the_format_lacks_becomes_the_closest(tmp_path):
    values = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float16)
    export(stored(tmp_path / "a.zarr", values), None, tmp_path / "a.nii", ExportOptions(), Silent())
    read = np.asarray(nib.load(tmp_path / "a.nii").dataobj)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read.T, values)


def test_a_file_that_is_there_stays_unless_it_is_to_be_replaced(tmp_path, capsys):
    source = stored(tmp_path / "a.zarr", numbers((5, 6, 7)))
    path = tmp_path / "a.nii.gz"
    assert main(["export", source, "-o", str(path)]) == 0
    before = path.read_bytes()
    assert main(["export", source, "-o", str(path)]) == 2
    assert "a.nii.gz is there already; name another, or give --overwrite" in capsys.readouterr().err
    assert main(["export", source, "-o", str(path), "--overwrite", "--dtype", "float32"]) == 0
    assert path.read_bytes() != before
    assert main(["export", source, "-o", str(tmp_path / "a.zarr" / "x.nii")]) == 2
    assert "lies in the Zarr store" in capsys.readouterr().err
    assert main(["export", source, "-o", str(tmp_path / "y.nii"), "--target", "x"]) == 2
    assert "--target" in capsys.readouterr().err


def test_a_result_without_a_place_says_none(tmp_path):
    case = Workplace(tmp_path, np.zeros(SHAPE, np.float32), (8, 8, 8), Identity())
    case.run()
    notes = our_attributes(place_at(str(tmp_path / "out" / "net.zarr" / "value")))
    assert not {"geometry", "source"} & {*notes}


@pytest.mark.parametrize(
    ("ending", "dtype"),
    [
        *(("nii.gz", "uint8"), ("nii", "float32"), ("nrrd", "int16"), ("mha", "float32")),
        *(("tif", "uint8"), ("tif", "int16"), ("h5", "float32"), ("npy", "int16")),
    ],
)
def test_what_is_exported_is_imported_again_on_the_same_grid(tmp_path, ending, dtype):
    values = numbers(SHAPE, dtype)
    source = open_volume(
        stored(tmp_path / "a.zarr", values, vcmodels={"geometry": geometry_note(AFFINE)}), key="x"
    )
    image = place_at(str(tmp_path / "a.zarr"))
    assert our_attributes(image)
    path = tmp_path / f"out.{ending}"
    export(str(tmp_path / "a.zarr"), None, path, ExportOptions(), Silent())
    again = open_located(str(path), key="x", channels="any")
    np.testing.assert_array_equal(again.read(again.box)[0], values)
    assert again.dtype == np.dtype(dtype)
    if ending in ("nii.gz", "nii", "nrrd", "mha"):
        np.testing.assert_allclose(world_affine(again), world_affine(source), atol=1e-5)
        np.testing.assert_allclose(again.spacing, (2.0, 0.75, 0.5))


@pytest.mark.parametrize("ending", ["tif", "ome.tif", "h5"])
@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 1), ("int16", 2)])
def test_microscopes_keep_voxel_size_and_unit(tmp_path, ending, dtype, channels):
    values = np.squeeze(np.stack([numbers(SHAPE, dtype, n) for n in range(channels)]))
    write_volume(
        str(tmp_path / "a.zarr"),
        values,
        chunks=(4, 8, 8),
        grid=Grid((2.0, 0.75, 0.5), unit="micrometer"),
    )
    path = tmp_path / f"out.{ending}"
    export(str(tmp_path / "a.zarr"), None, path, ExportOptions(), Silent())
    again = open_located(str(path), key="x", channels="any")
    np.testing.assert_array_equal(np.squeeze(again.read(again.box)), values)
    np.testing.assert_allclose(again.spacing, (2.0, 0.75, 0.5))
    assert again.unit == "micrometer"


@pytest.mark.parametrize("unit", ["micrometer", "nanometer", "millimeter", None])
def test_hdf5_is_imported_again_on_its_grid(tmp_path, unit):
    values = numbers((3, 2 * 4, 4), "uint16").reshape(3, 2, 4, 4)
    grid = Grid((2.0, 0.75, 0.5), (10.0, 4.5, -1.0), unit)
    write_volume(str(tmp_path / "a.zarr"), values, chunks=(2, 4, 4), grid=grid)
    path = tmp_path / "out.h5"
    export(str(tmp_path / "a.zarr"), None, path, ExportOptions(), Silent())
    again = open_located(str(path), key="x", channels="any")
    np.testing.assert_array_equal(again.read(again.box), values)
    assert again.has_spacing == (unit is not None)
    if unit is not None:
        for found, wanted in ((again.spacing, grid.spacing), (again.offset, grid.offset)):
            np.testing.assert_allclose(in_unit(found, again.unit, unit), wanted)
