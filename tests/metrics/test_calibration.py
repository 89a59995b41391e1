import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vcmodels.metrics.calibration import (
    CONFIDENCE_BINS,
    brier,
    calibration_error,
    fit_temperature,
    reliability_curve,
)
from vcmodels.metrics.curves import probability_sums

SHAPE = (6, 7, 8)


def error_by_hand(confidence, right):
    """Guo et al., equation 5, bin by bin."""
    total = 0.0
    for m in range(CONFIDENCE_BINS):
        # As whole numbers: 3/15 and 51/255 are one edge.
        inside = (confidence * 15 > m * 255) & (confidence * 15 <= (m + 1) * 255)
        inside |= (confidence == 0) & (m == 0)
        if inside.any():
            off = right[inside].mean() - confidence[inside].mean() / 255
            total += inside.sum() * abs(off)
    return total / len(confidence)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), st.booleans()), min_size=1, max_size=60))
def test_the_errors_of_masks_in_codes_are_exactly_those_by_definition(pairs):
    codes, label = (np.array(column) for column in zip(*pairs, strict=True))
    tensors = (torch.from_numpy(a).float().view(1, 1, 1, 1, -1) for a in (codes / 255, label))
    prediction, wanted = tensors
    sums = probability_sums(prediction, wanted, torch.ones_like(wanted).bool())
    assert calibration_error(sums) == pytest.approx(error_by_hand(codes, label), abs=1e-12)
    assert brier(sums) == pytest.approx(((codes / 255 - label) ** 2).mean(), abs=1e-12)


def test_the_errors_of_classes_are_those_of_the_likeliest_class():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (1, 4, *SHAPE))
    label = rng.integers(0, 4, (1, 1, *SHAPE))
    valid = rng.random((1, 1, *SHAPE)) > 0.3
    prediction = torch.from_numpy(codes / 255).float()
    sums = probability_sums(prediction, torch.from_numpy(label).float(), torch.from_numpy(valid))
    best, right = codes.max(1, keepdims=True), codes.argmax(1, keepdims=True) == label
    wanted = error_by_hand(best[valid], right[valid])
    assert calibration_error(sums) == pytest.approx(wanted, abs=1e-12)
    one_hot = np.arange(4).reshape(1, 4, 1, 1, 1) == label
    squares = ((codes / 255 - one_hot) ** 2).sum(1, keepdims=True)[valid]
    assert brier(sums) == pytest.approx(squares.mean(), abs=1e-12)


def test_a_reliability_curve_shows_what_is_right_over_what_is_claimed():
    claimed = torch.tensor([0.9] * 10 + [0.3] * 10).view(1, 1, 1, 1, 20)
    label = torch.tensor([1.0] * 7 + [0.0] * 3 + [1.0] * 2 + [0.0] * 8).view(1, 1, 1, 1, 20)
    sums = probability_sums(claimed, label, label >= 0)
    (curve,) = reliability_curve(sums).values()
    assert curve.x == pytest.approx([0.3, 0.9])
    assert curve.y == pytest.approx([0.2, 0.7])
    assert calibration_error(sums) == pytest.approx((0.2 + 0.1) / 2)


def test_nothing_valid_is_nan():
    nothing = torch.zeros(1, 1, 2, 2, 2)
    sums = probability_sums(nothing, nothing, nothing > 0)
    assert math.isnan(calibration_error(sums))
    assert math.isnan(brier(sums))
    assert not next(iter(reliability_curve(sums).values())).x


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("form", ["masks", "classes"])
def test_the_temperature_of_logits_that_are_too_sure_by_a_factor_is_that_factor(form, factor):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(60_000, 1 if form == "masks" else 3, generator=generator)
    if form == "masks":
        label = (torch.rand(logits.shape, generator=generator) < logits.sigmoid()).float()
    else:
        label = torch.multinomial(logits.softmax(1), 1, generator=generator).float()
    found = fit_temperature(factor * logits, label)
    assert found.temperature == pytest.approx(factor, rel=0.02)
    assert found.error_after < 0.01
    if factor == 1:
        assert found.error_before == pytest.approx(found.error_after, abs=2e-3)
    else:
        assert found.error_before > 3 * found.error_after


def test_the_temperature_is_where_the_likelihood_is_flat():
    logits = torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
    label = torch.randint(0, 3, (500, 1), generator=torch.Generator().manual_seed(2)).float()
    label[:300] = logits[:300].argmax(1, keepdim=True).float()
    t = torch.tensor(fit_temperature(logits, label).temperature, requires_grad=True)
    F.cross_entropy(logits / t, label[:, 0].long()).backward()
    assert t.grad is not None
    assert abs(float(t.grad)) < 1e-4


def test_logits_that_are_never_wrong_get_the_least_temperature_and_none_are_refused():
    logits = torch.tensor([[2.0], [-2.0]])
    assert fit_temperature(logits, (logits > 0).float()).temperature == pytest.approx(
        0.05, rel=1e-3
    )
    with pytest.raises(ValueError, match="no voxel"):
        fit_temperature(logits[:0], logits[:0])
