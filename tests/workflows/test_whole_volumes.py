"""Whole volumes validated in the middle of a training: the figures of `evaluate`, and nothing else changes."""

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.test_world import start
from vcmodels import evaluation
from vcmodels.checkpoint import load_checkpoint
from vcmodels.cli import main
from vcmodels.config import parse_task
from vcmodels.errors import TaskError
from vcmodels.inference import run_inference
from vcmodels.reporting import Silent
from vcmodels.runs.run import Run, read_log
from vcmodels.training import train
from vcmodels.workflows import whole_volumes
from vcmodels.workflows.whole_volumes import WholeVolumes

CURVE = "val_volumes/dice_sheet"


@pytest.fixture
def job(sheet_task) -> dict:
    """Four epochs, of which the second and the fourth validate whole volumes."""
    sheet_task["tr_params"] |= {
        "max_epoch": 4, "threads": 1, "device": "cpu", "ema_decay": 0.9, "scheduler": "constant",
        "validation": {"whole_volumes": True, "every": 2}, "keep_checkpoints": 4,
    }  # fmt: skip
    return sheet_task


def run(document: dict) -> tuple[int, list[str]]:
    reporter = Silent()
    task = parse_task(document, "task.json")[0]
    return train(task, reporter=reporter, whole_volumes=WholeVolumes), reporter.lines


def folder_of(document: dict) -> Path:
    return Path(document["tr_params"]["ckpt_out_base"])


def state(document: dict, which: object = "last") -> dict:
    return load_checkpoint(folder_of(document) / f"tiny_{which}.pth").state


def log(document: dict) -> list[dict]:
    return read_log(folder_of(document))


def assert_same_weights(one: dict, other: dict) -> None:
    for part in ("model", "ema"):
        for name, value in one[part].items():
            torch.testing.assert_close(value, other[part][name], rtol=0, atol=0)


def test_the_curves_are_the_scores_of_evaluate(job):
    job["tr_params"]["calibrate"] = True  # what is predicted depends on the temperatures
    run(job)
    lines = log(job)
    assert [CURVE in line for line in lines] == [False, True, False, True]
    assert not (folder_of(job) / "validation").exists()
    job["inference_params"] |= {"volumes": "val", "device": "cpu"}
    for epoch in (2, 4):
        job["inference_params"]["output_dir"] = f"{folder_of(job).parent}/of_{epoch}"
        task = parse_task(job, "task.json")[0]
        run_inference(task, str(folder_of(job) / f"tiny_{epoch}.pth"))
        scores = evaluation.evaluate(task)
        wanted = {
            f"val_volumes/{figure}_{name}": value
            for name, figures in scores.items()
            for figure, value in figures.items()
            if math.isfinite(value)
        }
        found = {k: v for k, v in lines[epoch - 1].items() if k.startswith("val_volumes/")}
        assert found.keys() == wanted.keys()
        assert len(found) > 10
        np.testing.assert_allclose(list(found.values()), [wanted[k] for k in found], rtol=1e-12)


def test_a_training_learns_the_same_with_and_without(job):
    job["dataset_config"]["sampling"] = {"foreground": 0.3, "hard": 0.5}
    run(job)
    with_volumes = {n: state(job, n) for n in ("last", 3)}
    job["tr_params"] |= {"ckpt_out_base": f"{folder_of(job)}_plain", "validation": {}}
    run(job)
    for name, found in with_volumes.items():
        other = state(job, name)
        assert_same_weights(found, other)
        assert found["counters"] == other["counters"]
    assert "val/dice_sheet" in log(job)[0]
    assert not any("val_volumes" in key for line in log(job) for key in line)


def stopped(monkeypatch, after: int):
    """SIGTERM after so many questions whether to stop, in the first validation."""
    original = whole_volumes.score_network

    def score(*given, should_stop, **others):
        asked = iter(range(10**9))

        def stop():
            if next(asked) == after:
                os.kill(os.getpid(), signal.SIGTERM)
            return should_stop()

        monkeypatch.setattr(whole_volumes, "score_network", original)
        return original(*given, should_stop=stop, **others)

    monkeypatch.setattr(whole_volumes, "score_network", score)


