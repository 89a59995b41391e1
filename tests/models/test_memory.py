"""The closed form against what autograd keeps and what really lives during a step."""

import weakref
from math import prod

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vcmodels.models import Model, ResidualUNet
from vcmodels.models.plan import BYTES_PER_WEIGHT

PATCH, THIN = (16, 24, 32), (8, 32, 48)
ONE, THREE = {"sheet": 1}, {"sheet": 1, "normals": 3, "classes": 4}
CASES = [
    ({}, ONE, PATCH, (1.0, 1.0, 1.0)),
    ({}, THREE, PATCH, (1.0, 1.0, 1.0)),
    ({"decoder": "shared"}, THREE, PATCH, (1.0, 1.0, 1.0)),
    ({"decoder": "shared", "decoder_blocks": 2}, ONE, THIN, (4.0, 1.0, 1.0)),
    ({"preset": "M", "deep_supervision": True}, THREE, THIN, (4.0, 1.0, 1.0)),
    ({"f_maps": (8, 8, 8), "squeeze_excitation": False}, ONE, PATCH, (1.0, 1.0, 1.0)),
]
IDS = ["one head", "three", "shared", "thin", "deep", "constant width"]


@pytest.fixture(params=CASES, ids=IDS)
def case(request):
    options, heads, patch, spacing = request.param
    torch.manual_seed(0)
    config = ResidualUNet(**{"base_features": 8, **options})
    network = config.build(2, heads, patch, spacing).to(memory_format=torch.channels_last_3d)
    image = torch.randn(1, 2, *patch).contiguous(memory_format=torch.channels_last_3d)
    return network, image, config.estimate(2, heads, patch, spacing)


def kept_bytes(network, image, half: bool) -> int:
    """The storages that autograd holds after a forward pass, but for the weights."""
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x  # alive, so that no address comes twice
        return x

    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        outputs = network(image)
    del outputs
    return sum(x.untyped_storage().nbytes() for key, x in kept.items() if key not in weights)


def test_the_estimate_is_what_autograd_keeps(case):
    network, image, memory = case
    assert memory.parameters == sum(p.numel() for p in network.parameters())
    assert memory.kept_bytes(4) == pytest.approx(kept_bytes(network, image, half=False), rel=0.01)


def test_so_it_is_in_half_precision(case):
    """On the CPU autocast averages the shortcuts in float32, copies that CUDA does not make."""
    network, image, memory = case
    found = kept_bytes(network, image, half=True) - 2 * memory.parameters
    assert 0.75 * found < memory.kept_bytes(2) < 1.15 * found


@pytest.mark.parametrize(
    "arguments",
    [*CASES, ({"base_features": 32}, THREE, (64, 96, 128), (2.5, 1.0, 1.0))],
    ids=[*IDS, "wide"],
)
def test_a_pass_on_the_meta_device_counts_the_same_as_the_closed_form(arguments):
    options, heads, patch, spacing = arguments
    config = ResidualUNet(**{"base_features": 8, **options})
    closed = config.estimate(2, heads, patch, spacing)
    counted = Model.estimate(config, 2, heads, patch, spacing)
    assert (counted.parameters, counted.passing) == (closed.parameters, closed.passing)
    # The form leaves out what grows with channels alone: statistics and gates.
    assert counted.normalised == pytest.approx(closed.normalised, rel=0.005)
    assert counted.convolved == pytest.approx(closed.convolved, rel=0.005)


class Peak(TorchDispatchMode):
    """The most bytes that live at once, of storages that are made while it lasts."""

    def __init__(self):
        super().__init__()
        self.live, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.live:
                    self.live[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, storage._cdata)
        return result

    def _free(self, key):
        self.now -= self.live.pop(key, 0)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bf16"])
def test_the_allowance_covers_the_gradients_on_their_way(case, half):
    network, image, memory = case
    for parameter in network.parameters():  # counted with the weights
        parameter.grad = torch.zeros_like(parameter)
    with Peak() as lived:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            outputs = network(image)
        loss = torch.zeros(())
        for maps in outputs.values():
            for x in maps:
                loss = loss + F.binary_cross_entropy_with_logits(x.float(), torch.zeros(x.shape))
        del outputs, maps, x
        loss.backward()
    weights = (4 + 2 * half) * memory.parameters  # gradients before they are added, copies
    estimate = memory.step_bytes(1, 2 if half else 4) - BYTES_PER_WEIGHT * memory.parameters
    # Two thirds: these networks are narrow, so the loss is a large part of what is allowed for.
    assert estimate / 2 < lived.peak < 1.15 * (estimate + weights)


def test_a_patch_more_costs_its_values_and_no_weights():
    memory = ResidualUNet().estimate(1, ONE, (64, 64, 64), (1.0, 1.0, 1.0))
    each = memory.step_bytes(2) - memory.step_bytes(1)
    assert memory.step_bytes(0) == BYTES_PER_WEIGHT * memory.parameters
    assert each == memory.kept_bytes() + 4 * memory.passing


def test_every_head_costs_a_decoder_unless_it_is_shared():
    spacing, patch = (1.0, 1.0, 1.0), (64, 64, 64)
    one, three = (ResidualUNet().estimate(1, heads, patch, spacing) for heads in (ONE, THREE))
    assert three.normalised - one.normalised > 2 * 32 * prod(patch)
    shared = ResidualUNet(decoder="shared").estimate(1, THREE, patch, spacing)
    assert (shared.normalised, shared.convolved) == (one.normalised, one.convolved)
