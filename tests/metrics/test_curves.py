import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.metrics.curves import (
    BINS,
    average_precision,
    best_dice,
    best_threshold,
    probability_sums,
    roc_area,
    threshold_curves,
)
from vcmodels.metrics.overlap import confusion, dice
from vcmodels.metrics.registry import add_sums

SHAPE = (6, 7, 8)
EVERYWHERE = torch.ones(1, 1, *SHAPE, dtype=torch.bool)


def precision_by_hand(score, label):
    """Average precision by its definition: one threshold after another, ties together."""
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(score.tolist()), reverse=True):
        chosen = score >= threshold
        recall = label[chosen].sum() / label.sum()
        total += (recall - recall_before) * label[chosen].mean()
        recall_before = recall
    return total


def roc_by_hand(score, label):
    """The share of pairs, one labelled and one not, in the right order; ties are half."""
    pairs = np.array([*itertools.product(score[label], score[~label])])
    return np.mean((pairs[:, 0] > pairs[:, 1]) + 0.5 * (pairs[:, 0] == pairs[:, 1]))


def as_masks(score, label):
    count = len(score)
    tensors = (torch.from_numpy(a).float().view(1, 1, 1, 1, count) for a in (score, label))
    return probability_sums(*tensors, torch.ones(1, 1, 1, 1, count, dtype=torch.bool))


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 255), st.booleans()), min_size=2, max_size=40),
    few=st.booleans(),
)
def test_figures_of_codes_are_exactly_those_by_definition(pairs, few):
    codes, label = (np.array(column) for column in zip(*pairs, strict=True))
    codes = codes // 64 * 64 if few else codes  # many ties
    score = (codes / 255).astype(np.float32)
    sums = as_masks(score, label)
    if not label.any():
        assert all(math.isnan(f(sums)[0]) for f in (average_precision, best_dice, best_threshold))
        return
    assert average_precision(sums) == pytest.approx([precision_by_hand(score, label)], abs=1e-12)
    if not label.all():
        assert roc_area(sums) == pytest.approx([roc_by_hand(score, label)], abs=1e-12)
    dices = [
        2 * label[chosen].sum() / (chosen.sum() + label.sum())
        for chosen in (codes >= threshold for threshold in range(256))
    ]
    assert best_dice(sums) == pytest.approx([max(dices)], abs=1e-12)
    above = score > best_threshold(sums)[0]
    assert 2 * label[above].sum() / (above.sum() + label.sum()) == pytest.approx(max(dices))


@pytest.mark.parametrize("seed", range(4))
def test_the_figures_of_floats_lie_between_those_of_the_best_and_worst_order_within_steps(seed):
    rng = np.random.default_rng(seed)
    label = rng.random(4000) < 0.2
    score = 1 / (1 + np.exp(-rng.normal(3 * label - 1.5, 1.5)))
    score = score.astype(np.float32)
    step = np.rint(score * (BINS - 1))
    exact = precision_by_hand(score, label)
    ends = [precision_by_hand(step + sign * 0.1 * label, label) for sign in (-1, 1)]
    assert ends[0] < exact < ends[1]
    # A positive that is last of its step has the precision at the end of it, as ties have.
    assert ends[0] - 1e-12 < average_precision(as_masks(score, label))[0] < ends[1]
    assert average_precision(as_masks(score, label)) == pytest.approx([exact], abs=2e-3)


def test_ties_nan_and_values_outside_of_the_range_count_as_documented():
    score = np.array([np.nan, -3, 0, 1, 7, 0.5], np.float32)
    label = np.array([1, 0, 1, 1, 0, 1], bool)
    sums = as_masks(score, label)
    clipped = np.array([0, 0, 0, 1, 1, 0.5])
    assert average_precision(sums) == pytest.approx([precision_by_hand(clipped, label)])
    assert sums["counts"].sum() == 6


