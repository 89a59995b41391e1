import json

import numpy as np
import pytest

from vcmodels.cli import main
from vcmodels.config import load_task, parse_task
from vcmodels.errors import RefusedError
from vcmodels.runs.run import TRAILER, add_start
from vcmodels.volumes.places import write_json
from vcmodels.workflows.fold_report import report_folds

EPOCHS = 4


@pytest.fixture
def task(sheet_task, task_file):
    """Of four folds, with a target whose name ends with that of another one."""
    sheet_task["tr_params"] |= {"folds": {"count": 4}, "max_epoch": EPOCHS}
    targets = sheet_task["dataset_config"]["targets"]
    targets["old_sheet"] = dict(targets["sheet"])
    volume = sheet_task["dataset_config"]["volume_paths"][0]
    volume["old_sheet"] = volume["sheet"]
    return task_file(sheet_task)


@pytest.fixture
def write_fold(task):
    """Makes the folder of a fold with curves (epochs, 2): its Dice of the two sheets."""

    def write(index, dice):
        fold = load_task(task).task.fold(index)
        lines = [
            {"epoch": float(e), "step": e, "val/dice_sheet": a, "val/dice_old_sheet": b,
             "val/loss": 1 - a, "epoch/train_loss_sheet": 9.0}
            for e, (a, b) in enumerate(dice, start=1)
        ]  # fmt: skip
        write_json(fold.run_dir / "task.json", fold.to_json())
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (fold.run_dir / "log.jsonl").write_text(text)
        for name in ("best", "last"):  # as sealed ones, which are not to be loaded
            (fold.run_dir / f"tiny_{name}.pth").write_bytes(TRAILER + bytes(32))
        add_start(fold.run_dir, {"best": {"curve": "val/dice_old_sheet", "sense": "max"}})

    return write


def rows_of(report):
    return {(row.target, row.metric): row for row in report.rows}


def test_mean_and_sd_are_over_folds_at_their_best_and_last_epoch(task, write_fold, tmp_path):
    rng = np.random.default_rng(0)
    dice = rng.random((4, EPOCHS, 2))
    best = [2, 4, 1, 3]
    for index in range(4):
        dice[index, best[index] - 1, 1] = 2  # by another curve than the loss
        write_fold(index, dice[index].tolist())
    report = report_folds(tmp_path / "run")
    assert report.notes() == []
    assert [fold.best_epoch for fold in report.folds] == best
    rows = rows_of(report)
    assert list(rows) == [("", "loss"), ("sheet", "dice"), ("old_sheet", "dice")]
    at_best = dice[np.arange(4), np.array(best) - 1]
    for column, target in enumerate(("sheet", "old_sheet")):
        row = rows[target, "dice"]
        for figures, values in ((row.best, at_best), (row.last, dice[:, -1])):
            assert figures.values == tuple(values[:, column])
            assert figures.mean == pytest.approx(values[:, column].mean())
            assert figures.sd == pytest.approx(values[:, column].std(ddof=1))


def test_folds_that_are_missing_or_unfinished_are_named(task, write_fold, tmp_path, capsys):
    write_fold(0, [(0.5, 0.5)] * EPOCHS)
    write_fold(2, [(0.7, float("nan"))] * 2)
    (tmp_path / "run" / "fold_2" / "tiny_best.pth").write_bytes(b"cut")
    report = report_folds(tmp_path / "run")
    notes = report.notes()
    assert notes[0] == "fold 1: not begun"
    assert notes[1].startswith("fold 2: damaged, epoch 2 of 4: tiny_best.pth")
    assert notes[2] == "fold 3: not begun"
    dice = rows_of(report)["sheet", "dice"]
    assert dice.best.values == (0.5, None, 0.7, None)  # the log is whole
    assert dice.last.values == (0.5, None, 0.7, None)
    assert dice.last.sd == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert rows_of(report)["old_sheet", "dice"].last.values == (0.5, None, None, None)

    assert main(["cv", "report", str(task)]) == 0
    out = capsys.readouterr().out
    assert "fold 1: not begun\n" in out
    assert main(["cv", "report", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [fold["state"] for fold in found["folds"]] == [
        "complete", "not begun", "damaged", "not begun",
    ]  # fmt: skip
    assert found["targets"]["sheet"]["dice"]["last"] == {
        "folds": [0.5, None, 0.7, None], "count": 2,
        "mean": pytest.approx(0.6), "sd": pytest.approx(np.std([0.5, 0.7], ddof=1)),
    }  # fmt: skip


def test_folds_of_the_command_line_are_found_by_a_task_without_them(
    sheet_task, task, write_fold, tmp_path
):
    write_fold(1, [(0.5, 0.5)] * EPOCHS)
    del sheet_task["tr_params"]["folds"]
    plain = parse_task(sheet_task, "task.json")[0]
    assert len(report_folds(plain.run_dir, plain.tr_params.folds).folds) == 4


def test_where_no_fold_was_begun_there_is_nothing_to_report(tmp_path):
    with pytest.raises(RefusedError, match="no fold of a cross-validation was begun there"):
        report_folds(tmp_path)
