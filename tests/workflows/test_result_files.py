"""`output_format`: files next to the Zarr of a result."""

import os
from dataclasses import replace

import h5py
import nibabel as nib
import numpy as np
import pytest
import tifffile

from tests.formats.made_dicom import numbers, save, series_of
from tests.inference.conftest import Identity
from tests.workflows.test_export import AFFINE, SHAPE, STEPS, Case, sigmoid
from vcmodels.blockwise import Crew
from vcmodels.cli import infer as infer_command
from vcmodels.cli import main
from vcmodels.cli.infer import InferOptions, _with_steps
from vcmodels.errors import OutputError, TaskError
from vcmodels.formats.dicom import Dicom
from vcmodels.inference import RunOptions, predict_request
from vcmodels.reporting import Silent
from vcmodels.volumes import open_volume
from vcmodels.workflows.result_files import require_output_file, require_result_files


@pytest.fixture
def case(tmp_path):
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    nib.save(nib.Nifti1Image(values.T, AFFINE), tmp_path / "case.nii.gz")
    return Case(tmp_path, values, (8, 8, 8), Identity())


def run(case, *, overwrite=False, **inference):
    """As the command does it."""
    reporter = Silent()
    options = InferOptions(overwrite, False, False, None, None, None, None)
    predict = _with_steps(
        options,
        Crew(reporter=reporter),
        lambda request, _: predict_request(request, RunOptions(overwrite=overwrite)),
    )
    predict(case.request(case.task(**inference)))
    return sorted(path.name for path in (case.folder / "out").iterdir()), reporter.lines


def test_each_output_becomes_a_nifti_next_to_the_zarr(case):
    case.steps = tuple(STEPS)
    names, lines = run(case, output_format="nifti")
    files = ["net_blobs.nii.gz", "net_mask.nii.gz", "net_value.nii.gz"]
    assert names == ["net.zarr", *files]
    assert any(line.startswith("mask: ") and line.endswith("net_mask.nii.gz") for line in lines)
    mask, value = (nib.load(case.folder / "out" / name) for name in files[1:])
    np.testing.assert_array_equal(np.asarray(mask.dataobj).T, case.values >= 0)
    np.testing.assert_allclose(value.get_fdata().T, sigmoid(case.values), atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(mask.affine, AFFINE)
    (case.folder / "out" / files[0]).unlink()
    assert (
        run(case, output_format="nifti")[0] == names
    )  # the result is complete: files are made again


def test_other_formats(case):
    names, _ = run(case, output_format="tiff")
    assert names == ["net.zarr", "net_value.ome.tif"]
    expected = sigmoid(case.values)
    found = tifffile.imread(case.folder / "out" / "net_value.ome.tif")
    np.testing.assert_allclose(found, expected, atol=0.5 / 255 + 1e-6)
    run(case, output_format="hdf5")
    with h5py.File(case.folder / "out" / "net_value.h5") as file:
        np.testing.assert_allclose(file["value"][:], expected, atol=0.5 / 255 + 1e-6)


def test_a_series_gets_a_seg_next_to_the_zarr(tmp_path):
    values = numbers(SHAPE)
    case = Case(tmp_path, values, (8, 8, 8), Identity())
    case.source = "ct"
    save(series_of(values, slope=0.01, intercept=-10), tmp_path / "ct")
    names, lines = run(case, output_format="dicom-seg")
    assert names == ["net.zarr", "net_value.seg.dcm"]
    assert any("0.5 or more is a segment" in line for line in lines)
    image = Dicom().open(str(tmp_path / "out" / names[1]), "x")
    found = np.concatenate([voxels[0] for _, voxels in image.pieces()])
    np.testing.assert_array_equal(found, np.round(255 * sigmoid(values * 0.01 - 10)) / 255 >= 0.5)


def test_an_empty_mask_makes_no_seg_and_no_failure(tmp_path):
    values = numbers(SHAPE)
    case = Case(tmp_path, values, (8, 8, 8), Identity())
    case.source = "ct"
    save(series_of(values, slope=0.01, intercept=-100), tmp_path / "ct")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "net_value.seg.dcm").write_text("of an earlier result")
    names, lines = run(case, overwrite=True, output_format="dicom-seg")
    assert names == ["net.zarr"]
    assert any("no net_value.seg.dcm: value has 0 values above 0" in line for line in lines)


