import json

import numpy as np
import pytest

from vcmodels.config import parse_task
from vcmodels.errors import TaskError
from vcmodels.reporting import Silent
from vcmodels.training import train
from vcmodels.volumes import open_volume


@pytest.fixture
def folds_task(sheet_task):
    sheet_task["tr_params"] |= {
        "folds": {"count": 2, "by": "slab"}, "max_epoch": 1, "max_steps_per_epoch": 1,
        "split_guard": 0, "patch_size": [8, 16, 16],
    }  # fmt: skip
    return sheet_task


def train_fold(task, index, **options):
    reporter = Silent()
    parsed, _ = parse_task(task, "task.json")
    code = train(parsed.fold(index), reporter=reporter, **options)
    return code, reporter.lines


def test_a_fold_trained_with_other_keys_is_refused(folds_task, tmp_path):
    assert train_fold(folds_task, 1)[0] == 0
    before = sorted(tmp_path.rglob("*"))
    folds_task["tr_params"]["initial_lr"] = 0.5
    with pytest.raises(TaskError, match=r"tr_params.initial_lr: differs from the fold in .*fold_1"):
        train_fold(folds_task, 0)
    assert sorted(tmp_path.rglob("*")) == before
    folds_task["tr_params"] |= {"initial_lr": 1e-3, "max_epoch": 2, "folds": {"count": 3}}
    with pytest.raises(TaskError, match=r"tr_params.folds.(by|count): differs from the fold"):
        train_fold(folds_task, 0)


def test_a_fold_divided_otherwise_is_refused(folds_task, tmp_path, phantom):
    """Between two folds somebody labels more: the cuts of the slabs would move."""
    assert train_fold(folds_task, 0)[0] == 0
    path = tmp_path / "run" / "fold_0" / "splits.json"
    saved = json.loads(path.read_text())
    val = next(n for n, box in enumerate(saved["val_regions"]) if box)
    axis = int(np.argmax([b - a < n for (a, b), n in zip(
        saved["val_regions"][val], open_volume(str(phantom / "ct"), key="x").extent, strict=True)]))  # fmt: skip
    saved["val_regions"][val][axis][1] += 8
    path.write_text(json.dumps(saved))
    with pytest.raises(TaskError, match="fold 0 was begun with another division of the volumes"):
        train_fold(folds_task, 1)
    assert not (tmp_path / "run" / "fold_1").exists()


def test_a_fold_takes_the_sizes_that_another_one_planned(folds_task):
    settings = folds_task["tr_params"]
    del settings["patch_size"], settings["batch_size"]
    settings["memory_gb"] = 0.02
    code, lines = train_fold(folds_task, 0)
    assert code == 0
    planned = next(line for line in lines if line.startswith("patch_size"))
    assert "planned" in planned
    settings["memory_gb"] = 0.1  # another host: what it would plan by itself is larger
    code, lines = train_fold(folds_task, 1)
    assert code == 0
    assert f"{planned.split(': ')[0]}: as the run has them" in lines


def test_what_lies_in_a_folder_of_another_name_is_no_fold_of_this_one(folds_task, tmp_path):
    assert train_fold(folds_task, 0)[0] == 0
    settings = folds_task["tr_params"]
    settings |= {"ckpt_out_base": str(tmp_path / "run" / "mine"), "initial_lr": 0.01}
    settings["folds"] = {"count": 2, "index": 1, "by": "slab"}
    assert train(parse_task(folds_task, "task.json")[0], reporter=Silent()) == 0
