import pytest
import torch
from torch.nn import functional as F

from vcmodels.losses.regression import l1, l2, smooth_l1

SHAPE = (6, 7, 8)


@pytest.mark.parametrize(
    ("loss", "oracle"), [(l1, F.l1_loss), (l2, F.mse_loss), (smooth_l1, F.smooth_l1_loss)]
)
def test_regression_losses_are_those_of_the_valid_subset(loss, oracle):
    torch.manual_seed(0)
    logits, label = 2 * torch.randn(2, 3, *SHAPE), torch.randn(2, 3, *SHAPE)
    valid = torch.rand(2, 1, *SHAPE) > 0.5
    where = valid.expand_as(logits)
    torch.testing.assert_close(loss(logits, label, valid), oracle(logits[where], label[where]))


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_smooth_l1_bends_at_beta(beta):
    place = torch.tensor([0.5 * beta, 3 * beta]).view(1, 1, 1, 1, 2)
    found = smooth_l1(place, torch.zeros_like(place), place > 0, beta=beta)
    assert found.item() == pytest.approx((beta / 8 + 2.5 * beta) / 2)


def test_channels_may_be_known_one_by_one():
    prediction = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 2, 1, 1, 2)
    valid = torch.tensor([True, False, True, True]).view(1, 2, 1, 1, 2)
    assert l1(prediction, torch.zeros_like(prediction), valid).item() == pytest.approx(8 / 3)
    assert l2(prediction, torch.zeros_like(prediction), valid).item() == pytest.approx(26 / 3)


def test_the_weighted_sum_is_divided_by_the_count():
    prediction = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1, 1)
    weight = torch.tensor([1.0, 0.1, 0.0]).view(3, 1, 1, 1, 1)
    found = l1(prediction, torch.zeros_like(prediction), prediction > 0, weight=weight)
    assert found.item() == pytest.approx(1.2 / 3)
