"""Learned loss weights: their optimum, and runs that have them."""

import json
import math
import os
import signal
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from vcmodels.checkpoint import load_checkpoint, save_checkpoint
from vcmodels.config import parse_task
from vcmodels.errors import TaskError
from vcmodels.reporting import Silent
from vcmodels.training import train
from vcmodels.training.learner import Learner
from vcmodels.training.optimiser import LossBalance, build_optimizer


def scalars(**values):
    return {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}


def counts(*known):
    """Voxels of each target: some for those that are named."""
    return defaultdict(lambda: torch.tensor(0.0), {name: torch.tensor(9.0) for name in known})


def test_fixed_weights_are_a_weighted_sum_with_nothing_to_learn():
    balance = LossBalance({"b": 2.0, "a": 0.5}, "fixed")
    assert list(balance.parameters()) == []
    assert balance.state_dict() == {}
    assert balance(scalars(b=3.0, a=4.0), counts("a", "b")).item() == 8
    assert balance.factors().tolist() == [2.0, 0.5]


def test_learning_starts_at_the_fixed_weights():
    weights, losses = {"b": 2.0, "a": 0.5}, scalars(b=3.0, a=4.0)
    total = LossBalance(weights, "uncertainty")(losses, counts("a", "b"))
    assert total.item() == 8
    total.backward()
    assert {name: loss.grad.item() for name, loss in losses.items()} == weights


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD"])
def test_the_learned_factor_of_a_fixed_loss_is_its_inverse(name):
    """The closed form: exp(-s) L + s is least at s = log L, where the factor is 1 / L."""
    balance = LossBalance({"sheet": 2.0, "normals": 1.0, "classes": 0.3}, "uncertainty")
    losses = {
        name: torch.tensor(v) for name, v in {"sheet": 0.02, "normals": 1.5, "classes": 7.0}.items()
    }
    rate = 0.02 if name != "SGD" else 0.002
    optimizer = build_optimizer(name, balance, rate, 0.1)  # a decay would pull towards s = 0
    for _ in range(1500):
        optimizer.zero_grad()
        balance(losses, counts(*losses)).backward()
        optimizer.step()
        if balance.log_variance.grad.abs().max() < 1e-3:  # at rest
            break
    wanted = {"sheet": 2 / 0.02, "normals": 1 / 1.5, "classes": 0.3 / 7}
    factors = dict(zip(balance.weights, balance.factors().tolist(), strict=True))
    assert factors == pytest.approx(wanted, rel=1e-2)
    least = sum(balance.weights[n] * (1 + math.log(loss)) for n, loss in losses.items())
    assert balance(losses, counts(*losses)).item() == pytest.approx(least, rel=1e-3)


def test_a_target_without_valid_voxels_is_left_out():
    balance = LossBalance({"a": 1.0, "b": 1.0}, "uncertainty")
    losses = scalars(a=2.0, b=0.0)
    balance(losses, counts("a")).backward()
    assert balance.log_variance.grad.tolist() == [-1.0, 0.0]
    assert losses["b"].grad is not None  # the graph stays whole where nothing is valid at all
    balance = LossBalance({"a": 1.0, "b": 1.0}, "uncertainty")
    balance(scalars(a=0.0, b=0.0), counts()).backward()
    assert not balance.log_variance.grad.any()


def test_the_order_of_the_targets_does_not_matter():
    first = LossBalance({"a": 1.0, "b": 1.0}, "uncertainty")
    nn.init.normal_(first.log_variance)
    second = LossBalance({"b": 1.0, "a": 1.0}, "uncertainty")
    second.load_state_dict(first.state_dict())
    assert second.factors().tolist() == first.factors().tolist()[::-1]


def run(task: dict) -> tuple[int, list[str]]:
    reporter = Silent()
    return train(parse_task(task, "task.json")[0], reporter=reporter), reporter.lines