@pytest.mark.parametrize("after", [0, 6])
def test_a_stop_in_a_validation_costs_nothing(job, monkeypatch, after):
    run(job)
    wanted, lines = state(job), log(job)
    job["tr_params"]["ckpt_out_base"] = f"{folder_of(job)}_stopped"
    stopped(monkeypatch, after)
    assert run(job)[0] == 128 + signal.SIGTERM
    assert (state(job)["step"], state(job)["epoch"]) == (6, 1)
    assert list((folder_of(job) / "validation").iterdir())
    assert run(job)[0] == 0
    assert_same_weights(state(job), wanted)
    assert state(job)["counters"] == wanted["counters"]
    assert not (folder_of(job) / "validation").exists()

    def figures(line):
        return {k: v for k, v in line.items() if k.startswith(("val", "epoch", "step"))}

    assert [figures(line) for line in log(job)] == [figures(line) for line in lines]


@pytest.fixture
def points(monkeypatch):
    """Lets `val_volumes/dice_sheet` be what the test wants, validation by validation."""
    values: list[float] = []
    left = iter(values)

    def figures(self, state, should_stop):
        del self, state, should_stop
        return {CURVE: next(left)}

    monkeypatch.setattr(WholeVolumes, "__call__", figures)
    return values


def test_the_best_is_chosen_among_epochs_that_have_a_value(job, points):
    points += [0.1, 0.5, 0.3]
    job["tr_params"] |= {"best_metric": CURVE, "max_epoch": 7, "max_steps_per_epoch": 1}
    run(job)
    assert state(job, "best")["epoch"] == 4
    assert state(job)["counters"]["best"] == -0.5


def test_early_stopping_counts_validations_of_whole_volumes(job, points):
    points += [0.2, 0.5, 0.4, 0.5, 0.9]
    job["tr_params"] |= {"max_epoch": 40, "max_steps_per_epoch": 1, "best_metric": CURVE}
    job["tr_params"]["early_stopping"] = {"patience": 2}
    _, lines = run(job)
    assert state(job)["epoch"] == 8
    assert lines[-1].startswith(
        f"stopped early after epoch 8: {CURVE} has not improved for 2 validations; best"
    )
    assert not [line for line in lines if "has no value" in line]


def test_a_validation_without_a_value_is_told(job, points):
    points += [math.nan, 0.5]
    job["tr_params"] |= {"max_steps_per_epoch": 1, "best_metric": CURVE}
    _, lines = run(job)
    notes = [line for line in lines if "has no value" in line]
    assert notes == [f"note: {CURVE} has no value in epoch 2"]
    assert state(job, "best")["epoch"] == 4


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"validation": {}}, r'best_metric: .*no curve of this run; give "validation": {"whole_v'),
        ({"validation": {"whole_volumes": True, "every": 9}}, r"no value before epoch 9; lower val"),
        (
            {"validation": {"whole_volumes": True, "metrics": {"sheet": ["hd96"]}}},
            r'validation\.metrics\.sheet: "hd96" is no metric',
        ),
        (
            {"validation": {"whole_volumes": True, "metrics": {"sheet": ["iou"]}, "every": 1}},
            r"best_metric: .*dice_sheet.* no curve of this run; give one of",
        ),
    ],
)  # fmt: skip
def test_curves_that_cannot_come_are_refused(job, keys, match):
    job["tr_params"] |= {"best_metric": CURVE, **keys}
    with pytest.raises(TaskError, match=match):
        run(job)


