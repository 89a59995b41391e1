"""The loss against one's own average: by kinds and symmetries, where it counts, and over a run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vcmodels.augment import Flip
from vcmodels.cli import main
from vcmodels.config import parse_task
from vcmodels.config.train_params import ConsistencyParams
from vcmodels.errors import TaskError
from vcmodels.geometry.symmetries import CUBE_SYMMETRIES, IDENTITY, mirror
from vcmodels.reporting import Silent
from vcmodels.runs.run import Run
from vcmodels.samples.loader import Batch
from vcmodels.targets.binary import BinaryTarget
from vcmodels.targets.multiclass import MulticlassTarget
from vcmodels.targets.normals import NormalsTarget
from vcmodels.training import train
from vcmodels.training.mean_teacher import Consistency, views_of

SIDE = 9
CUBIC = (1.0, 1.0, 1.0)
TARGETS = {
    "sheet": BinaryTarget(channels=1),
    "organ": MulticlassTarget(channels=3, label_values=[0, 2, 7]),
    "normals": NormalsTarget(channels=3, vector_order="zyx"),
    "fibre": NormalsTarget(channels=3, orientation="axial", vector_order="zyx"),
}


class Equivariant(torch.nn.Module):
    """Masks and classes of the value alone, directions along the gradient: what turns with the image."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, image):
        value = image[:, :1] * self.scale
        slope = torch.cat(
            [(image.roll(-1, axis) - image.roll(1, axis))[:, :1] for axis in (2, 3, 4)], 1
        )
        classes = torch.cat([value, value.square(), -value], 1)
        return {"sheet": (value,), "organ": (classes,), "normals": (slope,), "fibre": (slope,)}


class Skewed(Equivariant):
    """Its directions lie along z, whichever way the image is turned."""

    def forward(self, image):
        along_z = torch.zeros_like(image[:, :1].expand(-1, 3, -1, -1, -1)) * self.scale
        along_z = along_z + torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1, 1)
        return super().forward(image) | {"normals": (along_z,), "fibre": (along_z,)}


def batch_of(valid: float = 0.0, count: int = 2, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 1, SIDE, SIDE, SIDE, generator=generator)
    known = torch.rand(count, 1, SIDE, SIDE, SIDE, generator=generator) < valid
    return Batch(image, {}, dict.fromkeys(TARGETS, known), ())


def lesson(network, views=(IDENTITY,), **settings) -> Consistency:
    rule = ConsistencyParams(**{"confidence": None, **settings})
    plain = lambda module, batch: module(batch.image)  # noqa: E731
    return Consistency(network.eval(), plain, TARGETS, views, CUBIC, rule, 400)


@pytest.mark.parametrize("view", CUBE_SYMMETRIES[1:], ids=str)
def test_what_turns_with_the_image_has_nothing_to_learn(view) -> None:
    network, batch = Equivariant(), batch_of()
    found = lesson(network, (view,)).losses(batch, network(batch.image))
    for loss in found.values():
        assert loss.abs().max() < 1e-3  # the floor of the cosine, where the slope is small


def test_what_does_not_turn_has() -> None:
    """An axis along z is the same mirrored, and another one in a turn; a direction minds both."""
    network, batch = Skewed(), batch_of()
    turn = next(s for s in CUBE_SYMMETRIES if s.permutation[0] != 0)
    mirrored = lesson(network, (mirror(0),)).losses(batch, network(batch.image))
    turned = lesson(network, (turn,)).losses(batch, network(batch.image))
    assert mirrored["normals"].min() > 1.9
    assert mirrored["fibre"].max() < 1e-2
    assert turned["fibre"].min() > 0.9


def test_only_voxels_without_a_label_count_and_only_where_the_average_is_sure() -> None:
    teacher, student, batch = Equivariant(), Equivariant(), batch_of(valid=0.4)
    with torch.no_grad():
        student.scale.mul_(-1)
    told = lesson(teacher, confidence=0.9)
    found = told.losses(batch, student(batch.image))["sheet"].detach().double().numpy()
    p = torch.sigmoid(teacher(batch.image)["sheet"][0]).detach().double().numpy()
    q = torch.sigmoid(student(batch.image)["sheet"][0]).detach().double().numpy()
    free = ~batch.valid["sheet"].numpy() & (np.maximum(p, 1 - p) >= 0.9)
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    np.testing.assert_allclose(found, (divergence * free).mean((1, 2, 3, 4)), rtol=1e-4)
    full = batch_of(valid=1.1)
    assert all(not loss.any() for loss in told.losses(full, student(full.image)).values())


