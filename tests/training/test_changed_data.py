"""Inputs and labels that have changed, or have moved, between the starts of a run."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from vcmodels.checkpoint import load_checkpoint, save_checkpoint
from vcmodels.cli import main
from vcmodels.phantom import write_phantom
from vcmodels.runs.run import read_starts


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a scroll, a task with relative paths, and the run of its first epoch."""
    project = tmp_path_factory.mktemp("changed")
    write_phantom(str(project / "scroll.zarr"), shape=(24, 72, 40), seed=0, chunks=(16, 16, 16))
    volume = {"input": "scroll.zarr/ct", "sheet": "scroll.zarr/sheet", "ref_label": "sheet"}
    task = {
        "tr_params": {
            "model_name": "tiny", "patch_size": [16, 16, 16], "batch_size": 1, "tr_val_split": 0.6,
            "max_steps_per_epoch": 1, "max_val_steps_per_epoch": 1, "max_epoch": 1,
            "num_dataloader_workers": 0, "ckpt_out_base": "run", "amp": "off", "compile": False,
        },
        "model_config": {"f_maps": [4, 8], "num_levels": 2},
        "dataset_config": {
            "min_bbox_percent": 0.1, "min_labeled_ratio": 0.01, "volume_paths": [volume],
            "targets": {"sheet": {"channels": 1, "ignore_label": 2}},
        },
    }  # fmt: skip
    (project / "task.json").write_text(json.dumps(task))
    before = Path.cwd()
    os.chdir(project)
    try:
        assert main(["train", "task.json"]) == 0
    finally:
        os.chdir(before)
    return project


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """The same, at another place, with other times."""
    shutil.copytree(trained, tmp_path / "p", copy_function=shutil.copyfile)
    monkeypatch.chdir(tmp_path / "p")
    return tmp_path / "p"


def more(*arguments):
    return main(["train", "task.json", "--set", "tr_params.max_epoch=2", *arguments])


def epoch(project):
    return load_checkpoint(project / "run" / "tiny_last.pth").state["epoch"]


def invert(project):
    array = zarr.open_array(str(project / "scroll.zarr" / "ct"), mode="r+")
    array[...] = 255 - array[...]


def edit_label(project, store="scroll.zarr"):
    array = zarr.open_array(str(project / store / "sheet"), mode="r+")
    array[:8, :16, :16] = np.where(array[:8, :16, :16] == 1, 0, array[:8, :16, :16])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (invert, "volume_paths.0.input: has changed since tiny_last.pth was saved: input of"),
        (edit_label, "volume_paths.0.sheet: has changed since tiny_last.pth was saved: sheet of"),
    ],
)
def test_a_run_goes_on_with_changed_data_only_when_it_is_told_to(project, change, words, capsys):
    change(project)
    before = {p: p.read_bytes() for p in (project / "run").rglob("*") if p.is_file()}
    assert more() == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "--accept-changed-data" in error
    assert len(error.splitlines()) == 1
    assert {p: p.read_bytes() for p in (project / "run").rglob("*") if p.is_file()} == before
    assert more("--accept-changed-data") == 0
    assert epoch(project) == 2
    assert words.rpartition(": ")[2] in read_starts(project / "run")[-1]["accepted_changes"][0]
    capsys.readouterr()  # what was accepted is known from then on
    assert main(["train", "task.json", "--set", "tr_params.max_epoch=3"]) == 0
    assert "accepted" not in capsys.readouterr().out


def test_data_that_were_moved_are_the_same(project, capsys):
    (project / "scroll.zarr").rename(project / "renamed.zarr")
    text = (project / "task.json").read_text().replace("scroll.zarr", "renamed.zarr")
    (project / "task.json").write_text(text)
    assert more() == 0
    assert "2 arrays are copies or were written again" in capsys.readouterr().out
    assert epoch(project) == 2
    edit_label(project, "renamed.zarr")
    assert more("--set", "tr_params.max_epoch=3") == 2


def test_another_array_at_another_place_is_refused(project, capsys):
    shutil.copytree(project / "scroll.zarr", project / "other.zarr")
    text = (project / "task.json").read_text().replace("scroll.zarr/ct", "other.zarr/ct")
    (project / "task.json").write_text(text)
    array = zarr.open_array(str(project / "other.zarr" / "ct"), mode="r+")
    array[0, 0, 0] ^= 1
    assert more() == 2
    assert "volume_paths.0.input: has changed since" in capsys.readouterr().err


def test_other_extents_cannot_be_accepted(project, capsys):
    for name in ("ct", "sheet"):
        path = str(project / "scroll.zarr" / name)
        zarr.open_array(path, mode="r+").resize((24, 60, 40))
    assert more("--accept-changed-data") == 2
    error = capsys.readouterr().err
    assert "extent was [24, 72, 40], is [24, 60, 40]" in error
    assert "accept" not in error


def test_an_older_checkpoint_continues_and_says_so(project, capsys):
    last = project / "run" / "tiny_last.pth"
    state = load_checkpoint(last).state
    del state["data"]
    save_checkpoint(last, state)
    invert(project)
    assert more() == 0
    assert "does not say what its data were" in capsys.readouterr().out


def test_the_option_says_when_it_has_nothing_to_accept(project, capsys):
    assert main(["train", "task.json", "--set", "tr_params.ckpt_out_base=new",
                 "--accept-changed-data"]) == 0  # fmt: skip
    assert "--accept-changed-data: there is nothing to compare with" in capsys.readouterr().out


def test_folds_are_trained_on_the_same_data_wherever_they_are(project, capsys):
    def fold(index, *arguments):
        folds = ("--set", 'tr_params.folds={"count": 2, "by": "slab"}')
        places = ("--set", "tr_params.ckpt_out_base=cv", "--fold", str(index))
        return main(["train", "task.json", *folds, *places, *arguments])

    assert fold(0) == 0
    (project / "scroll.zarr").rename(project / "renamed.zarr")
    text = (project / "task.json").read_text().replace("scroll.zarr", "renamed.zarr")
    (project / "task.json").write_text(text)
    assert fold(1) == 0
    shutil.rmtree(project / "cv" / "fold_1")
    array = zarr.open_array(str(project / "renamed.zarr" / "ct"), mode="r+")
    array[0, 0, 0] ^= 1
    assert fold(1) == 2
    assert "fold_0: was trained on inputs or labels that have changed" in capsys.readouterr().err
    assert fold(1, "--accept-changed-data") == 0
