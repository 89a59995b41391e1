"""Channels are removed whole, with all that goes with them, and those that do nothing first."""

import json
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vcmodels.models import MODELS, Model
from vcmodels.models.coupling import coupling_of
from vcmodels.models.narrowing import first_order, kept_channels, narrowed_weights, narrower

PATCH, SPACING, HEADS = (16, 16, 24), (1.0, 1.0, 1.0), {"sheet": 1, "normals": 3}
PRUNABLE = {
    "residual": ("residual_unet", {"f_maps": [6, 10, 12]}),
    "alike": (  # levels of one width share their channels where a shortcut has no convolution
        "residual_unet",
        {"f_maps": [4, 8, 8], "blocks_per_level": 2, "decoder": "shared", "deep_supervision": True},
    ),
    "plain": ("plain_unet", {"f_maps": [6, 10, 12]}),
    "dynunet": ("dynunet", {"base_features": 4, "num_levels": 3, "residual": True}),
    "attention": ("attention_unet", {"base_features": 4, "num_levels": 3}),
    "mednext": ("mednext", {"base_features": 4}),
    "nnunet": ("nnunet", {"f_maps": [6, 10, 12], "residual": True, "blocks_per_level": [1, 2, 1]}),
}
"""By what is special, a network and its keys."""


def model_of(name: str, **keys: object) -> Model:
    return MODELS[name].model_validate_json(json.dumps(keys))


@pytest.fixture(params=PRUNABLE)
def model(request) -> Model:
    name, keys = PRUNABLE[request.param]
    return model_of(name, **keys)


def patch_of(model: Model):
    return (16, 16, 32) if model.name == "mednext" else PATCH


def networks(model: Model, share: float = 0.5, in_channels: int = 1):
    """The wide network with random weights, the narrower one, and the coupling."""
    torch.manual_seed(0)
    patch = patch_of(model)
    small = model.narrowed(share, patch, SPACING)
    wide, narrow = (m.build(in_channels, HEADS, patch, SPACING).eval() for m in (model, small))
    for weight in wide.parameters():
        if weight.ndim == 1:
            nn.init.normal_(weight, 0.5, 0.5)
    outline = model.outline(in_channels, HEADS, patch, SPACING)
    return wide, narrow, coupling_of(outline, in_channels, patch)


def shapes_of(network: nn.Module) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in network.state_dict().items()}


@torch.no_grad()
def kill(network: nn.Module, coupling, shapes) -> None:
    """Make zero, of each group, random channels that are too many for these shapes."""
    chance = np.random.default_rng(0).random(1 + max(c.max() for c in coupling.sides.values()))
    kept = kept_channels(coupling, shapes, chance)
    weights = dict(network.named_parameters())
    for side, channels in coupling.sides.items():
        is_gate = side.weight.endswith("squeeze.weight")  # reads a deviation, which is never 0
        if side not in coupling.readers or is_gate:
            dead = torch.from_numpy(np.flatnonzero(~kept[channels]))
            weights[side.weight].index_fill_(side.axis, dead, 0.0)


def test_what_is_dead_goes_and_the_function_stays(model):
    wide, narrow, coupling = networks(model)
    kill(wide, coupling, shapes_of(narrow))
    image = torch.randn(1, 1, *patch_of(model))
    sum(maps[0].square().sum() for maps in wide(image).values()).backward()
    scores = first_order(wide, coupling) ** 2
    narrow.load_state_dict(narrowed_weights(wide, coupling, narrow, scores))
    with torch.no_grad():
        expected, found = wide(image), narrow(image)
    for name, (logits, *_) in expected.items():
        scale = float(logits.abs().max())
        torch.testing.assert_close(found[name][0] / scale, logits / scale, atol=1e-5, rtol=0)
    count = sum(weight.numel() for weight in narrow.parameters())
    assert count < 0.4 * sum(weight.numel() for weight in wide.parameters())


def test_the_widths_are_as_asked():
    small = model_of("residual_unet", f_maps=[16, 32, 63]).narrowed(0.25, (16, 16, 16), SPACING)
    assert small.model_dump()["f_maps"] == (4, 8, 16)
    planned = model_of("plain_unet", base_features=8, max_features=12)
    assert planned.narrowed(0.5, (16, 16, 16), SPACING).model_dump()["f_maps"] == (4, 6, 6)
    assert [narrower(n, 0.1) for n in (1, 4, 16)] == [1, 1, 2]


