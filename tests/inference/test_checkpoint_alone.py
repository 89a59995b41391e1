"""`vcmodels infer CHECKPOINT INPUT -o OUTPUT`: no task file, and nothing else of the training."""

import shutil

import numpy as np
import pytest

from tests.inference.conftest import make_task, save, stored, write_inputs
from vcmodels.cli import main
from vcmodels.inference import run_inference
from vcmodels.volumes import group_attributes


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a checkpoint, and what the task of its training gives, by target."""
    folder = tmp_path_factory.mktemp("trained")
    write_inputs(folder)
    task = make_task(folder, overlap=0.4)
    save(folder, task)
    run_inference(task)
    return folder, {
        name: stored(folder, name)[1] for name in ("sheet", "organ", "normals", "fibre")
    }


@pytest.fixture
def expected(place, trained, monkeypatch):
    """What the task of the training gives, by target; only checkpoint and inputs are left of it."""
    folder, values = trained
    shutil.copytree(folder / "run", place / "run")
    monkeypatch.chdir(place)
    return values


INPUTS = ["in.zarr/ct", "in.zarr/dose"]
CPU = ["--set", "inference_params.device=cpu"]


def assert_same(place, expected):
    for name, values in expected.items():
        np.testing.assert_array_equal(stored(place, name)[1], values)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run/net_best.pth", *INPUTS, "-o", "out"],
        ["run/net_best.pth", "--input", INPUTS[0], "--input", INPUTS[1], "--output", "out"],
        ["run", *INPUTS, "-o", "out"],
        ["run/net_best.pth", *INPUTS, "-o", "out/net.zarr"],
    ],
    ids=["positional", "options", "run folder", "the result itself"],
)
def test_a_checkpoint_and_an_input_are_enough(place, expected, arguments, capsys):
    assert main(["infer", *arguments, *CPU]) == 0
    assert_same(place, expected)
    assert f"sheet: {place}/out/net.zarr/sheet\n" in capsys.readouterr().out
    noted = group_attributes(str(place / "out/net.zarr"))["vcmodels"]
    made = noted["provenance"]
    assert noted["manifest"]["input"] == [f"{place}/{name}" for name in INPUTS]
    assert made["task"]["inference_params"]["overlap"] == 0.4
    assert 'inference_params.input_path=["in.zarr/ct", "in.zarr/dose"]' in made["task"]["overrides"]


def test_a_result_of_another_name_continues_and_is_made_again(place, expected, capsys):
    command = ["infer", "run/net_best.pth", *INPUTS, "-o", "there.zarr", *CPU]
    assert main([*command, "--part", "0/2"]) == 0
    assert main(command) == 0
    assert main(command) == 0
    assert f"{place}/there.zarr: already complete" in capsys.readouterr().out
    (place / "out").mkdir()
    (place / "there.zarr").rename(place / "out/net.zarr")
    assert_same(place, expected)
    assert main(["reproduce", "out/net.zarr"]) == 0


def test_keys_are_set_and_the_box_of_the_training_is_not_taken_over(place, expected):
    save(place, make_task(place, bbox=[[0, 4], [0, 4], [0, 4]], overlap=0.1))
    overrides = ["inference_params.overlap=0.4", 'inference_params.output_targets=["organ"]']
    lines = [word for line in overrides for word in ("--set", line)]
    assert main(["infer", "run/net_best.pth", *INPUTS, "-o", "out", *CPU, *lines]) == 0
    assert_same(place, {"organ": expected["organ"]})
    assert not (place / "out/net.zarr/sheet").exists()


def test_several_devices_start_from_a_checkpoint_too(place, expected):
    threads = ["--set", "inference_params.threads=1", "--devices", "cpu,cpu"]
    assert main(["infer", "run/net_best.pth", *INPUTS, "-o", "out", *threads]) == 0
    assert_same(place, expected)


def test_input_and_output_replace_those_of_a_task_file(place, expected, task_file):
    task = make_task(place, overlap=0.4, input_path="nowhere", output_dir="elsewhere").to_json()
    path = str(task_file(task))
    assert main(["infer", path, *INPUTS, "-o", "out"]) == 0
    assert_same(place, expected)


BEST = "run/net_best.pth"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([BEST], "--input: is missing; name the volume to predict: vcmodels infer run/net_best.pth"),
        ([BEST, *INPUTS], "--output: is missing; name the folder for the result: vcmodels infer"),
        (["run", "--input", "a"], "--output: is missing; name the folder for the result"),
        ([BEST, "a", "--input", "b", "-o", "x"], "--input: is given, and so is a; leave one out"),
        ([BEST, BEST, "-o", "x"], "--input: run/net_best.pth is a checkpoint; give checkpoints first"),
        ([BEST, "a", "-o", "x", "--folds", "all"], "--folds: goes with a task file; leave it out"),
        ([BEST, "a", "-o", "x", "--fold", "0"], "--fold: goes with a task file; leave it out"),
        ([BEST, "a", "-o", "x", "--checkpoint", "b"], "--checkpoint: goes with a task file; leave"),
        (["none.pth", "a", "-o", "x"], "none.pth: no such file; check the path"),
        (["cut.pth", "a", "-o", "x"], "cut.pth: has no checksum: cut, or not written by vcmodels"),
        (["in.zarr", "a", "-o", "x"], "in.zarr: holds no *_best.pth; train first"),
        ([BEST, "nowhere.zarr", "-o", "x"], "nowhere.zarr does not exist"),
        ([BEST, INPUTS[0], "-o", "x"], "1 channels, the network was trained with 2"),
        ([BEST, *INPUTS, "-o", "in.zarr"], "share a store"),
        ([BEST, *INPUTS, "-o", "in.zarr/x"], "in.zarr"),
        ([BEST, *INPUTS, "-o", "x", "--set", "inference_params.overlapp=0"], "did you mean"),
    ],
)  # fmt: skip
def test_what_is_missing_or_does_not_fit_is_one_line(place, expected, arguments, message, capsys):
    (place / "cut.pth").write_bytes((place / BEST).read_bytes()[:-9])
    before = sorted(place.rglob("*"))
    assert main(["infer", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert message in told
    assert told.count("\n") == 1
    assert sorted(place.rglob("*")) == before
