"""Weights of one task in the network of another."""

import copy

import pytest
import torch

from vcmodels.errors import CheckpointError
from vcmodels.models import ResidualUNet
from vcmodels.training.learner import transfer

PATCH, SPACING = (8, 8, 16), (1.0, 1.0, 1.0)


def network(seed, heads, in_channels=1, **config):
    torch.manual_seed(seed)
    model = ResidualUNet(f_maps=(4, 8), **config)
    return model.build(in_channels, heads, PATCH, SPACING)


def changed(net, before):
    """Names of the tensors that differ."""
    return {
        name for name, value in net.state_dict().items() if not torch.equal(value, before[name])
    }


def under(net, *parts):
    return {name for name in net.state_dict() if name.startswith(tuple(f"{p}." for p in parts))}


def test_heads_that_fit_are_taken_and_the_others_are_named():
    old = network(0, {"sheet": 1, "ink": 2, "normals": 3})
    new = network(1, {"ink": 4, "sheet": 1, "fibre": 1})
    before = copy.deepcopy(new.state_dict())
    found = transfer([new], old.state_dict(), "old.pth", {"sheet", "ink", "normals", "fibre"})
    for name in under(new, "encoder", "decoders.sheet", "heads.sheet", "decoders.ink"):
        assert torch.equal(new.state_dict()[name], old.state_dict()[name]), name
    kept = under(new, "heads.ink", "decoders.fibre", "heads.fibre")
    assert kept == new.state_dict().keys() - set(found.taken)
    assert not changed(new, before) & kept
    assert str(found) == (
        "taken: encoder, decoders.ink, decoders.sheet, heads.sheet; "
        "new and random: decoders.fibre, heads.fibre, heads.ink; "
        "not used: decoders.normals, heads.ink, heads.normals"
    )


def test_the_average_gets_the_same_weights():
    old = network(0, {"sheet": 1})
    new = network(1, {"sheet": 1, "ink": 1})
    averaged = copy.deepcopy(new)
    transfer([new, averaged], old.state_dict(), "old.pth", {"sheet", "ink"})
    assert changed(new, averaged.state_dict()) == set()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"in_channels": 2},
            r"2 tensors .* share .*encoder\.levels\.0\.\S+ is \[4, 1, 3, 3, 3\], here is \[4, 2, 3",
        ),
        ({"squeeze_excitation": False}, r"excite\.\w+ is \[\d+.*\], here is missing"),
        ({"decoder": "shared"}, r"decoders\.decoder\.\S+ is missing, here is \["),
    ],
    ids=["channels", "extra", "decoder"],
)
def test_a_shared_part_that_does_not_fit_is_refused_and_nothing_changes(settings, match):
    old, new = network(0, {"sheet": 1}), network(1, {"sheet": 1}, **settings)
    before = copy.deepcopy(new.state_dict())
    with pytest.raises(CheckpointError, match=match):
        transfer([new], old.state_dict(), "old.pth", {"sheet"})
    assert changed(new, before) == set()


def test_partial_takes_whatever_fits():
    old, new = network(0, {"sheet": 1}), network(1, {"sheet": 1}, in_channels=2)
    before = copy.deepcopy(new.state_dict())
    found = transfer([new], old.state_dict(), "old.pth", {"sheet"}, partial=True)
    assert set(found.fresh) == {
        name for name, value in before.items() if value.shape != old.state_dict()[name].shape
    }
    assert 0 < len(found.fresh) < 3
    assert not changed(new, before) & set(found.fresh)
    assert changed(new, old.state_dict() | {n: before[n] for n in found.fresh}) == set()
    assert str(found).startswith("taken: encoder (in part), decoders.sheet")


def test_nothing_that_fits_is_refused():
    old, new = network(0, {"sheet": 1}), network(1, {"sheet": 1}, in_channels=2)
    weights = {f"other.{name}": value for name, value in old.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"old\.pth: no weight fits"):
        transfer([new], weights, "old.pth", {"sheet"}, partial=True)


@pytest.mark.parametrize("partial", [False, True])
def test_weights_that_are_not_finite_are_refused(partial):
    old, new = network(0, {"sheet": 1}), network(1, {"sheet": 1})
    old.heads["sheet"][0].bias.data[0] = torch.nan
    before = copy.deepcopy(new.state_dict())
    with pytest.raises(CheckpointError, match=r"heads\.sheet\.0\.bias holds NaN"):
        transfer([new], old.state_dict(), "old.pth", {"sheet"}, partial=partial)
    assert changed(new, before) == set()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_do_not_matter(prefix):
    old, new = network(0, {"sheet": 1}), network(1, {"sheet": 1})
    weights = {prefix + name: value for name, value in old.state_dict().items()}
    assert transfer([new], weights, "old.pth", {"sheet"}).fresh == []
    assert changed(new, old.state_dict()) == set()


def test_a_decoder_of_another_depth_starts_anew_as_a_whole():
    old, new = network(0, {"sheet": 1}), network(1, {"sheet": 1}, decoder_blocks=2)
    before = copy.deepcopy(new.state_dict())
    found = transfer([new], old.state_dict(), "old.pth", {"sheet"})
    assert set(found.fresh) == under(new, "decoders.sheet")
    assert not changed(new, before) & set(found.fresh)
    assert str(found) == (
        "taken: encoder, heads.sheet; new and random: decoders.sheet; not used: decoders.sheet"
    )