def test_what_is_in_the_way_is_said_before_anything_is_predicted(case):
    (case.folder / "out").mkdir()
    (case.folder / "out" / "net_value.nii.gz").write_text("mine")
    with pytest.raises(OutputError, match=r"net_value.nii.gz is there already"):
        run(case, output_format="nifti")
    assert [path.name for path in (case.folder / "out").iterdir()] == ["net_value.nii.gz"]
    assert run(case, overwrite=True, output_format="nifti")[0] == ["net.zarr", "net_value.nii.gz"]


def test_a_seg_of_what_is_no_series_or_no_classes_is_refused(case, tmp_path):
    request = case.request(case.task(output_format="dicom-seg"))
    with pytest.raises(TaskError, match=r"case.nii.gz is none; predict the series itself"):
        require_result_files(request, overwrite=False)
    save(series_of(numbers(SHAPE)), tmp_path / "ct")
    case.source = "ct"
    request = case.request(case.task(output_format="dicom-seg"))
    require_result_files(request, overwrite=False)
    distance = request.targets["value"].changed(activation="none")
    logits = replace(
        request, targets={"value": distance}, params=request.params.changed(output_type="float32")
    )
    with pytest.raises(TaskError, match="no target has classes or a probability"):
        require_result_files(
            replace(logits, networks=(replace(request.networks[0], targets={"value": distance}),)),
            overwrite=False,
        )


def test_an_output_that_is_a_file_gets_what_the_last_step_makes(case, monkeypatch, capsys):
    case.steps = tuple(STEPS)
    task = case.task()
    monkeypatch.setattr(
        infer_command, "_of_checkpoint", lambda *_, **__: lambda: (task, (case.trained(task),))
    )
    words = infer_to(case, "case.nii.gz", "seg.nii.gz")
    assert main(words) == 0
    read = nib.load(case.folder / "seg.nii.gz")
    blobs = open_volume(str(case.folder / "seg.zarr" / "blobs" / "0"), key="x")
    np.testing.assert_array_equal(np.asarray(read.dataobj).T, blobs.read(blobs.box)[0])
    assert "blobs: " in capsys.readouterr().out
    (case.folder / "seg.nii.gz").unlink()
    assert main(words) == 0  # the result is there: the file is made again
    (case.folder / "seg.nii.gz").write_text("edited")
    assert main(words) == 0
    assert "seg.nii.gz is there already, and stays" in capsys.readouterr().out
    os.utime(case.folder / "seg.nii.gz", (0, 0))
    assert main(words) == 2  # it is of something else
    assert "name another, or give --overwrite" in capsys.readouterr().err
    assert (case.folder / "seg.nii.gz").read_text() == "edited"
    assert main([*words, "--overwrite"]) == 0
    assert nib.load(case.folder / "seg.nii.gz").shape == SHAPE[::-1]


def infer_to(case, source, name):
    return ["infer", "x.pth", str(case.folder / source), "-o", str(case.folder / name)]


def test_a_seg_of_nothing_is_an_error_and_leaves_the_file_that_is_there(
    tmp_path, monkeypatch, capsys
):
    values = numbers(SHAPE)
    case = Case(tmp_path, values, (8, 8, 8), Identity())
    case.source = "ct"
    save(series_of(values, slope=0.01, intercept=-100), tmp_path / "ct")
    task = case.task()
    monkeypatch.setattr(
        infer_command, "_of_checkpoint", lambda *_, **__: lambda: (task, (case.trained(task),))
    )
    (tmp_path / "a.seg.dcm").write_text("of an earlier result")
    words = infer_to(case, "ct", "a.seg.dcm")
    assert main([*words, "--overwrite"]) == 2
    assert "value has 0 values above 0" in capsys.readouterr().err
    assert (tmp_path / "a.seg.dcm").read_text() == "of an earlier result"


def test_one_file_of_several_outputs_is_refused(case):
    two = {"value": case.task().dataset_config.targets["value"]}
    request = case.request(case.task())
    network = replace(request.networks[0], targets={**two, "other": two["value"]})
    request = replace(request, networks=(network,), targets=network.targets)
    with pytest.raises(TaskError, match=r"seg.nii.gz holds one output, and there are value, other"):
        require_output_file(request, case.folder / "seg.nii.gz", overwrite=False)
    one = case.request(case.task())
    (case.folder / "seg.nii.gz").write_text("mine")
    with pytest.raises(OutputError, match="is there already"):
        require_output_file(one, case.folder / "seg.nii.gz", overwrite=False)
    with pytest.raises(TaskError, match="a SEG lies on a DICOM series"):
        require_output_file(one, case.folder / "seg.dcm", overwrite=False)
