"""Trainings on volumes whose labels have an up and a down, and no other side."""

import json

import numpy as np
import pytest
import zarr

from tests.symmetry.phantoms import blobs
from vcmodels.checkpoint import load_checkpoint, save_checkpoint
from vcmodels.config import parse_task
from vcmodels.patches.resolve import resolve
from vcmodels.reporting import Silent
from vcmodels.runs.run import Run
from vcmodels.samples.training_set import training_set
from vcmodels.symmetry.findings import stored_findings
from vcmodels.training.train import train


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("blobs") / "blobs.zarr"
    volumes = blobs(lambda rng: (0.2, *rng.uniform(0.3, 0.7, 2)), count=20)
    for number, volume in enumerate(volumes):
        group = zarr.open_group(path / f"{number:02d}")
        for name, array in {"image": volume.inputs[0], "mask": volume.labels["mask"]}.items():
            values = array.read(array.box)[0]
            group.create_array(name, data=values, chunks=values.shape)
    return path


@pytest.fixture
def task(store, tmp_path):
    entries = [
        {"input": f"{store}/{n}/image", "mask": f"{store}/{n}/mask", "split": split}
        for n, split in (("0*", "train"), ("1*", "train"))
    ]
    return {
        "tr_params": {
            "model_name": "tiny", "patch_size": [16, 16, 16], "batch_size": 2, "max_epoch": 1,
            "max_steps_per_epoch": 2, "num_dataloader_workers": 0, "warmup_steps": 1, "tr_val_split": 1.0,
            "ckpt_out_base": str(tmp_path / "run"), "amp": "off", "compile": False,
        },
        "model_config": {"name": "residual_unet", "f_maps": [4, 8], "num_levels": 2},
        "dataset_config": {"volume_paths": entries, "targets": {"mask": {"kind": "binary"}}},
    }  # fmt: skip


def run_of(task, **settings):
    task["tr_params"] |= settings
    reporter = Silent()
    assert train(parse_task(task, "task")[0], reporter=reporter) == 0
    run = Run(task["tr_params"]["ckpt_out_base"], "tiny")
    return run, reporter.lines


def flips_of(document):
    return [one["axes"] for one in document["augment"] if one["name"] == "flip"]


def test_a_new_run_mirrors_by_what_holds_and_keeps_it(task):
    run, lines = run_of(task)
    found = stored_findings(run.symmetry)
    assert found is not None
    assert found.mirrors == ("y", "x")
    assert flips_of(run.task()) == [["y", "x"]]
    assert any("the default augment follows" in line for line in lines)
    assert load_checkpoint(run.last).state["symmetry"] == json.loads(run.symmetry.read_text())
    assert run.symmetry in run.own_entries()
    # What others draw from is what the training drew from.
    dataset = training_set(resolve(parse_task(task, "task")[0]))
    assert [one.axes for one in dataset.variation.augmentations if one.name == "flip"] == [
        ("y", "x")
    ]


def test_a_run_goes_on_bit_for_bit(task, tmp_path):
    whole, _ = run_of(task, max_epoch=2)
    task["tr_params"]["ckpt_out_base"] = str(tmp_path / "parts")
    run, _ = run_of(task, max_epoch=1)
    (kept := run.symmetry.read_bytes())
    run, lines = run_of(task, max_epoch=2)
    assert not any(line.startswith("symmetry") for line in lines)
    assert run.symmetry.read_bytes() == kept
    states = [load_checkpoint(one.last).state for one in (whole, run)]
    assert states[0]["symmetry"] == states[1]["symmetry"]
    for name, value in states[0]["model"].items():
        np.testing.assert_array_equal(value, states[1]["model"][name])


def test_a_run_of_before_goes_on_as_it_was(task):
    """It has no findings, and its record holds the whole default list."""
    run, _ = run_of(task)
    state = dict(load_checkpoint(run.last).state)
    del state["symmetry"]
    full = [{"name": "flip"}, {"name": "noise"}]
    record = parse_task(task | {"augment": full}, "task")[0].to_json()
    state["task"] = state["task"] | {"augment": record["augment"]}
    save_checkpoint(run.last, state)
    run.symmetry.unlink()
    run, lines = run_of(task, max_epoch=2)
    assert flips_of(run.task()) == [["z", "y", "x"]]
    assert not any(line.startswith("symmetry") or "refute" in line for line in lines)
    assert not run.symmetry.exists()
    assert "symmetry" not in load_checkpoint(run.last).state


def test_a_given_list_stays_and_is_spoken_of(task):
    task["augment"] = [{"name": "flip", "axes": ["z"]}]
    run, lines = run_of(task)
    assert flips_of(run.task()) == [["z"]]
    assert stored_findings(run.symmetry) is not None
    (line,) = [line for line in lines if "refute" in line]
    assert line.startswith("note: augment: does what the data refute: mirror z: label mask")


def folds_of(task, count=20):
    """Trains two of the folds: each with its number, its run and what it said."""
    for entry in task["dataset_config"]["volume_paths"]:
        del entry["split"]
    whole = parse_task(task, "task", [f'tr_params.folds={{"count": {count}, "by": "volume"}}'])[0]
    for index in range(2):
        fold, reporter = whole.fold(index), Silent()
        assert train(fold, reporter=reporter) == 0
        yield index, Run(fold.run_dir, "tiny"), reporter.lines


def test_the_folds_of_a_cross_validation_move_alike(task):
    lists, files = [], []
    for index, run, lines in folds_of(task):
        lists.append(run.task()["augment"])
        files.append(run.symmetry.read_bytes())
        (line,) = [line for line in lines if line.startswith("symmetry: ")]
        assert ("augment is that of" in line) == (index > 0)
    assert lists[0] == lists[1]
    assert files[0] == files[1]


def test_a_fold_looks_for_itself_where_those_before_it_found_nothing(task):
    """And keeps their list, of which it says what the data refute."""
    task["augment"] = [{"name": "flip", "axes": ["z"]}]
    for index, run, lines in folds_of(task):
        assert stored_findings(run.symmetry).mirrors == ("y", "x")
        assert flips_of(run.task()) == [["z"]]
        (line,) = [line for line in lines if "refute" in line]
        assert line.endswith("with --restart") == (index > 0)
        run.symmetry.unlink()  # as of a run of before