class Gated(nn.Module):
    """Two convolutions, and a factor of each channel between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 5, 3, padding=1), nn.Conv3d(5, 2, 3)
        self.heads = nn.ModuleDict({"sheet": nn.Conv3d(2, 1, 1)})

    def forward(self, image, factor=None):
        features = F.leaky_relu(self.first(image))
        if factor is not None:
            features = features * factor[:, None, None, None]
        return {"sheet": (self.heads["sheet"](self.second(features)),)}


def test_the_score_is_the_derivative_by_a_factor_of_the_channel():
    torch.manual_seed(0)
    network, image, factor = Gated(), torch.randn(2, 1, 6, 7, 8), torch.ones(5, requires_grad=True)
    network(image, factor)["sheet"][0].square().mean().backward()
    with torch.device("meta"):
        coupling = coupling_of(Gated(), 1, (6, 7, 8))
    scores = first_order(network, coupling)[coupling.sides["second.weight", 1]]
    assert factor.grad is not None
    np.testing.assert_allclose(scores, factor.grad.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("segresnet", "norms take statistics of several channels together"),
        ("vnet", "features of its levels are fixed"),
        ("swin_unetr", "attention has heads of many channels"),
        ("unetr", "attention has heads of many channels"),
        ("unet_encoder", "features of its encoder are fixed"),
        ("medpatchnet", "filters of its heads are made by another network"),
    ],
)
def test_others_say_why_they_stay_as_wide_as_they_are(name, why):
    with pytest.raises(ValueError, match=f"{why}; make a smaller one by model_config"):
        model_of(name).narrowed(0.5, (32, 32, 32), SPACING)


def test_every_network_is_pruned_or_refused():
    refused = {name for name, model in MODELS.items() if model.narrowed is Model.narrowed}
    assert refused | {name for name, _ in PRUNABLE.values()} == MODELS.keys()


def test_a_network_that_adds_the_image_to_features_is_refused():
    wide, narrow, coupling = networks(model_of("residual_unet", f_maps=[4, 8]), in_channels=4)
    with pytest.raises(ValueError, match=r"with fewer channels it has other weights, .*shortcut"):
        narrowed_weights(wide, coupling, narrow, np.zeros(10_000))
    shapes = {
        name: (2, *shape[1:]) if name.startswith("encoder.levels.0.") else shape
        for name, shape in shapes_of(wide).items()
    }
    with pytest.raises(ValueError, match="adds the image itself"):
        kept_channels(coupling, shapes, np.zeros(10_000))


def test_levels_that_rounding_makes_alike_are_refused():
    wide, narrow, coupling = networks(model_of("residual_unet", f_maps=[2, 3]), 0.4)
    with pytest.raises(ValueError, match="has other weights"):
        narrowed_weights(wide, coupling, narrow, np.zeros(10_000))


class Odd(nn.Module):
    """Does one thing with features that cannot be followed."""

    def __init__(self, step) -> None:
        super().__init__()
        self.first, self.step = nn.Conv3d(1, 4, 1), step
        self.heads = nn.ModuleDict({"sheet": nn.Conv3d(4, 1, 1)})

    def forward(self, image):
        return {"sheet": (self.heads["sheet"](self.step(self.first(image))),)}


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (lambda x: x.flip(1), "an operation flip"),
        (lambda x: torch.cat([x[:, 2:], x[:, :2]], 1), "takes channels apart"),
        (lambda x: F.group_norm(x, 2), "several channels together"),
        (lambda x: x + torch.ones(1, 4, 1, 1, 1, device="meta"), "an operation ones"),
        (lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4)), "an operation zeros"),
        (lambda x: torch.cat([x, x], 2)[:, :, :4], "moves channels"),
    ],
    ids=["flip", "slices", "group_norm", "constant", "batch_norm", "cat"],
)
def test_what_cannot_be_followed_is_refused(step, why):
    with torch.device("meta"), pytest.raises(ValueError, match=why):
        coupling_of(Odd(step), 1, (4, 5, 6))


class Narrow(Model):
    name: Literal["narrow"] = "narrow"

    def build(self, in_channels, heads, patch, spacing):
        raise NotImplementedError


def test_a_network_from_elsewhere_says_how_it_is_made_narrower_or_is_refused():
    with pytest.raises(ValueError, match="its class does not say how it is made narrower"):
        Narrow().narrowed(0.5, PATCH, SPACING)
