"""Whole held-out volumes, against predictions and scores made by the single commands."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from vcmodels import evaluation, inference
from vcmodels.cli import main
from vcmodels.config import load_task
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import CheckpointError, RefusedError
from vcmodels.geometry.boxes import Box
from vcmodels.reporting import Silent
from vcmodels.runs.run import Run
from vcmodels.training import train
from vcmodels.workflows.fold_report import (
    HeldOutPart,
    HeldOutScore,
    figures_of,
    held_out_parts,
    score_held_out,
)


@pytest.fixture
def task(sheet_task, task_file):
    """Two slabs of the phantom and a part of it that always validates."""
    first = sheet_task["dataset_config"]["volume_paths"][0]
    first |= {"name": "part", "bbox": [[0, 16], [0, 96], [0, 56]]}
    fixed = first | {"name": "fixed", "bbox": [[16, 24], [0, 32], [0, 32]], "split": "val"}
    sheet_task["dataset_config"]["volume_paths"].append(fixed)
    sheet_task["tr_params"] |= {
        "folds": {"count": 2, "by": "slab"}, "split_guard": 0, "patch_size": [8, 16, 16],
        "max_epoch": 1, "max_steps_per_epoch": 1, "max_val_steps_per_epoch": 1,
    }  # fmt: skip
    sheet_task["inference_params"]["amp"] = "off"
    return task_file(sheet_task)


class StoppedInScoring(Silent):
    """Notices when everything is predicted and scoring begins."""

    is_scoring = False

    def bar(self, name, total):
        self.is_scoring = name.startswith("score ")
        return super().bar(name, total)


@pytest.mark.slow
def test_each_part_is_scored_by_the_fold_that_did_not_see_it(task, tmp_path, capsys):
    loaded = load_task(task).task
    with pytest.raises(CheckpointError, match=r"fold_0: holds no tiny_best.pth; train first"):
        score_held_out(loaded, Silent())
    for index in range(2):
        train(loaded.fold(index), reporter=Silent())
    assert score_held_out(loaded, Silent(), should_stop=lambda: True) is None
    stopping = StoppedInScoring()
    output = tmp_path / "report"
    assert score_held_out(loaded, stopping, lambda: stopping.is_scoring, output) is None
    assert stopping.is_scoring
    assert not (output / "report.json").exists()
    scored = score_held_out(loaded, Silent())
    assert [(one.fold, one.volume) for one in scored] == [
        (0, "part"), (0, "fixed"), (1, "part"), (1, "fixed"),
    ]  # fmt: skip
    slabs = np.zeros((24, 96, 56), int)
    for one in scored[::2]:
        slabs[one.box.slices()] += 1
    assert (slabs[:16] == 1).all()

    one = scored[2]
    alone = loaded.fold(1)
    region = tuple(zip(one.box.origin, one.box.end, strict=True))
    params = alone.inference_params.model_copy(
        update={"bbox": region, "output_dir": str(tmp_path / "alone")}
    )
    alone = alone.model_copy(update={"inference_params": params})
    best = str(tmp_path / "run" / "fold_1" / "tiny_best.pth")
    inference.run_inference(alone, checkpoint=best)
    assert evaluation.evaluate(alone, bbox=region) == one.scores

    capsys.readouterr()
    assert main(["cv", "evaluate", str(task), "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["parts"][2]["scores"]["sheet"]["dice"] == one.scores["sheet"]["dice"]
    dice = [[s.scores["sheet"]["dice"] for s in scored if s.fold == n] for n in (0, 1)]
    expected = [np.nanmean(values) for values in dice]
    assert found["targets"]["sheet"]["dice"]["folds"] == pytest.approx(expected)
    assert found["targets"]["sheet"]["dice"]["mean"] == pytest.approx(np.mean(expected))
    assert "already complete" in captured.err


def test_each_volume_has_a_folder_of_its_own(task):
    loaded = load_task(task).task
    run, volume = Run(loaded.run_dir).fold(0), open_volumes(loaded)[0]
    names = ["a/b", "a_b", "a%2Fb", "a%b", "a", "a/b/c"]
    volumes = [replace(volume, name=name) for name in names]
    places = [HeldOutPart(0, run, one, volume.region).folder for one in volumes]
    assert len(set(places)) == len(names)
    assert {place.parent for place in places} == {loaded.fold(0).run_dir / "held_out"}


def test_a_fold_counts_once_however_many_volumes_it_has():
    box = Box((1, 2, 3), (4, 5, 6))
    scored = [
        HeldOutScore(0, "a", box, {"t": {"dice": 0.2}}),
        HeldOutScore(0, "b", box, {"t": {"dice": 0.4}}),
        HeldOutScore(0, "c", box, {"t": {"dice": math.nan}}),
        HeldOutScore(2, "d", box, {"t": {"dice": 0.8, "iou": 0.5}}),
    ]
    assert scored[2].to_json() == {
        "fold": 0, "volume": "c", "region": [[1, 5], [2, 7], [3, 9]], "scores": {"t": {"dice": None}},
    }  # fmt: skip
    found = figures_of(scored, 3)
    assert found["t", "dice"].values == (pytest.approx(0.3), None, 0.8)
    assert found["t", "dice"].mean == pytest.approx(0.55)
    assert found["t", "iou"].values == (None, None, 0.5)


def test_what_cannot_be_scored_is_refused_before_anything_is_predicted(task):
    loaded = load_task(task).task
    run, volumes = Run(loaded.run_dir, "tiny"), open_volumes(loaded)
    folds = [run.fold(0), run.fold(1)]
    regions = [[[0, 8], [0, 96], [0, 56]], None]
    for fold in folds:
        fold.folder.mkdir(parents=True)
        fold.best.write_bytes(b"")
    with pytest.raises(RefusedError, match=r"fold_0/splits.json: is not there; train this fold"):
        held_out_parts(folds, volumes)
    split = {"volumes": ["part", "fixed"], "train_regions": [None, None], "val_regions": regions}
    folds[0].write_splits(split)
    folds[1].write_splits(split | {"volumes": ["other", "fixed"]})
    with pytest.raises(RefusedError, match="fold 1 validates on other, which the task does not"):
        held_out_parts(folds, volumes)
    folds[1].write_splits(split | {"val_regions": regions[::-1]})
    parts = held_out_parts(folds, volumes)
    assert [(part.fold, part.volume.name, part.box) for part in parts] == [
        (0, "part", Box((0, 0, 0), (8, 96, 56))), (1, "fixed", Box((0, 0, 0), (8, 96, 56))),
    ]  # fmt: skip


def test_a_single_fold_is_no_cross_validation(sheet_task, task_file):
    sheet_task["tr_params"]["folds"] = {"count": 2, "index": 0}
    with pytest.raises(RefusedError, match="this is no whole cross-validation"):
        score_held_out(load_task(task_file(sheet_task)).task, Silent())


@pytest.mark.parametrize("choice", [None, "val", ["part"], "all"], ids=str)
def test_a_choice_of_other_volumes_is_said_to_have_no_effect(task, choice):
    loaded, reporter = load_task(task).task, Silent()
    with pytest.raises(CheckpointError):
        score_held_out(loaded.with_values(evaluation={"volumes": choice}), reporter)
    notes = [line for line in reporter.lines if line.startswith("note: evaluation.volumes")]
    assert len(notes) == (choice in (["part"], "all"))
