"""Values of post-processing are chosen on validation volumes, kept with the weights, and used by infer."""

import json

import numpy as np
import pytest

from vcmodels.checkpoint import build_network, load_checkpoint
from vcmodels.cli import main
from vcmodels.config import parse_task
from vcmodels.data.selection import choose_volumes
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import TaskError
from vcmodels.evaluation.evaluate import ScoredRegion
from vcmodels.evaluation.objects import scored_ids
from vcmodels.evaluation.scoring import ScoredVolume, score_volumes
from vcmodels.postprocess import ComponentsStep
from vcmodels.postprocess.tuning import Trial, TunedStep, candidates, with_tuned
from vcmodels.results import our_attributes
from vcmodels.runs.run import Run
from vcmodels.volumes import open_volume, place_at
from vcmodels.workflows import tuning
from vcmodels.workflows.tuning import Judge, steps_of_task, tune

GRID = (0.3, 0.5, 0.6)
STEP = {"name": "components", "output": "blobs", "from": "sheet", "threshold": "tuned",
        "tune_by": "sheet"}  # fmt: skip


@pytest.fixture
def job(sheet_task, monkeypatch):
    monkeypatch.setattr(ComponentsStep, "grid", {"threshold": GRID})
    sheet_task["inference_params"]["device"] = "cpu"
    sheet_task["tr_params"] |= {"device": "cpu", "max_epoch": 1}
    sheet_task["postprocess"] = [STEP]
    return sheet_task


def score_by_hand(job, value, task_file, folder):
    """What two arrays are scored as: the objects of one value, and the label, where it was held out."""
    step = {key: of for key, of in STEP.items() if key != "tune_by"} | {"threshold": value}
    params = {**job["inference_params"], "volumes": "val", "output_dir": str(folder)}
    document = {**job, "postprocess": [step], "inference_params": params}
    assert main(["infer", str(task_file(document, f"{value}.json"))]) == 0
    (root,) = folder.glob("*/*.zarr")
    task = parse_task(document, "task.json")[0]
    (held_out,) = choose_volumes(
        open_volumes(task), "val", Run(task.run_dir, "tiny"), key="volumes"
    )
    label = held_out.volume.labels["sheet"]
    objects = open_volume(f"{root}/blobs/0", key="blobs")
    one = scored_ids("blobs", objects, label, ScoredRegion(held_out.volume, held_out.box), ())
    report = score_volumes([ScoredVolume("volume", str(root), (one,))])
    return report.volumes[0].targets["blobs"].figures["voi"]


def test_training_chooses_what_is_best_and_infer_uses_it(job, task_file, tmp_path, capsys):
    path = task_file(job)
    assert main(["train", str(path)]) == 0
    task = parse_task(job, "task.json")[0]
    kept = json.loads((task.run_dir / "tuned.json").read_text())
    (step,) = kept["steps"]
    assert [trial["values"]["threshold"] for trial in step["trials"]] == list(GRID)
    scores = [score_by_hand(job, v, task_file, tmp_path / f"by_hand_{v}") for v in GRID]
    np.testing.assert_allclose([trial["score"] for trial in step["trials"]], scores, rtol=1e-12)
    best = GRID[int(np.argmin(scores))]
    assert step["values"] == {"threshold": best}
    assert load_checkpoint(task.run_dir / "tiny_best.pth").state["tuned"]["values"] == {
        "blobs": {"threshold": best}
    }
    assert not (task.run_dir / "tuning").exists()
    assert main(["infer", str(path)]) == 0
    output = place_at(f"{job['inference_params']['output_dir']}/tiny.zarr/blobs")
    assert our_attributes(output)["step"]["threshold"] == best
    capsys.readouterr()
    assert main(["postprocess", str(path)]) == 0
    assert "already complete" in capsys.readouterr().out


def test_a_stop_continues_and_what_was_chosen_is_not_chosen_again(job, task_file, monkeypatch):
    path = task_file(job)
    numbers = {**job, "postprocess": []}
    assert main(["train", str(task_file(numbers, "plain.json"))]) == 0
    task = parse_task(job, "task.json")[0]
    with pytest.raises(
        TaskError, match=r'threshold: is "tuned", and no value was chosen yet for these steps; run'
    ):
        with_tuned(task.postprocess, {})
    assert main(["infer", str(path)]) == 2
    before = load_checkpoint(task.run_dir / "tiny_best.pth")
    trials = task.run_dir / "tuning" / "trials.json"
    assert tune(task, should_stop=trials.exists) is None
    assert json.loads(trials.read_text())
    found = tune(task)
    assert found is not None
    sha256 = build_network(load_checkpoint(task.run_dir / "tiny_best.pth")).sha256
    assert sha256 == build_network(before).sha256
    other = parse_task({**job, "postprocess": [{**STEP, "connectivity": 6}]}, "task.json")[0]
    with pytest.raises(TaskError, match=r"no value was chosen yet for these steps"):
        steps_of_task(other)
    monkeypatch.setattr(tuning.Tuner, "tune", None)
    assert tune(task) == found


def test_a_label_or_a_figure_that_there_is_not_is_named_before_anything_is_predicted(job):
    task = parse_task(job, "task.json")[0]
    (step,) = task.postprocess
    wrong = step.changed(tune_by="other")
    with pytest.raises(TaskError, match=r'postprocess.0.tune_by: there is no label "other"'):
        Judge.of(wrong, 0, task, "instances")
    wrong = step.changed(tune_for="dice")
    with pytest.raises(TaskError, match=r'postprocess.0.tune_for: "dice" is no figure of blobs'):
        Judge.of(wrong, 0, task, "instances")


def test_values_that_can_no_longer_win_are_left():
    judge = Judge("a", "b", "voi", "min", None)
    assert judge.is_beaten(1.0, 1, 2, 0.4)
    assert not judge.is_beaten(1.0, 1, 2, 0.5)
    judge = Judge("a", "b", "ap", "max", None)
    assert judge.is_beaten(0.2, 1, 2, 0.7)
    assert not judge.is_beaten(0.2, 1, 2, 0.6)


def test_the_best_saw_all_volumes():
    trials = (Trial({"t": 1.0}, 0.1, 1), Trial({"t": 2.0}, 0.3, 2), Trial({"t": 3.0}, 0.3, 2))
    step = TunedStep("a", "voi", "min", trials)
    assert step.best is trials[1]
    assert TunedStep.from_json(step.to_json()) == step


def test_all_combinations_are_tried(job):
    (step,) = parse_task(job, "task.json")[0].postprocess
    assert [one["threshold"] for one in candidates(step)] == list(GRID)
