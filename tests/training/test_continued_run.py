"""A run that was stopped and is continued by its folder, from another working directory."""

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vcmodels.checkpoint import load_checkpoint
from vcmodels.cli import main
from vcmodels.runs.run import read_starts
from vcmodels.runs.survey import read_status
from vcmodels.training.learner import Learner


@pytest.fixture
def project(sheet_task, phantom, tmp_path, monkeypatch):
    """A folder with data and a task file in which all paths are relative, as working directory."""
    project = tmp_path / "project"
    project.mkdir()
    shutil.copytree(phantom, project / "scroll.zarr")
    for name, volume in list(sheet_task["dataset_config"]["volume_paths"][0].items()):
        if name != "ref_label":
            volume = f"scroll.zarr/{Path(volume).name}"
            sheet_task["dataset_config"]["volume_paths"][0][name] = volume
    sheet_task["inference_params"] = {"input_path": "scroll.zarr/ct", "output_dir": "out"}
    sheet_task["tr_params"] |= {"ckpt_out_base": "runs/x", "keep_checkpoints": 1}
    (project / "task.json").write_text(json.dumps(sheet_task))
    monkeypatch.chdir(project)
    return project


def train(*arguments):
    return main(["train", *map(str, arguments)])


def stop_at(monkeypatch, step):
    original = Learner.train_step

    def train_step(self, *arguments, **options):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Learner, "train_step", train_step)


def points(run):
    """(tag, step) of everything that TensorBoard shows, how often each."""
    events = EventAccumulator(str(run / "tensorboard" / "tiny"), size_guidance={"images": 0})
    events.Reload()
    kinds = {"scalars": events.Scalars, "images": events.Images}
    return Counter(
        (tag, point.step)
        for kind, read in kinds.items()
        for tag in events.Tags()[kind]
        for point in read(tag)
    )


def test_a_run_folder_continues_its_run_from_anywhere(project, tmp_path, monkeypatch, capsys):
    run = project / "runs" / "x"
    assert train("task.json", "--set", "tr_params.ckpt_out_base=whole") == 0
    with monkeypatch.context() as context:
        stop_at(context, 4)
        assert train("task.json") == 143
    assert read_status(run).state == "stopped"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    assert train("../project/runs/x") == 0
    assert "continuing" in capsys.readouterr().out
    wanted, found = (
        load_checkpoint(folder / "tiny_last.pth").state for folder in (project / "whole", run)
    )
    assert all(torch.equal(value, found["ema"][name]) for name, value in wanted["ema"].items())
    assert list(Path.cwd().iterdir()) == []  # nothing was written where it was started from
    # No step twice, and the same steps as of a run that was never stopped.
    assert points(run) == points(project / "whole")
    assert set(points(run).values()) == {1}
    first, second = read_starts(run)
    assert (first["from_step"], first["outcome"]) == (0, "stopped")
    assert (second["from_step"], second["outcome"]) == (5, "complete")
    assert second["working_directory"] == str(tmp_path / "elsewhere")
    monkeypatch.chdir(project)
    assert train("task.json") == 0
    assert "already complete" in capsys.readouterr().out
    assert len(read_starts(run)) == 2


def test_a_fold_is_continued_from_anywhere(project, tmp_path, monkeypatch):
    settings = ["tr_params.max_epoch=1", "tr_params.split_guard=0", "tr_params.patch_jitter=false"]
    words = [word for line in settings for word in ("--set", line)]
    assert train("task.json", "--folds", 2, "--fold", 0, *words) == 0
    with monkeypatch.context() as context:
        stop_at(context, 1)
        assert train("task.json", "--folds", 2, "--fold", 1, *words) == 143
    monkeypatch.chdir(tmp_path)
    assert train("project/runs/x/fold_1") == 0
    assert read_status(project / "runs" / "x" / "fold_1").state == "complete"


def test_a_run_folder_says_how_it_went(project, capsys):
    assert train("task.json", "--set", "tr_params.best_metric=val/dice_sheet") == 0
    run = read_status(project / "runs" / "x")
    assert read_starts(run.folder)[0]["best"] == {"curve": "val/dice_sheet", "sense": "max"}
    assert (run.state, run.epoch, run.max_epoch, run.device) == ("complete", 2, 2, "cpu")
    assert run.figures.keys() == {"sheet", "normals"}
    assert run.figures["normals"].metric == "angle_deg"
    assert 0 < run.figures["sheet"].best <= 1
    assert run.minutes > 0
    assert run.patches_per_second > 0
    log = (run.folder / "log.jsonl").read_text().splitlines()
    assert 0 <= json.loads(log[-1])["speed/data_wait"] <= 1
    capsys.readouterr()
    assert main(["runs", "runs"]) == 0
    assert "runs/x complete 2/2" in " ".join(capsys.readouterr().out.split())


def test_a_training_that_fails_says_so_in_its_folder(project, monkeypatch):
    def fail(*_arguments, **_options):
        raise ArithmeticError("too large")

    monkeypatch.setattr(Learner, "train_step", fail)
    with pytest.raises(ArithmeticError):
        train("task.json")
    assert read_starts(project / "runs" / "x")[0]["outcome"] == "failed: ArithmeticError: too large"


def test_what_is_predicted_by_a_run_folder_lands_where_its_task_says(
    project, tmp_path, monkeypatch
):
    assert train("task.json", "--set", "tr_params.max_epoch=1") == 0
    monkeypatch.chdir(tmp_path)
    assert main(["infer", "project/runs/x", "--set", "inference_params.device=cpu"]) == 0
    assert list((project / "out").iterdir())


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_patches_of_a_run_are_in_its_folder(project, use_cache):
    settings = [f"dataset_config.use_cache={json.dumps(use_cache)}", "tr_params.max_epoch=1"]
    if use_cache:
        settings.append("dataset_config.cache_file=elsewhere.json")
    assert train("task.json", *(word for line in settings for word in ("--set", line))) == 0
    run = project / "runs" / "x"
    kept = json.loads((run / "patches.json").read_text())
    splits = json.loads((run / "splits.json").read_text())
    assert kept["sha256"] == splits["patches"]["sha256"]
    assert len(kept["patches"]) == splits["patches"]["count"]
    assert (project / "elsewhere.json").exists() == use_cache
