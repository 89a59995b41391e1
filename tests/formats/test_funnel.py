"""Files where a task, a command or a call takes a location."""

import json
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import tifffile

from vcmodels.cli import main
from vcmodels.config import parse_task
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import TaskError, VolumeError
from vcmodels.reporting import Silent

SHAPE = (20, 24, 28)


@pytest.fixture
def cohort(tmp_path, monkeypatch) -> Path:
    """Scans as NIfTI, their labels as HDF5, and a mask as TIFF: all on one grid."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for folder in ("scans", "labels"):
        (tmp_path / folder).mkdir()
    for number in range(3):
        centre = 8 + 2 * number
        ball = sum((n - centre) ** 2 for n in np.indices(SHAPE)) < 36
        scan = (100 * ball + rng.normal(100, 10, SHAPE)).astype(np.int16)
        image = nibabel.Nifti1Image(scan.T, np.diag([0.5, 0.6, 2, 1]))
        nibabel.save(image, tmp_path / f"scans/case{number}.nii.gz")
        with h5py.File(tmp_path / f"labels/case{number}_ball.h5", "w") as file:
            # The last two are the same, which makes them no less two.
            file["seg/ball"] = (ball if number == 0 else np.zeros_like(ball)).astype(np.uint8)
            file["seg/other"] = np.zeros(SHAPE, np.uint8)
    tifffile.imwrite(tmp_path / "mask.tif", np.ones(SHAPE, np.uint8), photometric="minisblack")
    return tmp_path


def task(**inference) -> dict:
    return {
        "tr_params": {
            "model_name": "m", "ckpt_out_base": "run", "patch_size": [8, 16, 16], "batch_size": 1,
            "max_epoch": 1, "max_steps_per_epoch": 1, "num_dataloader_workers": 0,
        },
        "model_config": {"f_maps": [4, 8]},
        "dataset_config": {
            "volume_paths": [{"input": "scans/*.nii.gz", "ball": "labels/*_ball.h5:/seg/ball"}],
            "targets": {"ball": {"kind": "binary"}},
        },
        "inference_params": {"output_dir": "out", "overlap": 0, **inference},
    }  # fmt: skip


def test_volumes_of_a_task_may_be_files_and_are_called_by_their_names(cohort):
    reporter = Silent()
    volumes = open_volumes(parse_task(task(), "task")[0], reporter)
    assert [volume.name for volume in volumes] == ["case0", "case1", "case2"]
    assert [volume.inputs[0].shown for volume in volumes] == [
        f"{cohort}/scans/case{n}.nii.gz" for n in range(3)
    ]
    assert volumes[0].spacing == pytest.approx((2, 0.6, 0.5))
    said = [line.split(" (")[0] for line in reporter.lines]
    names = [f"case{n}{end}" for n in range(3) for end in (".nii.gz", "_ball.h5:/seg/ball")]
    assert [name for name in names if f"importing {name}" in said] == names[:-1]


def test_cases_with_equal_labels_are_not_one_scan(cohort):
    volumes = open_volumes(parse_task(task(), "task")[0])
    assert volumes[1].labels["ball"].location == volumes[2].labels["ball"].location
    assert len({volume.scan for volume in volumes}) == 3


def test_a_file_alone_gives_its_name(cohort):
    block = task()
    block["dataset_config"]["volume_paths"] = [
        {"input": "scans/case1.nii.gz", "ball": "labels/case1_ball.h5:/seg/ball"}
    ]
    assert open_volumes(parse_task(block, "task")[0])[0].name == "case1"


def test_a_label_that_is_missing_inside_is_named(cohort):
    block = task()
    block["dataset_config"]["volume_paths"][0]["ball"] = "labels/*_ball.h5:/seg/none"
    with pytest.raises(
        VolumeError, match=r"case0_ball.h5:/seg/none is no array; give one of .*ball"
    ):
        open_volumes(parse_task(block, "task")[0])


def test_training_and_inference_take_files_and_say_so(cohort, capsys):
    given = task(input_path="scans/*.nii.gz", skip={"mask": "mask.tif"})
    (cohort / "task.json").write_text(json.dumps(given))
    assert main(["train", "task.json"]) == 0
    assert main(["infer", "task.json"]) == 0
    assert "importing mask.tif (once, to" in capsys.readouterr().out
    for number in range(3):
        place = cohort / f"out/m/case{number}.zarr"
        noted = json.loads((place / ".zattrs").read_text())["vcmodels"]
        assert noted["manifest"]["input"] == [f"{cohort}/scans/case{number}.nii.gz"]
        assert noted["manifest"]["skip"]["mask"] == f"{cohort}/mask.tif"
    assert main(["reproduce", str(cohort / "out/m/case0.zarr")]) == 0
    assert main(["evaluate", "task.json", "--set", "inference_params.skip.mask=null"]) == 0
    assert str(cohort / "cache") not in (cohort / "run/task.json").read_text()


def test_a_checkpoint_and_a_file_are_the_whole_job(cohort, tmp_path):
    (cohort / "task.json").write_text(json.dumps(task()))
    assert main(["train", "task.json"]) == 0
    assert main(["infer", "run/m_best.pth", "scans/case0.nii.gz", "-o", "seg.zarr"]) == 0
    assert (cohort / "seg.zarr/ball/0/.zarray").exists()


def test_the_input_of_the_inference_is_not_imported_by_check(cohort, capsys):
    given = task(input_path="scans/case1.nii.gz")
    given["dataset_config"]["volume_paths"][0]["input"] = "scans/*0.nii.gz"
    given["dataset_config"]["volume_paths"][0]["ball"] = "labels/*0_ball.h5:/seg/ball"
    (cohort / "task.json").write_text(json.dumps(given))
    assert main(["check", "task.json"]) == 0
    out = capsys.readouterr().out
    assert "importing case0.nii.gz" in out
    assert len(list((cohort / "cache/vcmodels/imported").glob("*.zarr"))) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "labels/case0_ball.h5:/seg/ball", "labels/case0_ball.h5:/seg/other",
         "--image", "scans/case0.nii.gz", "-o", "report"],
        ["overlay", "labels/case0_ball.h5:/seg/ball", "--image", "scans/case0.nii.gz",
         "--kind", "binary", "-o", "o.png"],
        ["objects", "labels/case0_ball.h5:/seg/ball", "--values", "scans/case0.nii.gz",
         "-o", "o.csv"],
        ["mesh", "labels/case0_ball.h5:/seg/ball", "-o", "meshes"],
        ["audit", "labels/case0_ball.h5:/seg/ball", "--image", "scans/case0.nii.gz",
         "--fail-on", "error"],
        ["init", "scans/case0.nii.gz", "ball=labels/case0_ball.h5:/seg/ball", "-o", "t.json"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_commands_take_files(cohort, words, capsys):
    assert main(words) == 0, capsys.readouterr().err


def test_steps_of_postprocessing_take_a_file(cohort):
    (cohort / "steps.json").write_text(
        json.dumps([{"name": "components", "from": "source", "output": "parts"}])
    )
    words = ["labels/case0_ball.h5:/seg/ball", "--steps", "steps.json", "--kind", "binary"]
    assert main(["postprocess", *words, "-o", "made.zarr"]) == 0


def test_a_file_of_no_known_format_is_refused(cohort):
    (cohort / "a.txt").touch()
    block = task()
    block["dataset_config"]["volume_paths"] = [{"input": "a.txt", "ball": "a.txt"}]
    with pytest.raises((VolumeError, TaskError), match=r"a.txt is a file, .*docs/formats.md lists"):
        open_volumes(parse_task(block, "task")[0])
