"""Trainings whose draws follow the last losses (`sampling.hard`)."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from vcmodels.checkpoint import load_checkpoint, save_checkpoint
from vcmodels.config import parse_task
from vcmodels.reporting import Silent
from vcmodels.samples.loader import Batch
from vcmodels.training import train
from vcmodels.training.feed import Feed
from vcmodels.training.learner import Learner
from vcmodels.training.loop import Loop
from vcmodels.training.step import mean_over_targets, sample_losses, supervised_loss, voxel_counts


@pytest.fixture
def hard_task(sheet_task) -> dict:
    sheet_task["dataset_config"]["sampling"] = {"foreground": 0, "hard": 0.8}
    sheet_task["tr_params"] |= {"max_epoch": 3, "gradient_accumulation": 2}
    return sheet_task


def run(task: dict, folder: Path, **settings) -> tuple[int, dict]:
    """Exit code and the last state of a run in this folder."""
    copy = json.loads(json.dumps(task))
    copy["tr_params"] |= {"ckpt_out_base": str(folder), **settings}
    code = train(parse_task(copy, "task.json")[0], reporter=Silent())
    return code, load_checkpoint(folder / "tiny_last.pth").state


def assert_same(a: dict, b: dict) -> None:
    for part in ("model", "ema", "hard"):
        for name, value in a[part].items():
            torch.testing.assert_close(value, b[part][name], rtol=0, atol=0, equal_nan=True)
    assert a["counters"] == b["counters"]


def drawn_rows(monkeypatch) -> list[int]:
    """The rows whose losses arrive, in order."""
    rows = []
    original = Feed.take_losses

    def take_losses(self, step, losses):
        assert len(losses) == 4
        assert all(loss == loss for loss in losses)
        rows.extend(self.hard.row(4 * step + i) for i in range(4))
        original(self, step, losses)

    monkeypatch.setattr(Feed, "take_losses", take_losses)
    return rows


@pytest.mark.parametrize(("steps", "workers"), [((1, 5), 0), ((2, 7), 2)], ids=str)
def test_a_stopped_run_draws_and_learns_as_if_it_had_not(
    hard_task, tmp_path, monkeypatch, steps, workers
):
    """Stopped after two of these steps, three of which are an epoch."""
    with monkeypatch.context() as context:
        wanted = drawn_rows(context)
        _, whole = run(hard_task, tmp_path / "whole")
    assert len(whole["hard"]["new_rows"]) == 0
    original = Learner.train_step
    found = drawn_rows(monkeypatch)
    for stop in steps:

        def train_step(self, batches, stop=stop, **kwargs):
            if self.step == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, batches, **kwargs)

        with monkeypatch.context() as context:
            context.setattr(Learner, "train_step", train_step)
            code, state = run(hard_task, tmp_path / "parts", num_dataloader_workers=workers)
        assert (code, state["step"]) == (128 + signal.SIGTERM, stop + 1)
    _, parts = run(hard_task, tmp_path / "parts", num_dataloader_workers=workers)
    assert_same(whole, parts)
    assert found == wanted
    assert len(set(wanted)) < len(wanted)


def test_a_run_that_is_killed_between_the_files_of_an_epoch_repeats_its_end(
    hard_task, tmp_path, monkeypatch
):
    _, whole = run(hard_task, tmp_path / "whole")
    original = Loop.save

    def save(self, path, *more):
        if path.name == "tiny_2.pth":
            raise KeyboardInterrupt
        original(self, path, *more)

    with monkeypatch.context() as context:
        context.setattr(Loop, "save", save)
        with pytest.raises(KeyboardInterrupt):
            run(hard_task, tmp_path / "parts")
    _, parts = run(hard_task, tmp_path / "parts")
    assert_same(whole, parts)


def test_hard_draws_are_not_those_of_the_weights_alone(hard_task, tmp_path, monkeypatch):
    rows = drawn_rows(monkeypatch)
    run(hard_task, tmp_path / "hard")
    hard = rows.copy()
    rows.clear()
    hard_task["dataset_config"]["sampling"]["hard"] = 1e-9
    run(hard_task, tmp_path / "even")
    assert hard[:12] == rows[:12]
    assert hard[12:] != rows[12:]


def test_checkpoints_from_before_continue(sheet_task, tmp_path):
    """Of a run without losses, whose task does not know the key."""
    sheet_task["dataset_config"]["sampling"] = {"foreground": 0}
    _, whole = run(sheet_task, tmp_path / "whole", max_epoch=2)
    assert "hard" not in whole
    state = load_checkpoint(tmp_path / "whole" / "tiny_1.pth").state
    del state["task"]["dataset_config"]["sampling"]["hard"]
    (tmp_path / "parts").mkdir()
    save_checkpoint(tmp_path / "parts" / "tiny_last.pth", state)
    _, parts = run(sheet_task, tmp_path / "parts", max_epoch=2)
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name])


def test_another_runs_losses_are_taken_over_with_its_patches_alone(hard_task, tmp_path):
    _, first = run(hard_task, tmp_path / "first", max_epoch=1)
    known = first["hard"]["losses"].isfinite()
    source = str(tmp_path / "first" / "tiny_last.pth")
    _, same = run(hard_task, tmp_path / "same", checkpoint_path=source, max_epoch=2)
    assert bool(same["hard"]["losses"][known].isfinite().all())
    others = {"checkpoint_path": source, "max_epoch": 2, "tr_val_split": 0.6}
    _, other = run(hard_task, tmp_path / "other", **others)
    assert int(other["hard"]["losses"].isfinite().sum()) <= 12


def test_the_loss_of_a_sample_is_that_of_a_batch_of_it_alone(sheet_task):
    """With deep supervision, pseudo-labels, and targets that a sample has no label of."""
    sheet_task["dataset_config"]["targets"]["sheet"]["weight"] = 3.0
    task, _ = parse_task(sheet_task, "task.json")
    targets = task.dataset_config.targets
    torch.manual_seed(0)
    channels, shape = {"sheet": 1, "normals": 3}, (4, 6, 8)
    outputs = {
        name: (torch.randn(4, c, *shape), torch.randn(4, c, 2, 3, 4))
        for name, c in channels.items()
    }
    labels = {
        "sheet": (torch.rand(4, 1, *shape) > 0.5).float(),
        "normals": torch.nn.functional.normalize(torch.randn(4, 3, *shape), dim=1),
    }
    valid = {name: torch.rand(4, 1, *shape) > 0.3 for name in channels}
    valid["sheet"][1] = False
    for mask in valid.values():
        mask[2] = False
    factor = torch.tensor([1.0, 1.0, 1.0, 0.25]).view(-1, 1, 1, 1, 1)
    weight = {"sheet": factor, "normals": None}
    batch = Batch(torch.zeros(4, 1, *shape), labels, valid, (), weight)
    losses = sample_losses(targets, outputs, batch)
    found = mean_over_targets(targets, losses, voxel_counts(batch)).tolist()

    def alone(name, i):
        logits = [level[[i]] for level in outputs[name]]
        part = None if weight[name] is None else factor[[i]]
        return float(
            supervised_loss(targets[name], logits, labels[name][[i]], valid[name][[i]], part)
        )

    assert found[0] == pytest.approx((3 * alone("sheet", 0) + alone("normals", 0)) / 4)
    assert found[1] == pytest.approx(alone("normals", 1))
    assert found[2] != found[2]
    assert found[3] == pytest.approx((3 * alone("sheet", 3) + alone("normals", 3)) / 4)