def test_the_student_gets_the_gradient_and_the_average_none() -> None:
    teacher, student, batch = Equivariant(), Equivariant(), batch_of()
    with torch.no_grad():
        student.scale.add_(1)
    losses = lesson(teacher, (mirror(1),)).losses(batch, student(batch.image))
    sum(loss.sum() for loss in losses.values()).backward()
    assert teacher.scale.grad is None
    assert student.scale.grad is not None
    assert student.scale.grad != 0


def test_the_weight_rises_to_the_whole_by_the_end_of_the_ramp() -> None:
    told = lesson(Equivariant(), weight=2.0, ramp_steps=10)
    weights = [told.weight(step) for step in range(12)]
    assert weights[0] == pytest.approx(2 * np.exp(-5))
    assert weights == sorted(weights)
    assert weights[10:] == [2.0, 2.0]
    assert lesson(Equivariant(), ramp_steps=0).weight(0) == 1.0
    assert lesson(Equivariant()).weight(100) == 1.0  # a quarter of 400


def test_views_are_the_tasks_own_and_keep_the_patch() -> None:
    flips = [Flip(axes=("z", "x"))]
    assert {str(v) for v in views_of(flips, (8, 12, 16), CUBIC)} == {
        "-z+y+x", "+z+y-x", "-z+y-x",
    }  # fmt: skip
    assert views_of([], (8, 8, 8), CUBIC) == (IDENTITY,)


@pytest.fixture
def sparse(sheet_task, phantom):
    """A task with a part of its scan that has no label, which a network learns to be steady on."""
    (volume,) = sheet_task["dataset_config"]["volume_paths"]
    volume |= {"bbox": [[0, 24], [0, 60], [0, 56]], "name": "known"}
    sheet_task["dataset_config"]["volume_paths"].append(
        {"input": str(phantom / "ct"), "bbox": [[0, 24], [60, 96], [0, 56]], "name": "plain"}
    )
    sheet_task["tr_params"] |= {
        "consistency": {"ramp_steps": 2, "confidence": None},
        "device": "cpu",
    }
    return sheet_task


def test_a_run_that_is_stopped_goes_on_to_the_same_weights(sparse, tmp_path) -> None:
    def run(folder: str, **settings):
        sparse["tr_params"] |= {"ckpt_out_base": str(tmp_path / folder), **settings}
        task, _ = parse_task(sparse, "task")
        assert train(task, reporter=Silent()) == 0
        return Run(task.run_dir, "tiny")

    whole = run("whole", max_epoch=2)
    run("parts", max_epoch=1)
    parts = run("parts", max_epoch=2)
    first, second = (torch.load(r.last, weights_only=True)["model"] for r in (whole, parts))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    weak = sparse["tr_params"]["consistency"] | {"weight": 1e-6}
    other = torch.load(run("weak", consistency=weak).last, weights_only=True)["model"]
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_what_has_no_average_or_no_image_is_refused(sparse) -> None:
    sparse["tr_params"]["ema_decay"] = None
    with pytest.raises(TaskError, match="ema_decay"):
        parse_task(sparse, "task")
    sparse["tr_params"] |= {"ema_decay": 0.99, "mixup": {"manifold": True}}
    with pytest.raises(TaskError, match="manifold"):
        parse_task(sparse, "task")


def test_a_volume_without_labels_is_refused_where_nobody_learns_from_it(
    sparse, task_file, capsys
) -> None:
    del sparse["tr_params"]["consistency"]
    assert main(["train", str(task_file(sparse))]) == 2
    assert "consistency" in capsys.readouterr().err
    assert not Path(
        json.loads(task_file(sparse).read_text())["tr_params"]["ckpt_out_base"]
    ).exists()