def with_folder(task: dict, folder: Path, **settings) -> dict:
    copy = json.loads(json.dumps(task))
    copy["tr_params"] |= {"ckpt_out_base": str(folder), **settings}
    return copy


def last(task: dict) -> dict:
    return load_checkpoint(Path(task["tr_params"]["ckpt_out_base"]) / "tiny_last.pth").state


def test_a_stopped_run_continues_bit_for_bit(sheet_task, tmp_path, monkeypatch):
    settings = {"loss_balance": "uncertainty", "optimizer": "SGD", "initial_lr": 1e-2}
    whole = with_folder(sheet_task, tmp_path / "whole", **settings)
    assert run(whole)[0] == 0
    parts = with_folder(sheet_task, tmp_path / "parts", **settings)
    original = Learner.train_step

    def stop(self, batches, **kwargs):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batches, **kwargs)

    with monkeypatch.context() as context:
        context.setattr(Learner, "train_step", stop)
        assert run(parts)[0] == 128 + signal.SIGTERM
    assert run(parts)[0] == 0
    a, b = last(whole), last(parts)
    assert torch.equal(a["balance"]["log_variance"], b["balance"]["log_variance"])
    assert (a["balance"]["log_variance"] != 0).all()
    for name, value in a["model"].items():
        assert torch.equal(value, b["model"][name])
    for key, slot in a["optimizer"]["state"].items():
        for name, value in slot.items():
            other = b["optimizer"]["state"][key][name]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def curves(task: dict) -> EventAccumulator:
    events = EventAccumulator(
        str(Path(task["tr_params"]["ckpt_out_base"]) / "tensorboard" / "tiny")
    )
    events.Reload()
    return events


def test_learned_factors_are_curves_and_the_validation_loss_is_the_fixed_sum(sheet_task, tmp_path):
    sheet_task["dataset_config"]["targets"]["sheet"]["weight"] = 3.0
    task = with_folder(sheet_task, tmp_path / "run", loss_balance="uncertainty", max_epoch=1)
    run(task)
    events = curves(task)
    final = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
    # In the order of the names.
    normals, sheet = (-last(task)["balance"]["log_variance"]).exp().tolist()
    assert final["train/balance_normals"] == pytest.approx(normals)
    assert final["train/balance_sheet"] == pytest.approx(3 * sheet)
    assert final["train/balance_sheet"] != 3
    for part in ("train", "val"):
        total = 3 * final[f"{part}/loss_sheet"] + final[f"{part}/loss_normals"]
        assert final[f"{part}/loss"] == pytest.approx(total)
    fixed = with_folder(sheet_task, tmp_path / "fixed", max_epoch=1)
    run(fixed)
    assert not [tag for tag in curves(fixed).Tags()["scalars"] if "balance" in tag]


def test_a_checkpoint_from_before_there_was_a_balance_is_continued(sheet_task, tmp_path):
    sheet_task["tr_params"]["scheduler"] = "constant"  # the others depend on max_epoch
    whole = with_folder(sheet_task, tmp_path / "whole")
    run(whole)
    parts = with_folder(sheet_task, tmp_path / "parts", max_epoch=1)
    run(parts)
    path = tmp_path / "parts" / "tiny_last.pth"
    state = load_checkpoint(path).state
    del state["balance"], state["task"]["tr_params"]["loss_balance"]
    save_checkpoint(path, state)
    parts["tr_params"]["max_epoch"] = 2
    other = with_folder(
        sheet_task, tmp_path / "other", checkpoint_path=str(path), loss_balance="uncertainty"
    )
    with pytest.raises(TaskError, match=r"loss_balance: is uncertainty, .* trained with fixed"):
        run(other)
    changed = with_folder(parts, tmp_path / "parts", loss_balance="uncertainty")
    with pytest.raises(TaskError, match='loss_balance was "fixed", is "uncertainty"'):
        run(changed)
    assert run(parts)[0] == 0
    for name, value in last(whole)["model"].items():
        assert torch.equal(value, last(parts)["model"][name])
