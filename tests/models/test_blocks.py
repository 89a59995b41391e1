import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vcmodels.models.blocks import InstanceNorm, ResidualBlock, SqueezeExcitation, initialise


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def shuffled(norm: nn.Module) -> nn.Module:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def test_instance_norm_is_torchs():
    ours, theirs = shuffled(InstanceNorm(5)), nn.InstanceNorm3d(5, affine=True)
    theirs.load_state_dict(ours.state_dict())
    x = 3 * torch.randn(2, 5, 6, 7, 8) + 10
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_instance_norm_keeps_the_memory_format_and_the_dtype():
    x = torch.randn(2, 5, 6, 7, 8).bfloat16().to(memory_format=torch.channels_last_3d)
    y = InstanceNorm(5)(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last_3d)


def test_instance_norm_of_bfloat16_far_from_zero_is_centred():
    """bfloat16 arithmetic would leave steps of 0.5 around 100, and a mean off by as much."""
    x = (100 + torch.randn(1, 3, 6, 7, 8)).bfloat16()
    torch.testing.assert_close(
        InstanceNorm(3)(x).float().mean((2, 3, 4)), torch.zeros(1, 3), atol=0.01, rtol=0
    )


def test_a_constant_patch_stays_finite():
    x = torch.full((1, 4, 6, 7, 8), 5.0, requires_grad=True)
    y = shuffled(InstanceNorm(4, gated=True))(x)
    y.square().sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()


def test_a_gated_norm_is_the_norm_times_the_gate_of_its_statistics():
    gated = shuffled(InstanceNorm(4, gated=True))
    x = 2 * torch.randn(2, 4, 6, 7, 8) + 1
    gate = gated.gate(x.mean((2, 3, 4)), x.var((2, 3, 4), correction=0))
    plain = F.instance_norm(x, weight=gated.weight, bias=gated.bias)
    torch.testing.assert_close(gated(x), plain * gate[:, :, None, None, None])


def test_the_gate_sees_what_the_norm_takes_away():
    """A gate behind the norm would be the same for an image and a brighter one."""
    gated = shuffled(InstanceNorm(4, gated=True))
    plain = InstanceNorm(4)
    x = torch.randn(1, 4, 6, 7, 8)
    torch.testing.assert_close(plain(x), plain(3 * x + 2), atol=1e-4, rtol=1e-4)
    assert (gated(x) - gated(3 * x + 2)).abs().max() > 0.05


def test_the_gate_lies_between_zero_and_one_and_ignores_autocast():
    gate = shuffled(SqueezeExcitation(16))
    mean, variance = 5 * torch.randn(3, 16), 25 * torch.rand(3, 16)
    statistics = torch.cat([mean, variance.add(1e-5).sqrt()], 1)
    hidden = torch.relu(statistics @ gate.squeeze.weight.T + gate.squeeze.bias)
    expected = torch.sigmoid(hidden @ gate.excite.weight.T + gate.excite.bias)
    assert 0 <= expected.min() < expected.max() <= 1
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(gate(mean, variance), expected, atol=1e-5, rtol=1e-5)


def test_a_residual_block_is_its_formula():
    block = ResidualBlock(3, 4, (1, 3, 3), (1, 2, 2), squeeze_excitation=False)
    initialise(block)
    x = torch.randn(2, 3, 6, 8, 10)
    y = F.conv3d(x, block.first.conv.weight, stride=(1, 2, 2), padding=(0, 1, 1))
    y = F.leaky_relu(F.instance_norm(y), 0.01)
    y = F.instance_norm(F.conv3d(y, block.conv.weight, padding=(0, 1, 1)))
    averaged = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    expected = F.leaky_relu(y + F.conv3d(averaged, block.shortcut[1].weight), 0.01)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


def test_a_block_that_changes_nothing_has_a_free_shortcut():
    assert len(ResidualBlock(4, 4, (3, 3, 3), squeeze_excitation=True).shortcut) == 0
