"""Which epoch is the best, when a run ends early, and that a resumed one ends there, too."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import zarr

from vcmodels.checkpoint import load_checkpoint
from vcmodels.cli import main
from vcmodels.config import parse_task
from vcmodels.errors import TaskError
from vcmodels.phantom import write_phantom
from vcmodels.reporting import Silent
from vcmodels.training import loop as loop_module
from vcmodels.training import train
from vcmodels.training.progress import Counters, EarlyStop, Watch, best_watch

NAN = math.nan


def last_epoch(values, patience=2, min_delta=0.0, sense="min"):
    """The 1-based epoch after which a run with these values ends; None if it does not."""
    stop, counters = EarlyStop(Watch("c", sense), patience, min_delta), Counters()
    for epoch, value in enumerate(values, 1):
        stop.see(counters, {} if value is None else {"c": value})
        if stop.is_over(counters):
            return epoch
    return None


@pytest.mark.parametrize(
    ("values", "rule", "expected"),
    [
        ([3, 2, 1, 0], {}, None),
        ([3, 2, 2, 2, 1], {}, 4),
        ([3, 4, 2, 4, 1], {}, None),
        ([1, 2, 3, 3, 3], {"sense": "max"}, 5),
        ([-1, -2, -3], {"sense": "max"}, 3),
        ([3, 2.9, 2.8, 2.7], {"min_delta": 0.25}, 3),
        ([3, 2.9, 2.7, 2.6, 2.5], {"min_delta": 0.25}, 5),
        ([NAN, None], {}, 2),
        ([NAN, 5, NAN, 4, None, math.inf], {}, 6),
        ([0.5, NAN], {"patience": 1}, 2),
        ([1, math.inf, 1.5, 1.5, 1.5], {"sense": "max"}, 5),
    ],
    ids=str,
)
def test_a_run_ends_after_so_many_epochs_without_an_improvement(values, rule, expected):
    assert last_epoch(values, **rule) == expected


def test_another_rule_starts_to_count_anew():
    counters = Counters()
    for _ in range(3):
        EarlyStop(Watch("a", "min"), 5, 0.0).see(counters, {"a": 1.0, "b": 1.0})
    assert counters.stale_epochs == 2
    other = EarlyStop(Watch("b", "min"), 2, 0.0)
    assert not other.is_over(counters)
    other.see(counters, {"a": 1.0, "b": 1.0})
    assert (counters.stale_epochs, counters.least_cost) == (0, 1.0)


def test_the_sense_is_that_of_the_metric_unless_it_is_given(sheet_task):
    def rule(**given):
        sheet_task["tr_params"]["early_stopping"] = given
        task = parse_task(sheet_task, "task.json")[0]
        return EarlyStop.of(task.tr_params, task.dataset_config.targets)

    assert rule().watch == Watch("val/loss", "min")
    assert rule(metric="val/dice_sheet").watch.sense == "max"
    assert rule(metric="val/angle_deg_normals").watch.sense == "min"
    assert rule(metric="val/dice_sheet", mode="min").watch.sense == "min"
    sheet_task["tr_params"]["best_metric"] = "val/dice_sheet"
    task = parse_task(sheet_task, "task.json")[0]
    assert rule().watch == best_watch(task.tr_params, task.dataset_config.targets)


def run(task: dict) -> tuple[int, list[str]]:
    reporter = Silent()
    return train(parse_task(task, "task.json")[0], reporter=reporter), reporter.lines


def state(task: dict, which: str = "last") -> dict:
    return load_checkpoint(Path(task["tr_params"]["ckpt_out_base"]) / f"tiny_{which}.pth").state


@pytest.fixture
def curve(sheet_task, monkeypatch):
    """Lets `val/loss` of each epoch be what the test wants."""
    sheet_task["tr_params"] |= {"max_epoch": 9, "max_steps_per_epoch": 1, "keep_checkpoints": 9}
    sheet_task["tr_params"]["early_stopping"] = {"patience": 2}
    values: list[float] = []
    original = loop_module.epoch_scalars

    def scalars(losses, found):
        scalars.epoch += 1
        return original(losses, found) | {"val/loss": values[scalars.epoch - 1]}

    scalars.epoch = 0
    monkeypatch.setattr(loop_module, "epoch_scalars", scalars)
    scalars.values = values
    return scalars


def test_a_run_stops_early_keeps_the_best_and_is_complete(sheet_task, curve):
    curve.values += [5, 3, 4, 3.5, 1]
    folder = Path(sheet_task["tr_params"]["ckpt_out_base"])
    code, lines = run(sheet_task)
    reason = "stopped early after epoch 4: val/loss has not improved for 2 epochs"
    assert code == 0
    assert lines[-1] == f"{reason}; best checkpoint {folder}/tiny_best.pth"
    assert state(sheet_task)["epoch"] == 4
    assert state(sheet_task, "best")["epoch"] == 2
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != ".lock"}
    code, lines = run(sheet_task)
    assert (code, lines[-1]) == (0, f"{folder}: already complete ({reason})")
    assert before == {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != ".lock"}


def test_more_patience_continues_a_run_that_stopped_early(sheet_task, curve):
    curve.values += [5, 6, 6, 6, 4, 6, 6, 6, 6]
    run(sheet_task)
    assert state(sheet_task)["epoch"] == 3
    sheet_task["tr_params"]["early_stopping"]["patience"] = 3
    run(sheet_task)
    assert state(sheet_task)["epoch"] == 4
    sheet_task["tr_params"]["early_stopping"] = None
    assert run(sheet_task)[0] == 0
    assert state(sheet_task)["epoch"] == 9


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_resumed_run_stops_at_the_same_epoch(sheet_task, curve, epoch):
    curve.values += [5, 3, 4, 3.5, 1]
    sheet_task["tr_params"]["scheduler"] = "constant"
    first = json.loads(json.dumps(sheet_task))
    first["tr_params"]["max_epoch"] = epoch  # as if it had been stopped there
    run(first)
    run(sheet_task)
    found = state(sheet_task)
    assert (found["epoch"], found["counters"]["stale_epochs"]) == (4, 2)
    assert (found["counters"]["best"], state(sheet_task, "best")["epoch"]) == (3, 2)


def test_the_best_checkpoint_is_that_of_the_best_metric(sheet_task, curve):
    del sheet_task["tr_params"]["early_stopping"]
    sheet_task["tr_params"] |= {"best_metric": "val/loss", "max_epoch": 3}
    curve.values += [NAN, 5, NAN]
    run(sheet_task)
    assert state(sheet_task, "best")["epoch"] == 2


def test_without_a_value_the_newest_is_the_best(sheet_task, curve):
    sheet_task["tr_params"] |= {"max_epoch": 3, "early_stopping": {"patience": 5}}
    curve.values += [NAN, NAN, NAN]
    run(sheet_task)
    assert state(sheet_task, "best")["epoch"] == 3


def test_a_metric_that_rises_chooses_the_best(sheet_task, monkeypatch):
    sheet_task["tr_params"] |= {"max_epoch": 3, "max_steps_per_epoch": 1}
    sheet_task["tr_params"]["best_metric"] = "val/dice_sheet"
    dice = iter([0.25, 0.75, 0.5])
    original = loop_module.epoch_scalars
    monkeypatch.setattr(
        loop_module,
        "epoch_scalars",
        lambda *given: original(*given) | {"val/dice_sheet": next(dice)},
    )
    run(sheet_task)
    assert state(sheet_task, "best")["epoch"] == 2


def test_the_curves_of_a_run_are_those_that_may_be_named(sheet_task):
    from vcmodels.config.task import epoch_curves

    sheet_task["tr_params"] |= {"max_epoch": 1, "max_steps_per_epoch": 1}
    run(sheet_task)
    line = (Path(sheet_task["tr_params"]["ckpt_out_base"]) / "log.jsonl").read_text()
    targets = parse_task(sheet_task, "task.json")[0].dataset_config.targets
    logged = {key for key in json.loads(line) if key.startswith(("val/", "epoch/"))}
    neither = {"val/best_threshold_sheet"}  # more of it is no better, and no worse
    assert logged - neither <= epoch_curves(targets).keys()
    assert not neither & epoch_curves(targets).keys()
    assert logged >= {"val/loss", "val/loss_normals", "epoch/train_loss_sheet"}


def test_without_validation_its_curves_cannot_be_waited_for(sheet_task):
    sheet_task["tr_params"] |= {"tr_val_split": 1.0, "max_epoch": 2, "max_steps_per_epoch": 1}
    sheet_task["tr_params"]["early_stopping"] = {}
    with pytest.raises(TaskError, match=r'metric: is "val/loss", but there are no validation'):
        run(sheet_task)
    sheet_task["tr_params"]["early_stopping"] = {"metric": "epoch/train_loss_sheet"}
    assert run(sheet_task)[0] == 0
    assert state(sheet_task, "best")["epoch"] == 2


def test_a_signal_in_the_last_epoch_of_a_run_that_stops_early_leaves_it_complete(
    sheet_task, curve, monkeypatch
):
    curve.values += [3, 4, 4]
    original = loop_module.Loop._end_epoch

    def ended(self, pace):
        original(self, pace)
        if self.counters.epoch == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop_module.Loop, "_end_epoch", ended)
    code, lines = run(sheet_task)
    assert code == 128 + signal.SIGTERM
    assert lines[-1].startswith("stopped early after epoch 3")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([3, 4, 4], "c has not improved for 2 epochs"),
        ([NAN, None], "c has had no value for 2 epochs"),
        ([3, 4, NAN], "c has not improved for 2 epochs, 1 of them without a value"),
        ([NAN, 3, NAN, NAN], "c has had no value for 2 epochs"),
    ],
    ids=str,
)
def test_a_curve_without_a_value_is_not_said_to_have_not_improved(values, words):
    stop, counters = EarlyStop(Watch("c", "min"), 2, 0.0), Counters()
    for value in values:
        stop.see(counters, {} if value is None else {"c": value})
    assert stop.is_over(counters)
    assert stop.reason(counters) == f"stopped early after epoch 0: {words}"


def test_an_epoch_without_a_value_is_told(sheet_task, curve):
    sheet_task["tr_params"]["max_epoch"] = 4
    curve.values += [3, NAN, 2, NAN]
    _, lines = run(sheet_task)
    notes = [line for line in lines if line.startswith("note: val/loss")]
    assert notes == [
        f"note: val/loss has no value in epoch {epoch}, which counts as no improvement (1 of 2)"
        for epoch in (2, 4)
    ]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A second small scroll, with a label `background` of nothing else."""
    path = tmp_path_factory.mktemp("other") / "other.zarr"
    write_phantom(str(path), shape=(20, 40, 32), seed=1, chunks=(16, 16, 16))
    zarr.create_array(str(path / "background"), shape=(20, 40, 32), chunks=(16, 16, 16), dtype="u1")
    return path