def test_a_target_without_a_label_on_the_validation_side_is_refused(job, phantom):
    (entry,) = job["dataset_config"]["volume_paths"]
    held = {"input": entry["input"], "normals": entry["normals"], "split": "val", "name": "held"}
    job["dataset_config"]["volume_paths"] = [{**entry, "split": "train"}, held]
    job["tr_params"]["best_metric"] = CURVE
    with pytest.raises(TaskError, match=r"best_metric: is .*no volume of the validation side has"):
        run(job)


def test_what_cannot_be_stored_is_refused_before_the_first_step(job):
    job["dataset_config"]["targets"]["sides"] = {
        "kind": "multiclass", "channels": 3, "label_values": [0, 1, 300], "ignore_label": 2,
    }  # fmt: skip
    (entry,) = job["dataset_config"]["volume_paths"]
    entry["sides"] = entry["sheet"]
    job["dataset_config"]["targets"]["sides"]["output"] = "classes"
    task = parse_task(job, "task.json")[0]
    assert task.dataset_config.targets["sides"].channels == 3
    with pytest.raises(TaskError, match=r"output_type: target .sides."):
        run(job)
    assert not list(folder_of(job).glob("*.pth"))


def test_only_the_metrics_that_are_named_are_measured(job):
    job["tr_params"]["validation"] |= {"metrics": {"sheet": ["iou"], "normals": ["angle_deg"]}}
    run(job)
    found = {key for line in log(job) for key in line if key.startswith("val_volumes/")}
    assert found == {"val_volumes/iou_sheet", "val_volumes/angle_deg_normals"}


def test_another_way_to_measure_the_best_is_refused_in_a_run(job, points):
    points += [0.1] * 9
    settings = job["tr_params"]
    settings |= {"best_metric": CURVE, "max_epoch": 2, "max_steps_per_epoch": 1}
    run(job)
    settings["max_epoch"] = 4
    settings["validation"] = {"whole_volumes": True, "every": 1, "metrics": {"sheet": ["dice"]}}
    with pytest.raises(TaskError, match=r"validation\.metrics.*differs from the run"):
        run(job)
    del settings["validation"]["metrics"]
    assert run(job)[0] == 0
    assert state(job)["epoch"] == 4


def test_the_command_line_and_the_check_know_it(job, task_file, capsys):
    job["tr_params"] |= {"best_metric": CURVE, "max_epoch": 2, "max_steps_per_epoch": 1}
    file = str(task_file(job))
    assert main(["check", file]) == 0
    assert main(["train", file, "--quiet"]) == 0
    assert CURVE in log(job)[1]
    job["tr_params"] |= {
        "best_metric": "val/loss", "validation": {"every": 2}, "ckpt_out_base": "elsewhere"
    }  # fmt: skip
    capsys.readouterr()
    assert main(["check", str(task_file(job))]) == 0
    assert "validation.every: has no effect: whole_volumes is false" in capsys.readouterr().out


def test_nothing_but_what_is_held_out_is_predicted(job, monkeypatch):
    boxes: list[Any] = []
    original = whole_volumes.predict_request

    def predict(request, options):
        boxes.append(request.params.bbox)
        return original(request, options)

    monkeypatch.setattr(whole_volumes, "predict_request", predict)
    job["tr_params"] |= {"max_epoch": 2, "max_steps_per_epoch": 1}
    run(job)
    splits = Run(folder_of(job)).splits()
    assert splits is not None
    (held,) = splits.held_out().values()
    assert boxes == [tuple(zip(held.origin, held.end, strict=True))]
    assert held.voxels < 24 * 96 * 56 / 2


@pytest.mark.slow
def test_of_two_processes_the_first_validates_and_both_go_on(job):
    job["tr_params"] |= {"max_steps_per_epoch": 1}
    processes = start(job, folder_of(job).parent / "work")
    out, error = processes.communicate()
    assert processes.returncode == 0, error
    assert [CURVE in line for line in log(job)] == [False, True, False, True]
    assert out.count("validated whole volumes in") == 2
    assert state(job)["epoch"] == 4
