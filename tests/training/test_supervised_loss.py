"""The loss over outputs of several resolutions: what does not count, counts at none of them."""

import pytest
import torch
from torch.nn import functional as F

from vcmodels.targets import AffinitiesTarget, BinaryTarget, MulticlassTarget, NormalsTarget
from vcmodels.training.step import supervised_loss

FULL, COARSE = (6, 7, 8), (3, 4, 4)
WEIGHT = torch.tensor([1.0, 0.3]).view(2, 1, 1, 1, 1)
TARGETS = {
    "mask": (BinaryTarget(), 1),
    "classes": (MulticlassTarget(channels=3), 1),
    "axes": (NormalsTarget(orientation="axial"), 3),
    "each channel": (AffinitiesTarget(), 3),
}


@pytest.mark.parametrize("name", TARGETS)
def test_what_does_not_count_has_no_say_at_any_resolution(name):
    target, channels = TARGETS[name]
    generator = torch.Generator().manual_seed(0)
    label = torch.rand((2, channels, *FULL), generator=generator)
    label = F.normalize(label, dim=1) if name == "axes" else (label > 0.6).float()
    masks = channels if name == "each channel" else 1
    valid = torch.rand((2, masks, *FULL), generator=generator) > 0.4
    outputs = [
        torch.randn((2, target.channels, *shape), generator=generator, requires_grad=True)
        for shape in (FULL, COARSE)
    ]
    loss = supervised_loss(target, outputs, label, valid, WEIGHT)
    fine, coarse = torch.autograd.grad(loss, outputs)
    nearest = F.interpolate(valid.float(), COARSE, mode="nearest-exact") > 0
    assert fine.any()
    assert coarse.any()
    assert not fine[~valid.expand_as(fine)].any()
    assert not coarse[~nearest.expand_as(coarse)].any()
    # A third output as the second: weights 1, 1/2, 1/4 of their sum.
    one, two = (supervised_loss(target, [o], label, valid, WEIGHT) for o in outputs)
    three = supervised_loss(target, [*outputs, outputs[1]], label, valid, WEIGHT)
    torch.testing.assert_close(loss, (one + two / 2) / 1.5)
    torch.testing.assert_close(three, (one + two * 0.75) / 1.75)
    torch.testing.assert_close(
        supervised_loss(target, outputs, label, valid, WEIGHT / 10), loss / 10
    )
