"""A loss and a metric of another package: one function and one line each, and all else follows."""

import copy
from typing import Annotated

import numpy as np
import pytest
import torch
from pydantic import Field
from torch.nn import functional as F

from vcmodels.config import parse_task
from vcmodels.config.schema import loss_page, task_page, task_schema
from vcmodels.config.task import epoch_curves
from vcmodels.errors import TaskError
from vcmodels.evaluation.evaluate import score
from vcmodels.losses import LOSSES, Loss
from vcmodels.losses.masked import masked_inputs, masked_mean
from vcmodels.metrics import METRICS, Metric, VolumeMetric
from vcmodels.metrics.overlap import masked_sum, ratio
from vcmodels.samples.loader import Batch
from vcmodels.training.learner import Learner
from vcmodels.training.validation import validate

PATCH = (8, 8, 8)
TASK = {
    "tr_params": {
        "model_name": "tiny", "patch_size": list(PATCH), "amp": "off", "compile": False,
        "best_metric": "val/bias_depth",
    },
    "model_config": {"f_maps": [4, 8]},
    "dataset_config": {
        "volume_paths": [{"input": "a.zarr", "depth": "b.zarr"}],
        "targets": {"depth": {"kind": "regression", "loss": {"huber": {"delta": 0.25}, "l1": 0.5}}},
    },
}  # fmt: skip


def huber(logits, label, valid, *, weight=None, delta: Annotated[float, Field(gt=0)] = 1.0):
    """Mean Huber loss."""
    prediction, label = masked_inputs(logits, label, valid)
    losses = F.huber_loss(prediction, label, reduction="none", delta=delta)
    return masked_mean(losses, valid, weight)


def difference_sums(prediction, label, valid):
    count = masked_sum(valid.expand_as(label), valid)
    return {"difference": masked_sum(prediction - label, valid), "n": count}


def bias(sums):
    return abs(ratio(sums["difference"], sums["n"]))


def largest(prediction, label, valid, spacing):
    return {"largest_error": float(np.abs(prediction - label)[valid].max()), "side": spacing[0]}


@pytest.fixture
def newcomers(monkeypatch):
    monkeypatch.setitem(LOSSES, "huber", Loss(huber, compares="values"))
    monkeypatch.setitem(METRICS, "bias", Metric(difference_sums, bias, "min", compares="values"))
    senses = {"largest_error": "min", "side": "min"}
    monkeypatch.setitem(METRICS, "largest", VolumeMetric(largest, senses, compares="values"))


def batch():
    generator = torch.Generator().manual_seed(0)
    image, label = (torch.randn(2, 1, *PATCH, generator=generator) for _ in range(2))
    valid = torch.rand(2, 1, *PATCH, generator=generator) > 0.3
    return Batch(image, {"depth": label}, {"depth": valid}, (), {})


def test_a_task_that_names_them_trains_and_validates_with_them(newcomers):
    task, _ = parse_task(copy.deepcopy(TASK), "test")
    torch.manual_seed(0)
    network = task.model.build(1, {"depth": 1}, PATCH, (1.0, 1.0, 1.0))
    before = [p.detach().clone() for p in network.parameters()]
    targets, given = task.dataset_config.targets, batch()
    learner = Learner(network, targets, task.tr_params, torch.device("cpu"))
    logits = learner.run(learner.network, given)["depth"][0].detach().float()
    error = (logits - given.labels["depth"])[given.valid["depth"]].abs()
    wanted = torch.where(error < 0.25, error**2 / 2, 0.25 * (error - 0.125)) + 0.5 * error
    losses = [learner.train_step([given]).read().losses["depth"] for _ in range(2)]
    assert losses[0] == pytest.approx(float(wanted.mean()), rel=1e-3)
    assert all(torch.isfinite(p).all() for p in network.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))
    found = validate(learner, [given]).metrics["depth"]
    prediction = learner.run(learner.best_network.eval(), given)["depth"][0].detach()
    off = float((prediction - given.labels["depth"])[given.valid["depth"]].double().mean())
    assert {"mae", "rmse"} < found.keys()
    assert list(found)[-1] == "bias"
    assert found["bias"] == pytest.approx(abs(off), rel=1e-5)
    assert epoch_curves(learner.targets)["val/bias_depth"] == "min"


def test_a_metric_of_whole_volumes_is_one_of_its_kind(newcomers):
    task, _ = parse_task(copy.deepcopy(TASK), "test")
    rng = np.random.default_rng(0)
    prediction, label = (rng.normal(size=(1, 6, 7, 8)).astype(np.float32) for _ in range(2))
    valid = rng.random((1, 6, 7, 8)) > 0.3
    worst = float(np.abs(prediction - label)[valid].max())
    label[~valid] = np.nan
    target = task.dataset_config.targets["depth"]
    found = score(prediction, label, target, spacing=(4.0, 1.0, 1.0), whole=True)
    assert (found["largest_error"], found["side"]) == (worst, 4.0)


def test_the_pages_of_the_docs_and_the_messages_name_them(newcomers):
    losses = next(line for line in loss_page().splitlines() if line.startswith("| `huber`"))
    assert losses == "| `huber` | Mean Huber loss | `delta` 1 | regression, centres, distance |  |"
    assert "| bce, huber, l1, l2, smooth_l1 |" in task_page(task_schema())
    task = copy.deepcopy(TASK)
    task["dataset_config"]["targets"]["depth"]["loss"] = "hubert"
    with pytest.raises(TaskError, match="choose from bce, huber, l1, l2, smooth_l1"):
        parse_task(task, "test")
    task["dataset_config"]["targets"]["depth"]["loss"] = {"huber": {"delta": 0.0}}
    with pytest.raises(TaskError, match='loss "huber": delta: Input should be greater than 0'):
        parse_task(task, "test")


def test_without_them_the_task_is_refused():
    with pytest.raises(TaskError, match='no loss "huber" for this kind'):
        parse_task(copy.deepcopy(TASK), "test")
    assert "huber" not in loss_page()