def test_each_class_is_one_against_the_rest_and_what_is_not_valid_does_not_count():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (2, 3, *SHAPE))
    label = rng.integers(0, 3, (2, 1, *SHAPE))
    valid = rng.random((2, 1, *SHAPE)) > 0.4
    prediction = torch.from_numpy((codes / 255).astype(np.float32))
    halves = [
        probability_sums(
            prediction[n : n + 1],
            torch.from_numpy(label[n : n + 1]).float(),
            torch.from_numpy(valid[n : n + 1]),
        )
        for n in (0, 1)
    ]
    sums = add_sums(*halves)
    wanted = [
        precision_by_hand(codes[:, c : c + 1][valid] / 255, (label == c)[valid]) for c in (1, 2)
    ]
    assert average_precision(sums) == pytest.approx(wanted, abs=1e-12)
    best = codes.max(1, keepdims=True)[valid]
    right = (codes.argmax(1, keepdims=True) == label)[valid]
    for row, chosen in enumerate((~right, right)):
        found = np.bincount(4 * best[chosen], minlength=BINS)
        np.testing.assert_array_equal(sums["likeliest"][row].numpy(), found)


def test_masks_of_several_channels_are_counted_together_each_where_it_is_valid():
    rng = np.random.default_rng(0)
    score = (rng.integers(0, 256, (1, 3, *SHAPE)) / 255).astype(np.float32)
    label, valid = rng.random((2, 1, 3, *SHAPE)) > 0.4
    sums = probability_sums(*map(torch.from_numpy, (score, label.astype(np.float32), valid)))
    assert sums["counts"].shape == (1, 2, BINS)
    wanted = precision_by_hand(score[valid], label[valid])
    assert average_precision(sums) == pytest.approx([wanted], abs=1e-12)


def test_the_best_dice_is_that_of_a_mask_cut_at_the_best_threshold():
    rng = np.random.default_rng(1)
    label = torch.from_numpy(rng.random((1, 1, *SHAPE)) < 0.3).float()
    prediction = (0.3 * label + 0.4 * torch.rand(1, 1, *SHAPE)).clamp(0, 1)
    sums = probability_sums(prediction, label, EVERYWHERE)
    (threshold,) = best_threshold(sums)
    # What lies within half a step of the threshold is cut at the middle of its step.
    rounded = (prediction * (BINS - 1)).round() / (BINS - 1)
    cut = (rounded > threshold).float()
    assert dice(confusion(cut, label, EVERYWHERE)) == pytest.approx(best_dice(sums))
    assert best_dice(sums)[0] > dice(confusion(prediction, label, EVERYWHERE))[0]


def test_curves_are_short_and_pass_through_the_figures():
    rng = np.random.default_rng(0)
    label = rng.random(3000) < 0.3
    codes = np.clip(rng.normal(100 + 60 * label, 40), 0, 255).astype(int)
    sums = as_masks(codes / 255, label)
    curves = threshold_curves(sums)
    assert list(curves) == ["Precision and recall", "ROC", "Dice by threshold"]
    assert all(len(line.x) <= 102 for (line,) in curves.values())
    (ranks,), (roc,), (dices,) = curves.values()
    for recall, precision in zip(ranks.x, ranks.y, strict=True):
        found = [
            (label[codes >= t].sum() / label.sum(), label[codes >= t].mean())
            for t in range(codes.max() + 1)
        ]
        assert np.abs(np.array(found) - (recall, precision)).max(1).min() < 1e-4
    assert (roc.x[0], roc.y[0], roc.x[-1], roc.y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(roc_area(sums)[0], abs=0.01)
    assert max(dices.y) == pytest.approx(best_dice(sums)[0], abs=0.01)
    assert dices.x[0] == 0
    assert ranks.x[-1] == 1


@pytest.mark.parametrize("labelled", [0.0, 1.0])
def test_curves_of_one_side_only_are_empty_or_as_far_as_they_go(labelled):
    sums = as_masks(np.linspace(0, 1, 20), np.full(20, labelled))
    lengths = [len(line.x) for (line,) in threshold_curves(sums).values()]
    assert lengths[1] == 0
    assert all(length == 0 for length in lengths) == (labelled == 0)
    assert math.isnan(roc_area(sums)[0])