@pytest.mark.parametrize(
    ("label", "keys", "match"),
    [
        (None, {"best_metric": "val/dice_sheet"}, r'best_metric: is "val/dice_sheet", but no vol'),
        (None, {"best_metric": "val/loss_sheet"}, r'best_metric: is "val/loss_sheet", but no vol'),
        (
            None,
            {"early_stopping": {"metric": "val/iou_sheet"}},
            r'early_stopping\.metric: is "val/iou_sheet", but .* has a label of sheet; give',
        ),
        ("background", {"best_metric": "val/dice_sheet"}, r"nothing of sheet .* or watch val/loss"),
        ("background", {"best_metric": "val/loss_sheet"}, None),
        (None, {"best_metric": "val/angle_deg_normals"}, None),
        ("sheet", {"best_metric": "val/dice_sheet"}, None),
    ],
)
def test_a_curve_that_cannot_come_is_refused_before_the_first_step(
    sheet_task, task_file, other, label, keys, match
):
    """Known from the labels of the validation patches: absent, or nothing but background."""
    (train_on,) = sheet_task["dataset_config"]["volume_paths"]
    train_on.pop("ref_label", None)
    validated = {"input": f"{other}/ct", "normals": f"{other}/normals", "split": "val"}
    if label is not None:
        validated["sheet"] = f"{other}/{label}"
    sheet_task["dataset_config"]["volume_paths"] = [{**train_on, "split": "train"}, validated]
    sheet_task["tr_params"] |= {"max_epoch": 1, "max_steps_per_epoch": 1, **keys}
    if match is None:
        assert run(sheet_task)[0] == 0
        return
    with pytest.raises(TaskError, match=match):
        run(sheet_task)
    assert not list(Path(sheet_task["tr_params"]["ckpt_out_base"]).glob("*.pth"))
    # `check` opens no label: it knows which volumes have one.
    assert main(["check", str(task_file(sheet_task))]) == (2 if label is None else 0)
    sheet_task["tr_params"] |= {"best_metric": "val/loss", "early_stopping": None}
    assert run(sheet_task)[0] == 0


def test_a_best_checkpoint_without_validation_is_told_to_be_the_newest(sheet_task):
    sheet_task["tr_params"] |= {"tr_val_split": 1.0, "max_epoch": 1, "max_steps_per_epoch": 1}
    _, lines = run(sheet_task)
    note = "note: val/loss can have no value: there are no validation patches; the newest "
    assert [line for line in lines if line.startswith(note)]
    sheet_task["tr_params"] |= {"best_metric": "val/dice_sheet", "ckpt_out_base": "elsewhere"}
    with pytest.raises(TaskError, match=r'best_metric: is "val/dice_sheet", but there are no val'):
        run(sheet_task)
