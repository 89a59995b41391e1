from dataclasses import replace

import pytest
import torch

from vcmodels.config import parse_task
from vcmodels.samples.loader import Batch
from vcmodels.training.learner import Learner
from vcmodels.training.step import sample_losses
from vcmodels.training.validation import validate

PATCH = (8, 8, 8)


@pytest.fixture
def learner(sheet_task):
    sheet_task["tr_params"]["patch_size"] = list(PATCH)
    sheet_task["dataset_config"]["targets"]["sheet"]["loss"] = "bce"
    task, _ = parse_task(sheet_task, "test")
    torch.manual_seed(0)
    network = task.model.build(1, {"sheet": 1, "normals": 3}, PATCH, (1.0, 1.0, 1.0))
    return Learner(network, task.dataset_config.targets, task.tr_params, torch.device("cpu"))


def batch(weight=None):
    generator = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(2, 3, *PATCH, generator=generator), dim=1)
    return Batch(
        torch.randn(2, 1, *PATCH, generator=generator),
        {"sheet": (normals[:, :1] > 0).float(), "normals": normals},
        {name: torch.ones(2, 1, *PATCH, dtype=torch.bool) for name in ("sheet", "normals")},
        (),
        {} if weight is None else {"sheet": torch.tensor(weight).view(2, 1, 1, 1, 1)},
    )


def step_losses(learner, outputs, batch):
    """Per target the mean over the samples, which all have the same number of voxels."""
    found = sample_losses(learner.targets, outputs, batch)
    return {name: losses.mean() for name, losses in found.items()}


def test_a_pseudo_label_pulls_by_its_weight(learner):
    outputs = learner.run(learner.network, batch())
    whole = step_losses(learner, outputs, batch())
    weighted = step_losses(learner, outputs, batch([0.25, 0.25]))
    assert weighted["sheet"].item() == pytest.approx(whole["sheet"].item() / 4, rel=1e-6)
    assert weighted["normals"].item() == whole["normals"].item()
    (gradient,) = torch.autograd.grad(weighted["sheet"], outputs["sheet"][0], retain_graph=True)
    (wanted,) = torch.autograd.grad(whole["sheet"], outputs["sheet"][0], retain_graph=True)
    torch.testing.assert_close(gradient, wanted / 4)
    mixed = step_losses(learner, outputs, batch([1.0, 0.0]))
    (gradient,) = torch.autograd.grad(mixed["sheet"], outputs["sheet"][0])
    assert torch.equal(gradient[0], wanted[0])
    assert not gradient[1].any()


def test_what_validation_does_not_count_changes_none_of_its_figures(learner):
    """The loader gives pseudo-labels no valid voxel there."""
    one, other = batch([1.0, 0.0]), batch([1.0, 0.0])
    for made, label in ((one, 0.0), (other, 1.0)):
        made.labels["sheet"][1] = label
        made.valid["sheet"][1] = False
    found, again = validate(learner, [one]), validate(learner, [other])
    assert found.losses == again.losses
    assert found.metrics == again.metrics
    alone = replace(one, **{
        key: {n: t[:1] for n, t in getattr(one, key).items()} for key in ("labels", "valid", "weight")
    }, image=one.image[:1])  # fmt: skip
    assert validate(learner, [alone]).metrics["sheet"] == found.metrics["sheet"]
