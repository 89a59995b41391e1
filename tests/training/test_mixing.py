"""Mixup: the loss of mixed patches for every loss of every kind, and features mixed at a level."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vcmodels.config.train_params import Mixup
from vcmodels.devices import CompiledOrEager
from vcmodels.errors import TaskError
from vcmodels.models import ResidualUNet
from vcmodels.models.base import FeatureMix, mix_samples
from vcmodels.samples.loader import Batch
from vcmodels.training.step import BatchMix, draw_mix, partners, require_pairs

SHAPE = (8, 8, 16)


def draws(count=4000, levels=3, **settings):
    return [draw_mix(Mixup(**settings), levels, seed=3, step=s, number=0) for s in range(count)]


def test_draws_are_a_function_of_seed_step_and_number():
    settings = Mixup(manifold=True)
    first = draw_mix(settings, 3, seed=1, step=2, number=0)
    assert first == draw_mix(settings, 3, seed=1, step=2, number=0)
    others = [(2, 2, 0), (1, 3, 0), (1, 2, 1)]
    shares = {draw_mix(settings, 3, seed=s, step=t, number=n).share for s, t, n in others}
    assert len(shares | {first.share}) == 4


def test_shares_are_of_the_beta_distribution():
    shares = np.array([mix.share for mix in draws(alpha=0.4)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)  # in closed form
    assert not any(mix.level is not None for mix in draws(10))


def test_a_share_p_of_the_batches_is_mixed():
    mixed = [mix for mix in draws(p=0.25) if mix is not None]
    assert len(mixed) / 4000 == pytest.approx(0.25, abs=0.03)
    assert draw_mix(None, 3, seed=0, step=0, number=0) is None


def test_image_and_every_level_are_mixed_equally_often():
    counts = Counter(mix.level for mix in draws(manifold=True, levels=3))
    assert set(counts) == {None, 0, 1, 2}
    assert min(counts.values()) > 900


def batch(seed=0, size=3):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(size, 1, *SHAPE, generator=generator)
    label = torch.rand(size, 1, *SHAPE, generator=generator).round()
    valid = torch.rand(size, 1, *SHAPE, generator=generator) > 0.4
    weight = torch.rand(size, 1, 1, 1, 1, generator=generator)
    return Batch(
        image, {"a": label, "b": label}, {"a": valid, "b": valid}, (), {"a": weight, "b": None}
    )


def test_each_sample_is_mixed_with_the_one_before_it():
    given = batch()
    mixed = BatchMix(0.25).batch(given)
    for index in range(3):
        wanted = 0.25 * given.image[index] + 0.75 * given.image[index - 1]
        torch.testing.assert_close(mixed.image[index], wanted)
        assert torch.equal(partners(given).labels["a"][index], given.labels["a"][index - 1])
        assert torch.equal(partners(given).valid["a"][index], given.valid["a"][index - 1])
        assert torch.equal(partners(given).weight["a"][index], given.weight["a"][index - 1])
    assert partners(given).weight["b"] is None
    assert mixed.labels is given.labels


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_whole_share_is_one_of_the_two(share):
    values = torch.randn(3, 2, 4, dtype=torch.bfloat16)
    mixed = mix_samples(values, torch.tensor(share))
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed, values if share else values.roll(1, 0), atol=0.02, rtol=0)


def test_losses_against_both_labels_are_that_against_the_mixed_one():
    """For a cross-entropy, which is linear in the label: Zhang et al. 2018, equation 1."""
    given, mix = batch(), BatchMix(0.3)
    logits = torch.randn(3, 1, *SHAPE)

    def loss(label):
        return {"a": F.binary_cross_entropy_with_logits(logits, label)}

    both = mix.mean(loss(given.labels["a"]), loss(partners(given).labels["a"]))
    torch.testing.assert_close(both, loss(mix_samples(given.labels["a"], 0.3)))


def network(**config):
    torch.manual_seed(0)
    model = ResidualUNet(f_maps=(4, 6, 8), deep_supervision=True, **config)
    return model.build(1, {"a": 1, "b": 2}, SHAPE, (1.0, 1.0, 1.0)).train()


def test_features_and_all_skips_above_are_mixed():
    """An oracle from the parts: levels are run by hand, each sample by itself."""
    net, image, level, share = network(), batch().image, 1, 0.3
    found = BatchMix(share, level).through(net)(image)
    assert not torch.equal(found["a"][0], net(image)["a"][0])
    maps = []
    for index in range(3):
        x, own = image[index : index + 1], []
        for part in net.encoder.levels[: level + 1]:
            x = part(x)
            own.append(x)
        maps.append(own)
    mixed = [
        [share * a + (1 - share) * b for a, b in zip(maps[i], maps[i - 1], strict=True)]
        for i in range(3)
    ]
    for index, skips in enumerate(mixed):
        skips = [*skips, net.encoder.levels[2](skips[-1])]
        features = net.decoders["b"](skips)
        for head, feature, logits in zip(net.heads["b"], features, found["b"], strict=False):
            torch.testing.assert_close(head(feature), logits[index : index + 1])


def test_the_gradient_reaches_both_samples():
    net, image = network(), batch().image.requires_grad_()
    outputs = BatchMix(0.3, 2).through(net)(image)
    outputs["a"][0][0].square().sum().backward()
    assert image.grad[0].any()
    assert image.grad[2].any()
    assert not image.grad[1].any()


def test_levels_are_those_of_the_encoder():
    assert network().encoder_levels == 3
    with torch.no_grad():
        for level in range(3):
            BatchMix(0.5, level).through(network())(batch().image)


@pytest.mark.parametrize("level", [0, 2])
def test_a_compiled_network_mixes_alike_without_compiling_for_each_share(level):
    torch._dynamo.reset()
    net, image = network(), batch().image
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(net, backend=backend, dynamic=False, fullgraph=True)
    for share in (0.2, 0.7, 0.9):
        mix = FeatureMix(level, torch.full((), share))
        with torch.no_grad():
            torch.testing.assert_close(compiled(image, None, mix), net(image, None, mix))
    assert len(compilations) == 1
    torch._dynamo.reset()


def test_each_level_mixed_has_a_compiled_program(monkeypatch):
    """Of a network with ten levels, which are more programs than dynamo keeps unless told."""
    torch.compiler.reset()

    class Deep(torch.nn.Module):
        def forward(self, image, _targets, mix):
            return {"sheet": (image * mix.level + mix.share,)}

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    image = torch.ones(2, 1, 2, 2, 2)
    with torch.compiler.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True):
        compiled = CompiledOrEager(Deep(), pytest.fail)
        for level in range(10):
            mixed = compiled(image, None, FeatureMix(level, torch.tensor(0.5)))
            assert mixed["sheet"][0].eq(level + 0.5).all()


def test_processes_with_one_sample_each_are_refused():
    require_pairs(None, 1)
    require_pairs(Mixup(), 2)
    with pytest.raises(TaskError, match=r"mixup: needs two patches to mix, each process has one"):
        require_pairs(Mixup(), 1)
