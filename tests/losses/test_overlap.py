import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceLoss, GeneralizedDiceLoss, TverskyLoss

from vcmodels.losses.overlap import (
    SMOOTH,
    focal_tversky,
    generalised_dice,
    soft_dice,
    soft_jaccard,
    tversky,
)

SHAPE = (6, 7, 8)
ALL = [soft_dice, soft_jaccard, tversky, focal_tversky, generalised_dice]


def place(*values):
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, 1, -1)


def test_soft_dice_and_jaccard_by_hand():
    # Probabilities 3/4, 1/4, 1/2; the last voxel is not valid.
    logits = torch.logit(place(0.75, 0.25, 0.5))
    label, valid = place(1, 1, 0), torch.tensor([True, True, False]).view(1, 1, 1, 1, 3)
    assert soft_dice(logits, label, valid).item() == pytest.approx(1 - (2 + SMOOTH) / (3 + SMOOTH))
    wanted = 1 - (1 + SMOOTH) / (2 + SMOOTH)
    assert soft_jaccard(logits, label, valid).item() == pytest.approx(wanted)


@pytest.mark.parametrize("loss", ALL)
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


@pytest.mark.parametrize("loss", ALL)
@settings(max_examples=25, deadline=None)
@given(smoothing=st.floats(0.1, 0.9), shift=st.sampled_from([-0.02, -0.005, 0.005, 0.02]))
def test_the_smoothed_label_is_the_best_prediction(loss, smoothing, shift):
    label = torch.zeros(1, 1, 4, 5, 6)
    label[:, :, 1:3] = 1
    valid = torch.ones_like(label, dtype=torch.bool)
    soft = label * (1 - smoothing) + smoothing / 2
    best = loss(torch.logit(soft), label, valid, label_smoothing=smoothing)
    # The root of `focal_tversky` is 24 times as steep as the rounding of the index.
    torch.testing.assert_close(best, torch.tensor(0.0), rtol=0, atol=1e-5)
    assert loss(torch.logit(soft + shift), label, valid, label_smoothing=smoothing) > best


@pytest.mark.parametrize("loss", ALL)
def test_the_smoothed_classes_are_the_best_prediction(loss):
    label = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 5, 6)
    soft = 0.7 * torch.eye(4)[label[:, 0].long()].movedim(-1, 1) + 0.3 / 4
    found = loss(soft.log(), label, label >= 0, label_smoothing=0.3)
    torch.testing.assert_close(found, torch.tensor(0.0), rtol=0, atol=1e-5)


def test_an_absent_class_that_is_not_predicted_costs_nothing():
    logits = torch.tensor([50.0, 0.0, -50.0]).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
    label = torch.zeros(1, 1, *SHAPE)
    assert soft_dice(logits, label, label == 0) < 1e-6


def multiclass_example():
    torch.manual_seed(0)
    return torch.randn(2, 4, *SHAPE), torch.randint(0, 4, (2, 1, *SHAPE)).float()


MONAI = {"softmax": True, "to_onehot_y": True, "batch": True}


@pytest.mark.parametrize("background", [False, True])
def test_dice_is_that_of_monai(background):
    logits, label = multiclass_example()
    oracle = DiceLoss(**MONAI, include_background=background, smooth_nr=SMOOTH, smooth_dr=SMOOTH)
    found = soft_dice(logits, label, label >= 0, include_background=background)
    torch.testing.assert_close(found, oracle(logits, label))


@pytest.mark.parametrize("background", [False, True])
def test_tversky_is_that_of_monai(background):
    logits, label = multiclass_example()
    options = {"alpha": 0.2, "beta": 0.6, "include_background": background}
    oracle = TverskyLoss(**MONAI, **options, smooth_nr=SMOOTH, smooth_dr=SMOOTH)
    torch.testing.assert_close(tversky(logits, label, label >= 0, **options), oracle(logits, label))


def test_tversky_by_hand():
    # Probabilities 3/4, 1/4, 1/2: hits 1, false positives 1/2, false negatives 1.
    logits, label = torch.logit(place(0.75, 0.25, 0.5)), place(1, 1, 0)
    options = {"alpha": 0.2, "beta": 0.6}
    index = (1 + SMOOTH) / (1 + 0.2 * 0.5 + 0.6 + SMOOTH)
    valid = torch.ones_like(label, dtype=torch.bool)
    assert tversky(logits, label, valid, **options).item() == pytest.approx(1 - index)
    found = focal_tversky(logits, label, valid, **options, gamma=2.0).item()
    assert found == pytest.approx((1 - index) ** 0.5, abs=2e-3)
    found = focal_tversky(logits, label, valid, **options, gamma=1.0).item()
    assert found == pytest.approx(1 - index)


@pytest.mark.parametrize("absent", [False, True])
def test_generalised_dice_is_that_of_monai(absent):
    logits, label = multiclass_example()
    label = label.clamp(max=2 if absent else 3)
    rarest = torch.bincount(label.flatten().long()).min()
    smooth = SMOOTH / float(rarest) ** 2  # ours counts voxels of the rarest class
    oracle = GeneralizedDiceLoss(**MONAI, smooth_nr=smooth, smooth_dr=smooth)
    found = generalised_dice(logits, label, label >= 0)
    torch.testing.assert_close(found, oracle(logits, label))


def test_generalised_dice_of_a_mask_is_that_of_two_classes():
    torch.manual_seed(0)
    logits = torch.randn(2, 1, *SHAPE)
    label = (torch.rand(2, 1, *SHAPE) > 0.9).float()
    valid = torch.rand(2, 1, *SHAPE) > 0.3
    pair = torch.cat([torch.zeros_like(logits), logits], 1)
    torch.testing.assert_close(
        generalised_dice(logits, label, valid), generalised_dice(pair, label, valid)
    )


def test_generalised_dice_of_masks_is_the_mean_over_them():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, *SHAPE), (torch.rand(2, 3, *SHAPE) > 0.8).float()
    valid = torch.rand(2, 3, *SHAPE) > 0.3
    for loss in ALL:
        each = [loss(logits[:, c, None], label[:, c, None], valid[:, c, None]) for c in range(3)]
        torch.testing.assert_close(loss(logits, label, valid), torch.stack(each).mean())


def test_weights_count_a_voxel_as_so_many():
    """A sample of weight 2 beside one of weight 1 is that sample twice."""
    torch.manual_seed(0)
    logits, label = torch.randn(2, 1, *SHAPE), (torch.rand(2, 1, *SHAPE) > 0.6).float()
    weight = torch.tensor([2.0, 1.0]).view(2, 1, 1, 1, 1) / 1.5
    twice = [torch.cat([x[:1], x]) for x in (logits, label, label >= 0)]
    for loss in ALL:
        found = loss(logits, label, label >= 0, weight=weight)
        torch.testing.assert_close(found, loss(*twice), rtol=0, atol=3e-3)
