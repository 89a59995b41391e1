import itertools

import pytest
import torch
from torch import nn

from vcmodels.training.optimiser import average_weights, build_optimizer, rate_factor


def test_the_rate_warms_up_then_falls_to_zero():
    poly = [rate_factor("poly", step, 100, 10) for step in range(101)]
    assert poly[0] == pytest.approx(1 / 11)
    assert poly.index(max(poly)) == 10
    assert all(a > b for a, b in itertools.pairwise(poly[10:]))
    assert poly[100] == 0
    assert poly[55] == pytest.approx(0.45**0.9)


def test_half_a_cosine_is_half_way_in_the_middle():
    assert rate_factor("cosine", 500, 1000, 0) == pytest.approx(0.5)
    assert rate_factor("constant", 999, 1000, 0) == 1


def test_the_average_follows_the_recursion():
    averaged, current = [torch.zeros(3)], [torch.ones(3)]
    expected = 0.0
    for step in range(200):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * 1.0
        average_weights(averaged, current, 0.9, step)
    torch.testing.assert_close(averaged[0], torch.full((3,), expected))


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD"])
def test_only_weights_decay(name):
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.InstanceNorm3d(2, affine=True))
    optimizer = build_optimizer(name, network, 0.1, 0.01)
    decays = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert {n: decays[id(p)] for n, p in network.named_parameters()} == {
        "0.weight": 0.01, "0.bias": 0, "1.weight": 0, "1.bias": 0,
    }  # fmt: skip


def test_sgd_has_nesterov_momentum():
    """Sutskever et al. 2013, as in torch: v <- m v + g, p <- p - rate (g + m v)."""
    network = nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer("SGD", network, 0.1, 0.0, momentum=0.8)
    wanted, velocity = network.weight.detach().clone(), torch.zeros(1, 2)
    for gradient in (torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]])):
        network.weight.grad = gradient.clone()
        optimizer.step()
        velocity = 0.8 * velocity + gradient
        wanted -= 0.1 * (gradient + 0.8 * velocity)
    torch.testing.assert_close(network.weight, nn.Parameter(wanted))
