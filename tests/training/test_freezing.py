"""Frozen parts: no gradient, no decay, no drift, no new statistics."""

import pytest
import torch
from torch import nn

from vcmodels.errors import TaskError
from vcmodels.models import ResidualUNet
from vcmodels.training.optimiser import Freezing, average_weights, build_optimizer


def network():
    torch.manual_seed(0)
    model = ResidualUNet(f_maps=(4, 8))
    return model.build(1, {"sheet": 1, "sheets": 2}, (8, 8, 16), (1.0, 1.0, 1.0))


def train(net, freezing, steps, optimizer="AdamW", first=0):
    trainer = build_optimizer(optimizer, net, 1e-2, 0.1)
    averaged = [p.detach().clone() for p in net.parameters()]
    image = torch.randn(2, 1, 8, 8, 16, generator=torch.Generator().manual_seed(1))
    for step in range(first, first + steps):
        net.train()
        freezing.apply(step)
        trainer.zero_grad(set_to_none=True)
        sum(maps[0].square().mean() for maps in net(image).values()).backward()
        trainer.step()
        average_weights(averaged, net.parameters(), 0.9, step)
    return dict(zip((n for n, _ in net.named_parameters()), averaged, strict=True))


@pytest.mark.parametrize("optimizer", ["AdamW", "Adam", "SGD"])
def test_what_is_frozen_stays_bit_for_bit_and_the_rest_learns(optimizer):
    net = network()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    freezing = Freezing(net, ["encoder", "heads.sheet"], None)
    averaged = train(net, freezing, 4, optimizer)
    frozen = {n for n in before if n.startswith(("encoder.", "heads.sheet."))}
    assert {n for n, p in net.named_parameters() if torch.equal(p, before[n])} == frozen
    assert {n for n in before if torch.equal(averaged[n], before[n])} == frozen


def test_frozen_parts_are_released_at_their_step():
    net = network()
    freezing = Freezing(net, ["encoder.levels.0"], 3)
    before = {n: p.detach().clone() for n, p in net.named_parameters() if "encoder.levels.0" in n}
    train(net, freezing, 3)
    now = dict(net.named_parameters())
    assert all(torch.equal(now[n], value) for n, value in before.items())
    train(net, freezing, 1, first=3)
    assert not any(torch.equal(now[n], value) for n, value in before.items())
    assert (freezing.holds(2), freezing.holds(3)) == (True, False)


def test_norms_and_dropout_of_frozen_parts_run_as_in_prediction():
    net = nn.Sequential(nn.Sequential(nn.BatchNorm3d(2), nn.Dropout(0.5)), nn.BatchNorm3d(2))
    freezing = Freezing(net, ["0"], 1)
    net.train()
    freezing.apply(0)
    net(torch.randn(2, 2, 3, 4, 5) + 7)
    assert (net[0].training, net[0][1].training, net[1].training) == (False, False, True)
    assert net[0][0].running_mean.tolist() == [0, 0]
    assert net[1].running_mean.tolist() != [0, 0]
    net.train()
    freezing.apply(1)
    assert net[0][1].training


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        (
            ["encoder", "head"],
            r'freeze: "head" is no part of the network; parts are encoder, decoders\.sheet, '
            r"decoders\.sheets, heads\.sheet, heads\.sheets",
        ),
        (["heads.ink"], r'"heads\.ink" is no part'),
        (["encoder", "decoders", "heads"], "names the whole network"),
    ],
    ids=["beginning of a word", "no such target", "all"],
)
def test_wrong_parts_are_refused(parts, match):
    with pytest.raises(TaskError, match=match):
        Freezing(network(), parts, None)


def test_nothing_is_frozen_when_nothing_is_named():
    net = network()
    freezing = Freezing(net, [], None)
    freezing.apply(0)
    assert not freezing.holds(0)
    assert all(p.requires_grad for p in net.parameters())
