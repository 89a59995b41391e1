import math

import pytest
import torch
from torch.nn import functional as F

from vcmodels.losses.voxel import bce, ce, l1, l2, smooth_l1

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


@pytest.mark.parametrize(
    ("loss", "oracle"), [(l1, F.l1_loss), (l2, F.mse_loss), (smooth_l1, F.smooth_l1_loss)]
)
def test_regression_losses_are_those_of_the_valid_subset(loss, oracle):
    torch.manual_seed(0)
    logits, label = 2 * torch.randn(2, 3, *SHAPE), torch.randn(2, 3, *SHAPE)
    valid = torch.rand(2, 1, *SHAPE) > 0.5
    where = valid.expand_as(logits)
    torch.testing.assert_close(loss(logits, label, valid), oracle(logits[where], label[where]))
