import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.losses.overlap import SMOOTH, soft_dice, soft_jaccard

SHAPE = (6, 7, 8)


def place(*values):
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, 1, -1)


def test_soft_dice_and_jaccard_by_hand():
    # Probabilities 3/4, 1/4, 1/2; the last voxel is not valid.
    logits = torch.logit(place(0.75, 0.25, 0.5))
    label, valid = place(1, 1, 0), torch.tensor([True, True, False]).view(1, 1, 1, 1, 3)
    assert soft_dice(logits, label, valid).item() == pytest.approx(1 - (2 + SMOOTH) / (3 + SMOOTH))
    wanted = 1 - (1 + SMOOTH) / (2 + SMOOTH)
    assert soft_jaccard(logits, label, valid).item() == pytest.approx(wanted)


@pytest.mark.parametrize("loss", [soft_dice, soft_jaccard])
def test_a_perfect_prediction_costs_nothing_and_its_opposite_all(loss):
    label = torch.zeros(1, 1, *SHAPE)
    label[:, :, 2:5] = 1
    valid = torch.ones_like(label, dtype=torch.bool)
    assert loss(100 * (2 * label - 1), label, valid) == 0
    assert loss(100 * (1 - 2 * label), label, valid) > 0.99


def dice_by_the_book(p, t):
    return (2 * (p * t).sum() + SMOOTH) / (p.sum() + t.sum() + SMOOTH)


def jaccard_by_the_book(p, t):
    return ((p * t).sum() + SMOOTH) / ((p + t - p * t).sum() + SMOOTH)


@pytest.mark.parametrize(
    ("loss", "score"), [(soft_dice, dice_by_the_book), (soft_jaccard, jaccard_by_the_book)]
)
@pytest.mark.parametrize("background", [False, True])
def test_classes_are_scored_by_sums_over_the_batch(loss, score, background):
    torch.manual_seed(0)
    logits, label = torch.randn(2, 4, *SHAPE), torch.randint(0, 4, (2, 1, *SHAPE))
    valid = torch.rand(2, 1, *SHAPE) > 0.5
    scores = [
        score(logits.softmax(1)[:, c][valid[:, 0]], (label[valid] == c).float())
        for c in range(0 if background else 1, 4)
    ]
    found = loss(logits, label.float(), valid, include_background=background)
    torch.testing.assert_close(found, 1 - torch.stack(scores).mean())


@pytest.mark.parametrize("loss", [soft_dice, soft_jaccard])
@settings(max_examples=25, deadline=None)
@given(smoothing=st.floats(0.1, 0.9), shift=st.sampled_from([-0.02, -0.005, 0.005, 0.02]))
def test_the_smoothed_label_is_the_best_prediction(loss, smoothing, shift):
    label = torch.zeros(1, 1, 4, 5, 6)
    label[:, :, 1:3] = 1
    valid = torch.ones_like(label, dtype=torch.bool)
    soft = label * (1 - smoothing) + smoothing / 2
    best = loss(torch.logit(soft), label, valid, label_smoothing=smoothing)
    torch.testing.assert_close(best, torch.tensor(0.0), rtol=0, atol=1e-6)
    assert loss(torch.logit(soft + shift), label, valid, label_smoothing=smoothing) > best


@pytest.mark.parametrize("loss", [soft_dice, soft_jaccard])
def test_the_smoothed_classes_are_the_best_prediction(loss):
    label = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 5, 6)
    soft = 0.7 * torch.eye(4)[label[:, 0].long()].movedim(-1, 1) + 0.3 / 4
    found = loss(soft.log(), label, label >= 0, label_smoothing=0.3)
    torch.testing.assert_close(found, torch.tensor(0.0), rtol=0, atol=1e-6)


def test_an_absent_class_that_is_not_predicted_costs_nothing():
    logits = torch.tensor([50.0, 0.0, -50.0]).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
    label = torch.zeros(1, 1, *SHAPE)
    assert soft_dice(logits, label, label == 0) < 1e-6
