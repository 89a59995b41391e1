import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vcmodels.losses.regression import axial_cosine, cosine, unit_length

SHAPE = (6, 7, 8)


def at_angle(degrees, length=1.0):
    """A prediction and a label that many degrees apart."""
    a = math.radians(degrees)
    prediction = length * torch.tensor([math.cos(a), math.sin(a), 0.0]).view(1, 3, 1, 1, 1)
    return (
        prediction,
        torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1, 1),
        torch.ones(1, 1, 1, 1, 1) > 0,
    )


@pytest.mark.parametrize("degrees", [0, 30, 90, 120, 180])
def test_losses_by_angle(degrees):
    c = math.cos(math.radians(degrees))
    assert cosine(*at_angle(degrees)).item() == pytest.approx(1 - c, abs=2e-6)
    assert axial_cosine(*at_angle(degrees)).item() == pytest.approx(1 - c * c, abs=2e-6)


@settings(max_examples=25, deadline=None)
@given(degrees=st.floats(0, 180), length=st.floats(0.1, 1e4))
def test_the_length_of_the_prediction_does_not_count(degrees, length):
    for loss in (cosine, axial_cosine):
        torch.testing.assert_close(
            loss(*at_angle(degrees, length)), loss(*at_angle(degrees)), rtol=0, atol=1e-4
        )


def test_cosine_is_that_of_the_valid_subset():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, *SHAPE), F.normalize(torch.randn(2, 3, *SHAPE), dim=1)
    valid = torch.rand(2, 1, *SHAPE) > 0.5
    similarity = F.cosine_similarity(logits, label, dim=1)[valid[:, 0]]
    kwargs = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(cosine(logits, label, valid), 1 - similarity.mean(), **kwargs)
    wanted = 1 - similarity.square().mean()
    torch.testing.assert_close(axial_cosine(logits, label, valid), wanted, **kwargs)


def test_axial_cosine_does_not_see_the_sign_of_either():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 3, *SHAPE), F.normalize(torch.randn(2, 3, *SHAPE), dim=1)
    valid = torch.rand(2, 1, *SHAPE) > 0.5
    sign = torch.randint(0, 2, (2, 1, *SHAPE)) * 2.0 - 1
    assert axial_cosine(logits, sign * label, valid) == axial_cosine(logits, label, valid)
    assert axial_cosine(sign * logits, label, valid) == axial_cosine(logits, label, valid)


@pytest.mark.parametrize("loss", [cosine, axial_cosine])
def test_a_zero_prediction_has_a_bounded_gradient(loss):
    logits, label, valid = at_angle(30)
    logits = torch.zeros_like(logits).requires_grad_()
    loss(logits, label, valid).backward()
    assert logits.grad.norm() <= 1000.01


@pytest.mark.parametrize("length", [0.5, 1.0, 3.0])
def test_unit_length_by_hand(length):
    assert unit_length(*at_angle(70, length)).item() == pytest.approx((length - 1) ** 2, abs=1e-5)


def test_unit_length_has_no_gradient_at_zero():
    logits, label, valid = at_angle(30)
    logits = torch.zeros_like(logits).requires_grad_()
    unit_length(logits, label, valid).backward()
    assert (logits.grad == 0).all()
