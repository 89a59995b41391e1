"""The `loss` of a target as the task file has it."""

import pytest
import torch

from vcmodels.losses import LOSSES, parse_loss


def sample():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 1, 3, 4, 5), (torch.rand(2, 1, 3, 4, 5) > 0.5).float()
    return logits, label, torch.rand(2, 1, 3, 4, 5) > 0.2


def test_a_name_weights_and_options_mean_the_same_loss():
    logits, label, valid = sample()
    for block in ("bce", {"bce": 1}, {"bce": {"weight": 1}}, {"bce": {}}):
        (term,) = parse_loss(block)
        assert term(logits, label, valid, None, 0.0) == LOSSES["bce"].function(logits, label, valid)
    first, second = parse_loss({"bce": {"weight": 2, "pos_weight": 3.0}, "focal": 0.5})
    wanted = 2 * LOSSES["bce"].function(logits, label, valid, pos_weight=3.0)
    assert first(logits, label, valid, None, 0.0) == wanted
    assert second(logits, label, valid, None, 0.0) == 0.5 * LOSSES["focal"].function(
        logits, label, valid
    )


def test_smoothing_and_weights_reach_the_losses_that_take_them():
    logits, label, valid = sample()
    weight = torch.tensor([0.5, 2.0]).view(2, 1, 1, 1, 1)
    for name, taken in (("bce", {"label_smoothing": 0.2}), ("focal", {})):
        (term,) = parse_loss(name)
        wanted = LOSSES[name].function(logits, label, valid, weight=weight, **taken)
        assert term(logits, label, valid, weight, 0.2) == wanted


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("dice", 'no loss "dice"; choose from .*soft_dice'),
        ({"bce": {"pos_wieght": 2.0}}, 'no option "pos_wieght"; did you mean "pos_weight"?'),
        ({"soft_dice": {"alpha": 2.0}}, 'no option "alpha"; it takes include_background, weight'),
        ({"bce": {"pos_weight": "2"}}, 'loss "bce": pos_weight: Input should be a valid number'),
        ({"bce": {"pos_weight": 0.0}}, "greater than 0"),
        ({"bce": {"label_smoothing": 0.1}}, 'no option "label_smoothing"'),
        ({"bce": 1, "soft_dice": -1}, "weights must be 0 or more and not all 0"),
        ({"bce": 0}, "weights must be 0 or more and not all 0"),
        ({}, "weights must be 0 or more and not all 0"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_in_one_line(block, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_loss(block)
    assert "\n" not in str(error.value)
