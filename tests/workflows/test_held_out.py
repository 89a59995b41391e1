"""Whole held-out volumes, against predictions and scores made by the single commands."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vcmodels import evaluation, inference
from vcmodels.cli import main
from vcmodels.config import load_task
from vcmodels.config.folds import fold_task
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import CheckpointError, RefusedError
from vcmodels.reporting import Silent
from vcmodels.training import train
from vcmodels.workflows.fold_report import Scored, figures_of, prediction_task, score_held_out


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


@pytest.mark.slow
def test_each_part_is_scored_by_the_fold_that_did_not_see_it(task, tmp_path, capsys):
    loaded = load_task(task).task
    with pytest.raises(CheckpointError, match=r"fold_0: holds no tiny_best.pth; train first"):
        score_held_out(loaded, Silent())
    for index in range(2):
        train(fold_task(loaded, index), reporter=Silent())
    assert score_held_out(loaded, Silent(), should_stop=lambda: True) is None
    scored = score_held_out(loaded, Silent())
    assert [(one.fold, one.volume) for one in scored] == [
        (0, "part"), (0, "fixed"), (1, "part"), (1, "fixed"),
    ]  # fmt: skip
    slabs = np.zeros((24, 96, 56), int)
    for one in scored[::2]:
        slabs[tuple(slice(*pair) for pair in one.region)] += 1
    assert (slabs[:16] == 1).all()

    one = scored[2]
    alone = fold_task(loaded, 1)
    params = alone.inference_params.model_copy(
        update={"bbox": tuple(one.region), "output_dir": str(tmp_path / "alone")}
    )
    alone = alone.model_copy(update={"inference_params": params})
    best = str(tmp_path / "run" / "fold_1" / "tiny_best.pth")
    inference.run_inference(alone, checkpoint=best)
    assert evaluation.evaluate(alone, bbox=one.region) == one.scores

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
    fold = fold_task(load_task(task).task, 0)
    volume = open_volumes(fold)[0]
    names = ["a/b", "a_b", "a%2Fb", "a%b", "a", "a/b/c"]
    places = [
        Path(prediction_task(fold, replace(volume, name=name), []).inference_params.output_dir)
        for name in names
    ]
    assert len(set(places)) == len(names)
    assert {place.parent for place in places} == {fold.run_dir / "held_out"}


def test_a_fold_counts_once_however_many_volumes_it_has():
    region = [(0, 1)] * 3
    scored = [
        Scored(0, "a", region, {"t": {"dice": 0.2}}),
        Scored(0, "b", region, {"t": {"dice": 0.4}}),
        Scored(0, "c", region, {"t": {"dice": math.nan}}),
        Scored(2, "d", region, {"t": {"dice": 0.8, "iou": 0.5}}),
    ]
    found = figures_of(scored, 3)
    assert found["t", "dice"].values == (pytest.approx(0.3), None, 0.8)
    assert found["t", "dice"].mean == pytest.approx(0.55)
    assert found["t", "iou"].values == (None, None, 0.5)


def test_a_single_fold_is_no_cross_validation(sheet_task, task_file):
    sheet_task["tr_params"]["folds"] = {"count": 2, "index": 0}
    with pytest.raises(RefusedError, match="this is no whole cross-validation"):
        score_held_out(load_task(task_file(sheet_task)).task, Silent())
