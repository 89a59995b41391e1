"""However the samples of a step are divided, it learns the same."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.config import parse_task
from vcmodels.losses.registry import LOSSES
from vcmodels.samples.loader import Batch
from vcmodels.targets import BinaryTarget, MulticlassTarget
from vcmodels.training.learner import Learner
from vcmodels.training.step import sample_losses, voxel_counts

PATCH = (8, 8, 8)
CLASS_LOSSES = sorted(
    name for name in LOSSES if name in {"ce", "topk_ce", "generalized_dice", "focal", "soft_dice"}
)


def random_batch(generator, size: int) -> Batch:
    """Samples with very different numbers of valid voxels; one has none of the sheet."""
    image = torch.randn(size, 1, *PATCH, generator=generator)
    normals = torch.nn.functional.normalize(
        torch.randn(size, 3, *PATCH, generator=generator), dim=1
    )
    shares = torch.rand(size, 1, 1, 1, 1, generator=generator) ** 2
    valid = {
        name: torch.rand(size, 1, *PATCH, generator=generator) < shares
        for name in ("sheet", "normals")
    }
    valid["sheet"][0] = False
    return Batch(image, {"sheet": (normals[:, :1] > 0).float(), "normals": normals}, valid, ())


def cut(batch: Batch, start: int, end: int) -> Batch:
    return Batch(
        batch.image[start:end],
        {name: label[start:end] for name, label in batch.labels.items()},
        {name: valid[start:end] for name, valid in batch.valid.items()},
        (),
    )


@pytest.fixture(scope="module")
def made():
    block = {
        "tr_params": {
            "model_name": "tiny", "patch_size": list(PATCH), "batch_size": 4, "amp": "off",
            "optimizer": "SGD", "initial_lr": 0.1, "warmup_steps": 0, "gradient_clip": 0.5,
            "loss_balance": "uncertainty",
        },
        "model_config": {"f_maps": [4, 8], "deep_supervision": True},
        "dataset_config": {
            "volume_paths": [{"input": "a.zarr", "sheet": "b.zarr", "normals": "c.zarr"}],
            "targets": {
                "sheet": {"kind": "binary", "loss": {"bce": 1, "soft_dice": 1}, "weight": 2.0},
                "normals": {"kind": "normals"},
            },
        },
    }  # fmt: skip
    task, _ = parse_task(block, "test")
    torch.manual_seed(0)
    network = task.model.build(1, task.heads, PATCH, (1.0, 1.0, 1.0))
    return task, network


def stepped(made, batches):
    task, network = made
    learner = Learner(
        copy.deepcopy(network), task.dataset_config.targets, task.tr_params, torch.device("cpu")
    )
    result = learner.train_step(batches).read()
    return result, learner


@settings(max_examples=8)
@given(st.integers(0, 99), st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_accumulation_equals_the_large_batch(made, seed, sizes):
    """Weights, learned balance, clipped norm and reported losses."""
    batch = random_batch(torch.Generator().manual_seed(seed), 1 + sum(sizes))
    ends = [1 + sum(sizes[:i]) for i in range(len(sizes) + 1)]
    parts = [cut(batch, start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    whole, learner = stepped(made, [batch])
    found, other = stepped(made, parts)
    assert found.losses == pytest.approx(whole.losses, rel=1e-5)
    assert found.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-4)
    for name, value in learner.trained.state_dict().items():
        torch.testing.assert_close(other.trained.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_samples_weigh_by_their_valid_voxels():
    """Means over voxels are then those over the whole step."""
    generator = torch.Generator().manual_seed(0)
    batch = random_batch(generator, 5)
    targets = {"sheet": BinaryTarget(loss="bce")}
    logits = torch.randn(5, 1, *PATCH, generator=generator)
    losses = sample_losses(targets, {"sheet": (logits,)}, batch)["sheet"]
    counts = voxel_counts(batch)["sheet"]
    label, valid = batch.labels["sheet"], batch.valid["sheet"]
    wanted = targets["sheet"].compute_loss(logits, label, valid)
    torch.testing.assert_close((losses * counts).sum() / counts.sum(), wanted)


@pytest.mark.parametrize("loss", CLASS_LOSSES)
def test_a_sample_without_valid_voxels_costs_nothing(loss):
    target = MulticlassTarget(channels=3, loss=loss)
    logits = torch.randn(2, 3, *PATCH, requires_grad=True)
    label = torch.zeros(2, 1, *PATCH)
    valid = torch.ones(2, 1, *PATCH, dtype=torch.bool)
    valid[1] = False
    batch = Batch(torch.zeros(2, 1, *PATCH), {"ids": label}, {"ids": valid}, ())
    losses = sample_losses({"ids": target}, {"ids": (logits,)}, batch)["ids"]
    assert losses[0] > 0
    assert losses[1] == 0
    losses.sum().backward()
    assert not logits.grad[1].any()


def test_a_step_that_is_not_finite_changes_no_weight(made):
    task, _ = made
    generator = torch.Generator().manual_seed(0)
    good, bad = random_batch(generator, 2), random_batch(generator, 2)
    bad.image[1, 0, 3, 3, 3] = torch.nan
    for optimizer in ("SGD", "AdamW", "Adam"):
        params = task.tr_params.model_copy(update={"optimizer": optimizer})
        made_so = (task.model_copy(update={"tr_params": params}), made[1])
        _, wanted = stepped(made_so, [good])
        _, learner = stepped(made_so, [bad])
        learner.step = 0
        for name, value in learner.trained.state_dict().items():
            start = made[1].state_dict().get(name.removeprefix("0."))
            assert torch.equal(value, start if start is not None else torch.zeros_like(value))
        assert learner.train_step([good]).read().is_applied
        for name, value in learner.trained.state_dict().items():
            assert torch.equal(value, wanted.trained.state_dict()[name]), (optimizer, name)


WEIGHTS = [0.1, 10.0, 1.0]


def weighted_batch(seed: int) -> Batch:
    """Four patches: two classes, one class, few valid voxels, none."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (4, 1, *PATCH), generator=generator).float()
    label[1] = 0
    valid = torch.rand(4, 1, *PATCH, generator=generator) < 0.7
    valid[2, :, 1:] = False
    valid[3] = False
    image = torch.randn(4, 1, *PATCH, generator=generator)
    return Batch(image, {"ids": label}, {"ids": valid}, ())


