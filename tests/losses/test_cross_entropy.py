import math

import pytest
import torch
from monai.losses import FocalLoss
from torch.nn import functional as F

from vcmodels.losses.cross_entropy import bce, ce, focal, topk_ce

SHAPE = (6, 7, 8)


def place(*values):
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, 1, -1)


def test_bce_by_hand():
    # sigmoid(ln 3) = 3/4
    logits, label = place(math.log(3), math.log(3), 50.0), place(1, 0, 0)
    loss = bce(logits, label, torch.tensor([True, True, False]).view(1, 1, 1, 1, 3))
    assert loss.item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2, rel=1e-6)


def test_bce_smoothing_pulls_hard_labels_towards_one_half():
    loss = bce(place(math.log(3)), place(1), place(1).bool(), label_smoothing=0.2)
    wanted = -(0.9 * math.log(3 / 4) + 0.1 * math.log(1 / 4))
    assert loss.item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_bce_is_ce_of_two_classes(smoothing):
    torch.manual_seed(0)
    logits, label = torch.randn(2, 1, *SHAPE), torch.randint(0, 2, (2, 1, *SHAPE)).float()
    valid = torch.rand(2, 1, *SHAPE) > 0.3
    pair = torch.cat([torch.zeros_like(logits), logits], 1)
    torch.testing.assert_close(
        bce(logits, label, valid, label_smoothing=smoothing),
        ce(pair, label, valid, label_smoothing=smoothing),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ce_is_that_of_the_valid_subset(smoothing):
    torch.manual_seed(0)
    logits, label = torch.randn(2, 5, *SHAPE), torch.randint(0, 5, (2, 1, *SHAPE))
    valid = torch.rand(2, 1, *SHAPE) > 0.5
    rows = logits.movedim(1, -1)[valid[:, 0]]
    wanted = F.cross_entropy(rows, label[valid], label_smoothing=smoothing)
    found = ce(logits, label.float(), valid, label_smoothing=smoothing)
    torch.testing.assert_close(found, wanted)


def test_pos_weight_multiplies_the_foreground():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 1, *SHAPE), torch.rand(2, 1, *SHAPE)
    valid = torch.rand(2, 1, *SHAPE) > 0.5
    wanted = F.binary_cross_entropy_with_logits(
        logits[valid], label[valid], pos_weight=torch.tensor(3.0)
    )
    torch.testing.assert_close(bce(logits, label, valid, pos_weight=3.0), wanted)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_are_those_of_torch_on_the_valid_subset(smoothing):
    torch.manual_seed(0)
    logits, label = torch.randn(2, 4, *SHAPE), torch.randint(0, 4, (2, 1, *SHAPE))
    valid = torch.rand(2, 1, *SHAPE) > 0.5
    weights = [0.5, 1.0, 2.0, 4.0]
    wanted = F.cross_entropy(
        logits.movedim(1, -1)[valid[:, 0]],
        label[valid],
        weight=torch.tensor(weights),
        label_smoothing=smoothing,
    )
    found = ce(logits, label.float(), valid, class_weights=weights, label_smoothing=smoothing)
    torch.testing.assert_close(found, wanted)


def test_classes_that_all_weigh_nothing_cost_nothing():
    logits, label = torch.randn(1, 3, *SHAPE, requires_grad=True), torch.zeros(1, 1, *SHAPE)
    loss = ce(logits, label, label == 0, class_weights=[0.0, 1.0, 1.0])
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ("counted", '"counted" must be replaced by numbers before'),
        ([1.0, 2.0], "has 2 for 3 classes"),
    ],
    ids=["counted", "too few"],
)
def test_class_weights_that_cannot_be_computed_with_are_refused(weights, match):
    logits, label = torch.randn(1, 3, *SHAPE), torch.zeros(1, 1, *SHAPE)
    with pytest.raises(ValueError, match=match):
        ce(logits, label, label == 0, class_weights=weights)


def test_focal_by_hand():
    # sigmoid(ln 3) = 3/4
    logits, label = place(math.log(3), math.log(3), 50.0), place(1, 0, 0)
    valid = torch.tensor([True, True, False]).view(1, 1, 1, 1, 3)
    wanted = -(0.25 * (1 / 4) ** 2 * math.log(3 / 4) + 0.75 * (3 / 4) ** 2 * math.log(1 / 4)) / 2
    found = focal(logits, label, valid, gamma=2.0, alpha=0.25)
    assert found.item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("classes", [1, 4])
def test_focal_is_that_of_monai(gamma, alpha, classes):
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, classes, *SHAPE)
    label = torch.randint(0, max(2, classes), (2, 1, *SHAPE)).float()
    is_multiclass = classes > 1
    oracle = FocalLoss(
        to_onehot_y=is_multiclass, use_softmax=is_multiclass, gamma=gamma, alpha=alpha
    )
    # MONAI's mean is over the classes too, all but one of which are 0.
    wanted = oracle(logits, label) * classes
    found = focal(logits, label, label >= 0, gamma=gamma, alpha=alpha)
    torch.testing.assert_close(found, wanted)


def test_focal_without_focus_is_the_cross_entropy():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 4, *SHAPE), torch.randint(0, 4, (2, 1, *SHAPE)).float()
    valid = torch.rand(2, 1, *SHAPE) > 0.5
    torch.testing.assert_close(focal(logits, label, valid, gamma=0.0), ce(logits, label, valid))
    mask, soft = logits[:, :1], torch.rand(2, 1, *SHAPE)
    torch.testing.assert_close(focal(mask, soft, valid, gamma=0.0), bce(mask, soft, valid))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_has_a_finite_gradient_where_the_prediction_is_certain(gamma):
    for logits, label in (
        (torch.full((1, 1, *SHAPE), 200.0), torch.ones(1, 1, *SHAPE)),
        (torch.tensor([200.0, 0, -200]).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE), torch.zeros(1, 1, *SHAPE)),
    ):  # fmt: skip
        logits = logits.clone().requires_grad_()
        focal(logits, label, label >= 0, gamma=gamma).backward()
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("classes", [1, 4])
def test_topk_ce_is_the_mean_of_the_hardest_voxels(share, classes):
    torch.manual_seed(0)
    logits = torch.randn(2, classes, *SHAPE)
    label = torch.randint(0, max(2, classes), (2, 1, *SHAPE)).float()
    valid, weight = torch.rand(2, 1, *SHAPE) > 0.5, torch.rand(2, 1, *SHAPE)
    if classes > 1:
        losses = F.cross_entropy(logits, label[:, 0].long(), reduction="none").unsqueeze(1)
    else:
        losses = F.binary_cross_entropy_with_logits(logits, label, reduction="none")
    ranked = (losses * weight)[valid].sort(descending=True).values
    wanted = ranked[: max(1, int(share * len(ranked)))].mean()
    torch.testing.assert_close(topk_ce(logits, label, valid, weight=weight, share=share), wanted)


def test_topk_ce_does_not_hide_a_loss_that_is_not_finite():
    logits, label = torch.randn(1, 1, *SHAPE), torch.zeros(1, 1, *SHAPE)
    logits[0, 0, 1, 2, 3] = torch.nan
    assert topk_ce(logits, label, label == 0).isnan()
