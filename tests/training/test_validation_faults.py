"""A validation that fails, or takes long, costs no step and is not tried again alike."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from vcmodels.checkpoint import Checkpoint, load_checkpoint
from vcmodels.config import parse_task
from vcmodels.errors import CheckpointError, RunError
from vcmodels.reporting import Silent
from vcmodels.training import loop, train
from vcmodels.training.learner import Learner
from vcmodels.training.start import saved_count

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    MemoryError(),
    RuntimeError("CUDA error: out of memory"),
]


@pytest.fixture(scope="module")
def sizes():
    """Two epochs of two steps; four patches of each validation."""
    return {"max_steps_per_epoch": 2, "max_val_steps_per_epoch": 2, "batch_size": 2, "threads": 1}


def run(task: dict, folder: Path, **settings) -> tuple[int, list[str]]:
    copy, reporter = json.loads(json.dumps(task)), Silent()
    copy["tr_params"] |= {"ckpt_out_base": str(folder), **settings}
    return train(parse_task(copy, "task.json")[0], reporter=reporter), reporter.lines


def assert_same_run(folder: Path, other: Path) -> None:
    """Weights, counters, and every curve but those of the speed; of the best checkpoint, too."""
    for name in ("tiny_last.pth", "tiny_best.pth"):
        one, two = (load_checkpoint(place / name).state for place in (folder, other))
        assert one["counters"] == two["counters"]
        for key, value in one["ema"].items():
            assert torch.equal(value, two["ema"][key])
    logs = [(place / "log.jsonl").read_text().splitlines() for place in (folder, other)]
    curves = [
        [{k: v for k, v in json.loads(line).items() if "speed" not in k} for line in log]
        for log in logs
    ]
    assert curves[0] == curves[1]


@pytest.fixture
def whole(sheet_task, tmp_path, sizes):
    """A run that nothing happens to."""
    assert run(sheet_task, tmp_path / "whole", **sizes)[0] == 0
    return tmp_path / "whole"


def failing(monkeypatch, error, *, above=0, times=99):
    """Let validations with batches of more than so many patches fail so many times."""
    original, sizes = loop.validate, []

    def validate(learner, batches, is_stopped):
        given = list(batches)
        sizes.append(len(given[0].image))
        if sizes[-1] > above and len(sizes) <= times:
            raise error
        return original(learner, given, is_stopped)

    monkeypatch.setattr(loop, "validate", validate)
    return sizes


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_a_validation_that_does_not_fit_goes_on_with_smaller_batches(
    sheet_task, tmp_path, sizes, whole, monkeypatch, error
):
    """For good: also in the epochs to come, and in the next start. The figures are the same."""
    found = failing(monkeypatch, error, above=1)
    code, lines = run(sheet_task, tmp_path / "full", **sizes, max_epoch=1)
    assert code == 0
    assert "the validation ran out of memory with batches of 2 patches: goes on with 1" in lines
    _, lines = run(sheet_task, tmp_path / "full", **sizes)
    assert any(line.startswith("validation in batches of 1 patches") for line in lines)
    assert found == [2, 1, 1]
    assert_same_run(whole, tmp_path / "full")


@pytest.mark.parametrize(
    ("error", "match", "next_batch"),
    [
        (
            FULL[0],
            r"^validation: out of memory with one patch of \[16, 16, 16\] at a time; the steps are "
            r"saved; free memory, and the same command continues; a smaller patch_size needs",
            1,
        ),
        (RunError("scan at (z, y, x)", "a worker died", "run again"), "a worker died", 2),
    ],
    ids=["memory", "a fault"],
)
def test_a_validation_that_fails_costs_no_step(
    sheet_task, tmp_path, sizes, whole, monkeypatch, error, match, next_batch
):
    """The next start validates first, with smaller batches; the result is as if nothing happened."""
    folder = tmp_path / "failed"
    with monkeypatch.context() as context:
        failing(context, error)
        with pytest.raises(RunError, match=match):
            run(sheet_task, folder, **sizes)
    state = load_checkpoint(folder / "tiny_last.pth").state
    assert (state["step"], state["epoch"]) == (2, 0)
    assert not (folder / "log.jsonl").exists()
    found = failing(monkeypatch, error, times=0)
    code, lines = run(sheet_task, folder, **sizes)
    assert code == 0
    assert found == [next_batch, next_batch]
    told = [line for line in lines if line.startswith("validation in batches of 1 patches: one")]
    assert len(told) == (next_batch == 1)
    assert_same_run(whole, folder)


def test_a_validation_that_the_system_kills_is_made_with_smaller_batches(
    sheet_task, tmp_path, sizes, whole, monkeypatch
):
    """As it does where memory ends: no exception says so. What is saved is the same to the bit."""
    folder, original = tmp_path / "killed", loop.validate

    def validate(learner, batches, is_stopped):
        given = list(batches)
        if len(given[0].image) > 1:
            os._exit(9)
        return original(learner, given, is_stopped)

    monkeypatch.setattr(loop, "validate", validate)
    if not (child := os.fork()):
        run(sheet_task, folder, **sizes)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    state = load_checkpoint(folder / "tiny_last.pth").state
    assert (state["step"], state["epoch"]) == (2, 0)
    _, lines = run(sheet_task, folder, **sizes)
    assert any(line.startswith("validation in batches of 1 patches: one with l") for line in lines)
    assert_same_run(whole, folder)
    states = [load_checkpoint(place / "tiny_last.pth").state for place in (whole, folder)]
    assert states[0].keys() == states[1].keys()


def test_a_time_shorter_than_a_validation_gets_on(sheet_task, tmp_path, sizes, whole):
    """Each call takes a step, or the validation that is due, however short its time is."""
    folder, said = tmp_path / "short", []
    for _ in range(6):
        code, lines = run(sheet_task, folder, **sizes, max_minutes=1e-9)
        assert code == 0
        said += lines
    assert_same_run(whole, folder)
    notes = [line for line in said if line.startswith("note: max_minutes counts from the start")]
    assert len(notes) == 5
    assert run(sheet_task, folder, **sizes)[1][-1].endswith("already complete (2 epochs)")


def test_a_step_that_does_not_fit_continues_with_smaller_batches(
    sheet_task, tmp_path, sizes, whole, monkeypatch
):
    """The sizes that the message names are taken by the run that is there, and learn the same."""
    folder, original = tmp_path / "full", Learner.train_step

    def train_step(self, batches, **options):
        if self.step == 2 and len(batches[0].image) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, batches, **options)

    monkeypatch.setattr(Learner, "train_step", train_step)
    remedy = "batch_size 1 and gradient_accumulation 2 learn the same, and the run continues"
    with pytest.raises(RunError, match=rf"batch_size: out of memory with 2 patches .*; {remedy}"):
        run(sheet_task, folder, **sizes)
    smaller = {**sizes, "batch_size": 1, "gradient_accumulation": 2}
    assert run(sheet_task, folder, **smaller)[0] == 0
    one, two = (load_checkpoint(place / "tiny_last.pth").state for place in (whole, folder))
    for name, value in one["ema"].items():
        torch.testing.assert_close(value, two["ema"][name], rtol=1e-3, atol=1e-4)
    assert one["validation_patches"] == two["validation_patches"] == 4
    # And back: still the same patches.
    assert run(sheet_task, folder, **sizes, max_epoch=3)[0] == 0
    assert load_checkpoint(folder / "tiny_last.pth").state["validation_patches"] == 4


@pytest.mark.parametrize("value", [0, -1, "many", 1.5, None, [2]], ids=str)
def test_a_count_that_a_checkpoint_cannot_have_is_refused(tmp_path, value):
    key = "validation_patches"
    checkpoint = Checkpoint(tmp_path / "tiny_last.pth", "", {key: value})
    with pytest.raises(CheckpointError, match=rf"tiny_last\.pth: {key} is .*; use another"):
        saved_count(checkpoint, key, 3)
    assert saved_count(checkpoint, "other", 3) == 3


def test_a_validation_that_has_come_to_its_end_is_not_made_again(
    sheet_task, tmp_path, sizes, whole, monkeypatch
):
    """Though the signal came during its last patch."""
    original, seen = loop.validate, []

    def validate(learner, batches, is_stopped):
        found = original(learner, batches, is_stopped)
        seen.append(learner.step)
        if len(seen) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(loop, "validate", validate)
    assert run(sheet_task, tmp_path / "stopped", **sizes)[0] == 143
    assert load_checkpoint(tmp_path / "stopped" / "tiny_last.pth").state["epoch"] == 1
    assert run(sheet_task, tmp_path / "stopped", **sizes)[0] == 0
    assert seen == [2, 4]
    assert_same_run(whole, tmp_path / "stopped")


def test_other_batches_of_a_run_that_goes_on_are_those_of_its_validations(
    sheet_task, tmp_path, sizes, monkeypatch
):
    """Larger ones, too: a start before did not need smaller ones, and nothing is said of it."""
    found = failing(monkeypatch, None, times=0)
    folder, said = tmp_path / "run", []
    for epoch, (batch, accumulated) in enumerate(((1, 2), (2, 1), (1, 2), (2, 1)), 1):
        changes = {"batch_size": batch, "gradient_accumulation": accumulated, "max_epoch": epoch}
        code, lines = run(sheet_task, folder, **{**sizes, **changes})
        assert code == 0
        said += [line for line in lines if line.startswith("validation in batches")]
    assert found == [1, 2, 1, 2]
    assert said == []