@pytest.fixture(scope="module")
def classes():
    block = {
        "tr_params": {
            "model_name": "tiny", "patch_size": list(PATCH), "batch_size": 4, "amp": "off",
            "gradient_clip": 1e6,
        },
        "model_config": {"f_maps": [4, 8], "deep_supervision": True},
        "dataset_config": {
            "volume_paths": [{"input": "a.zarr", "ids": "b.zarr"}],
            "targets": {"ids": {"kind": "multiclass", "channels": 3}},
        },
    }  # fmt: skip
    task, _ = parse_task(block, "test")
    torch.manual_seed(0)
    return task, task.model.build(1, task.heads, PATCH, (1.0, 1.0, 1.0))


def gradients(classes, target, batches):
    """The losses and the gradient of one step, before the optimiser."""
    task, network = classes
    device = torch.device("cpu")
    learner = Learner(copy.deepcopy(network), {"ids": target}, task.tr_params, device)
    losses = learner.train_step(batches).read().losses
    return losses["ids"], [p.grad for p in learner.network.parameters()]


@pytest.mark.parametrize("name", sorted(MulticlassTarget.allowed_losses()))
def test_every_loss_of_classes_may_be_accumulated(classes, name):
    """One patch at a time, with unequal valid voxels, one class alone and none, is as all at once."""
    options = {"ce": {"class_weights": WEIGHTS}, "focal": {"alpha": 0.9}}.get(name, 1.0)
    target = MulticlassTarget(channels=3, loss={name: options})
    batch = weighted_batch(1)
    whole, wanted = gradients(classes, target, [batch])
    found, parts = gradients(classes, target, [cut(batch, n, n + 1) for n in range(4)])
    assert found == pytest.approx(whole, rel=1e-5)
    for one, other in zip(parts, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_class_weights_are_factors_of_the_voxels_of_the_step():
    """A patch of one class keeps the weight of the class, where its own mean would cancel it."""
    generator = torch.Generator().manual_seed(0)
    batch = weighted_batch(0)
    label, valid = batch.labels["ids"], batch.valid["ids"]
    logits = torch.randn(4, 3, *PATCH, generator=generator, requires_grad=True)
    target = MulticlassTarget(
        channels=3, loss={"ce": {"class_weights": WEIGHTS}}, label_smoothing=0.1
    )
    losses = sample_losses({"ids": target}, {"ids": (logits,)}, batch)["ids"]
    counts = voxel_counts(batch)["ids"]
    found = (losses * counts).sum() / counts.sum()
    weights, rows = torch.tensor(WEIGHTS), logits.movedim(1, -1)[valid[:, 0]]
    each = torch.nn.functional.cross_entropy(
        rows, label[valid].long(), weight=weights, label_smoothing=0.1, reduction="none"
    )
    torch.testing.assert_close(found, each.mean())
    (gradient,) = torch.autograd.grad(found, logits, retain_graph=True)
    # The weighted mean over the whole step pulls in the same direction.
    mean = torch.nn.functional.cross_entropy(
        rows, label[valid].long(), weight=weights, label_smoothing=0.1
    )
    (wanted,) = torch.autograd.grad(mean, logits)
    scale = weights[label[valid].long()].mean()
    torch.testing.assert_close(gradient, wanted * scale, rtol=1e-4, atol=1e-8)
    # One that is all background, in a step of its own.
    alone = MulticlassTarget(channels=3, loss="ce", label_smoothing=0.0)
    light = MulticlassTarget(channels=3, loss={"ce": {"class_weights": WEIGHTS}})
    pair = [sample_losses({"ids": t}, {"ids": (logits,)}, batch)["ids"][1] for t in (alone, light)]
    torch.testing.assert_close(pair[1], pair[0] * WEIGHTS[0])
