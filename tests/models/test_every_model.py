"""What every network promises, held up to all of them and to one that is registered from here."""

import importlib
import json
import os
import pickle
import re
import signal
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vcmodels.boards import EventWriter
from vcmodels.checkpoint import load_checkpoint
from vcmodels.cli import main
from vcmodels.config import parse_task, task_schema
from vcmodels.devices import place
from vcmodels.errors import TaskError
from vcmodels.models import MODELS, Model
from vcmodels.models.base import part_names, part_of, target_of
from vcmodels.models.blocks import InstanceNorm
from vcmodels.models.fused import fused
from vcmodels.training.learner import Learner
from vcmodels.volumes import open_volume

pytestmark = pytest.mark.usefixtures("graphs")


class ThreeLayers(nn.Module):
    """Two convolutions that all targets share, and one for each."""

    def __init__(self, in_channels: int, heads: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(in_channels, width, 3, padding=1),
            nn.LeakyReLU(),
            nn.Conv3d(width, width, 3, padding=1),
            nn.LeakyReLU(),
        )
        self.heads = nn.ModuleDict({name: nn.Conv3d(width, n, 1) for name, n in heads.items()})

    def forward(self, image: Tensor, targets: Collection[str] | None = None):
        features = self.body(image)
        return {name: (self.heads[name](features),) for name in targets or self.heads}


class TinyConv(Model):
    """Three convolutions."""

    name: Literal["tiny_conv"] = "tiny_conv"
    width: int = 5

    def build(self, in_channels, heads, patch, spacing):
        return ThreeLayers(in_channels, heads, self.width)


OPTIONS = {
    "residual_unet": {"f_maps": [4, 6, 8]},
    "plain_unet": {"f_maps": [4, 6, 8], "decoder": "shared"},
    "tiny_conv": {},
    "medpatchnet": {"f_maps": [4, 6, 8]},
    "segresnet": {"base_features": 8, "blocks_down": [1, 1, 1]},
    "dynunet": {"base_features": 4, "num_levels": 3},
    "vnet": {},
    "attention_unet": {"base_features": 4, "num_levels": 3},
    "swin_unetr": {"base_features": 12},
    "unetr": {"base_features": 4, "hidden_features": 24, "heads": 2},
    "mednext": {"base_features": 4},
    "unet_encoder": {"decoder_features": [16, 8, 8, 4, 4]},
    "monai_network": {
        "options": {"channels": [4, 8], "strides": [2]},
        "features": 4,
        "axes": "xyz",
    },
    "nnunet": {"f_maps": [4, 6, 8], "residual": True, "blocks_per_level": [1, 1, 2]},
}
"""Keys that make a network small."""
LEAST = {
    "swin_unetr": (16, 16, 40), "unet_encoder": (16, 16, 40), "unetr": (16, 16, 20),
    "vnet": (16, 16, 20), "mednext": (16, 16, 20),
}  # fmt: skip
"""The smallest patch along (z, y, x), where it is larger than 16 voxels."""
DEEP = {
    "residual_unet": {"f_maps": [4, 4, 4, 4], "deep_supervision": True},
    "plain_unet": {"f_maps": [4, 4, 4, 4], "deep_supervision": True},
    "nnunet": {"f_maps": [4, 4, 4, 4], "deep_supervision": True},
}
"""Keys with which there are logits of two levels."""
PATCH, SPACING, HEADS = (16, 24, 64), (1.0, 1.0, 1.0), {"sheet": 1, "normals": 3}
CHANNELS = 4
"""Of which the last three are coordinates, for a network that needs them."""


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny_conv", TinyConv)
    torch.manual_seed(0)


@pytest.fixture
def whole():
    """The networks are as large as they come: see `model`."""


@pytest.fixture(params=OPTIONS)
def model(request, monkeypatch) -> Model:
    """A small network of each kind.

    The V-Net has 45 million weights, whatever the task says: nearly all are in the kernels of 5x5x5
    of its deepest levels, which here look at one voxel.
    """
    if request.param == "vnet" and "whole" not in request.fixturenames:
        network = importlib.import_module("monai.networks.nets.vnet")
        original = network.Convolution

        def narrow(*, in_channels, kernel_size, **options):
            kernel = 1 if in_channels >= 128 else kernel_size
            return original(in_channels=in_channels, kernel_size=kernel, **options)

        monkeypatch.setattr(network, "Convolution", narrow)
    return MODELS[request.param].model_validate_json(json.dumps(OPTIONS[request.param]))


def build(model: Model, heads=HEADS) -> nn.Module:
    return model.build(CHANNELS, heads, PATCH, SPACING)


def test_all_networks_are_here():
    assert OPTIONS.keys() == MODELS.keys()
    assert all(model.model_fields["name"].default == name for name, model in MODELS.items())


def test_every_head_has_its_channels_at_full_resolution(whole, model):
    outputs = build(model)(torch.randn(2, CHANNELS, *PATCH))
    assert {name: tuple(maps[0].shape) for name, maps in outputs.items()} == {
        "sheet": (2, 1, *PATCH),
        "normals": (2, 3, *PATCH),
    }


def test_only_the_heads_that_are_asked_for_are_computed(model):
    network, image = build(model).eval(), torch.randn(1, CHANNELS, *PATCH)
    everything, ran = network(image), []
    for name in HEADS:
        network.heads[name].register_forward_hook(lambda *_, name=name: ran.append(name))
        for part in network.heads[name].children():
            part.register_forward_hook(lambda *_, name=name: ran.append(name))
    found = network(image, ["normals"])
    assert list(found) == ["normals"]
    assert set(ran) == {"normals"}
    torch.testing.assert_close(found["normals"][0], everything["normals"][0], atol=0, rtol=0)
    with pytest.raises(KeyError, match="distance"):
        network(image, ["distance"])


@pytest.mark.parametrize("patch", [(32, 32, 40), (4, 40, 48), (1, 64, 40), (40, 64, 1)], ids=str)
def test_it_is_built_for_thick_thin_and_single_slices(model, patch):
    """Logits of each voxel, and a gradient for each weight, in the layout of training and prediction."""
    spacing = (4.0, 1.0, 1.0) if patch[0] < 32 else SPACING
    network = place(model.build(CHANNELS, HEADS, patch, spacing), torch.device("cpu"))
    model.check_patch(patch, spacing)
    logits = network(torch.randn(2, CHANNELS, *patch))
    assert {tuple(maps[0].shape[2:]) for maps in logits.values()} == {patch}
    sum(maps[0].square().sum() for maps in logits.values()).backward()
    assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize("name", DEEP)
def test_coarser_logits_come_in_training_only(name):
    network = build(MODELS[name].model_validate_json(json.dumps(DEEP[name])))
    image = torch.randn(1, CHANNELS, *PATCH)
    assert [tuple(x.shape[2:]) for x in network(image)["sheet"]] == [PATCH, (8, 12, 32)]
    assert [tuple(x.shape[2:]) for x in network.eval()(image)["sheet"]] == [PATCH]


HALF, ODD = (8, 12, 32), {(16, 26, 64), (13, 24, 64)}
REFUSED = {
    "residual_unet": ODD, "plain_unet": ODD, "medpatchnet": ODD, "nnunet": ODD,
    "swin_unetr": {HALF}, "unet_encoder": {HALF}, "unetr": {HALF},
}  # fmt: skip
"""Others take any length. A transformer takes one size, of others the deepest level has one voxel."""


@pytest.mark.parametrize("patch", [PATCH, HALF, *sorted(ODD)], ids=str)
def test_the_patches_that_are_refused_are_those_that_fail(model, patch):
    """A network planned for one patch takes another, or says why not before anything is read."""
    network = build(model)
    try:
        outputs = network(torch.randn(1, CHANNELS, *patch))
        fits = all(maps[0].shape[2:] == patch for maps in outputs.values())
    except (RuntimeError, ValueError):
        fits = False
    assert fits == (patch not in REFUSED.get(model.name, ()))
    if fits:
        model.check_patch(patch, SPACING, planned=PATCH)
        return
    with pytest.raises(ValueError, match=f"patch_size {re.escape(str(list(patch)))} .*"):
        model.check_patch(patch, SPACING, planned=PATCH)


def kept_bytes(network: nn.Module, image: Tensor) -> int:
    """Of the storages that autograd really holds after a pass in float32, without the weights."""
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        network(image)
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    return sum(x.untyped_storage().nbytes() for key, x in kept.items() if key not in weights)


def test_the_estimate_is_what_a_step_keeps(model):
    network, memory = build(model), model.estimate(CHANNELS, HEADS, PATCH, SPACING)
    image = torch.randn(1, CHANNELS, *PATCH).contiguous(memory_format=torch.channels_last_3d)
    found = kept_bytes(network.to(memory_format=torch.channels_last_3d), image)
    assert memory.parameters == sum(p.numel() for p in network.parameters())
    assert memory.kept_bytes() == pytest.approx(found, rel=0.01)
    assert 0.5 * found <= memory.kept_bytes(2) < found
    assert memory.step_bytes(1) > found + 16 * memory.parameters


def test_the_table_has_every_parameter_and_costs_no_weights(model):
    before = torch.get_rng_state()
    summary = model.describe(CHANNELS, HEADS, PATCH, SPACING)
    assert torch.equal(torch.get_rng_state(), before)
    count = sum(p.numel() for p in build(model).parameters())
    assert sum(row.parameters for row in summary.rows) == count
    assert summary.memory == model.estimate(CHANNELS, HEADS, PATCH, SPACING)


def test_weights_follow_from_the_seed_and_go_into_another_network(model):
    networks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        networks.append(build(model).eval())
    image = torch.randn(1, CHANNELS, *PATCH)
    first, again, other = ([x[0] for x in network(image).values()] for network in networks)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    networks[2].load_state_dict(networks[0].state_dict())
    other = [x[0] for x in networks[2](image).values()]
    assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_what_is_named_after_a_target_is_of_that_target_alone(model):
    """So that a task with other targets takes over all the rest, and freezing means what it says."""
    reached: dict[str, set[str]] = {}
    for target in HEADS:
        network = build(model)
        sum(x.square().sum() for x in network(torch.randn(1, CHANNELS, *PATCH))[target]).backward()
        for name, parameter in network.named_parameters():
            users = reached.setdefault(name, set())
            users |= {target} if parameter.grad is not None else set()
    assert all(reached.values())
    for name, users in reached.items():
        of = target_of(part_of(name))
        assert users == ({of} if of in HEADS else set(HEADS)), name
    assert {f"heads.{name}" for name in HEADS} <= set(part_names(reached))


def test_the_fused_network_is_the_network(whole, model):
    patch = LEAST.get(model.name, PATCH)  # in 16 bits the kernels of some take a minute
    network = model.build(CHANNELS, HEADS, patch, SPACING).eval()
    for module in network.modules():
        if isinstance(module, InstanceNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
    image = torch.randn(1, CHANNELS, *patch).to(memory_format=torch.channels_last_3d)
    twin = fused(network)
    with torch.inference_mode():
        expected, found = network(image), twin(image)
        with torch.autocast("cpu", torch.bfloat16):
            half = twin(image)
    for name, (logits,) in expected.items():
        torch.testing.assert_close(found[name][0], logits, atol=2e-5, rtol=1e-4)
        bound = 0.03 if patch == PATCH else 0.05  # of few voxels the deepest norm rounds more
        assert (half[name][0].float() - logits).std() < bound * logits.std()


def test_networks_and_their_blocks_travel_to_other_processes(model):
    assert pickle.loads(pickle.dumps(model)) == model
    network, image = build(model).eval(), torch.randn(1, CHANNELS, *PATCH)
    copied = pickle.loads(pickle.dumps(network))
    for a, b in zip(network(image).values(), copied(image).values(), strict=True):
        torch.testing.assert_close(a[0], b[0], atol=0, rtol=0)


def test_a_task_names_it_and_its_keys(sheet_task, model):
    sheet_task["dataset_config"]["coordinates"] = model.needs_coordinates
    sheet_task["tr_params"]["patch_size"] = list(LEAST.get(model.name, (16, 16, 16)))
    block = {"name": model.name, **OPTIONS[model.name]}
    task, _ = parse_task(sheet_task | {"model_config": block}, "task.json")
    assert task.model == model
    again, _ = parse_task(task.to_json(), "task.json")
    assert again.model == model
    mapping = task_schema()["properties"]["model_config"]["discriminator"]["mapping"]
    assert mapping.keys() == MODELS.keys()
    with pytest.raises(TaskError, match=r"model_config\.widht: unknown key; .*"):
        parse_task(sheet_task | {"model_config": block | {"widht": 3}}, "task.json")


def test_a_network_that_nobody_registered_is_refused(sheet_task, monkeypatch):
    monkeypatch.delitem(MODELS, "tiny_conv")
    with pytest.raises(
        TaskError, match=r'model_config\.name: found "tiny_conv".* "plain_unet", "residual_unet"'
    ):
        parse_task(sheet_task | {"model_config": {"name": "tiny_conv"}}, "task.json")


@pytest.fixture
def command(sheet_task, model, tmp_path, monkeypatch):
    """Runs a command on the phantom with the network; returns its exit code."""
    monkeypatch.chdir(tmp_path)
    sheet_task["model_config"] = {"name": model.name, **OPTIONS[model.name]}
    sheet_task["dataset_config"]["coordinates"] = model.needs_coordinates
    sheet_task["tr_params"] |= {"max_epoch": 1, "max_steps_per_epoch": 3, "freeze": []}
    sheet_task["inference_params"]["bbox"] = [[0, 16], [0, 20], [0, 40]]
    sheet_task["tr_params"]["patch_size"] = list(LEAST.get(model.name, (16, 16, 16)))

    def run(word, folder="run", **settings):
        sheet_task["tr_params"] |= {"ckpt_out_base": str(tmp_path / folder), **settings}
        Path("task.json").write_text(json.dumps(sheet_task))
        return main([word, "task.json"])

    return run


def trained(folder: str) -> dict[str, Tensor]:
    return load_checkpoint(Path(folder, "tiny_last.pth")).state["model"]


def test_it_trains_continues_exactly_and_predicts(command, monkeypatch, tmp_path):
    assert command("train", "whole") == 0
    original = Learner.train_step

    def stopped(self, batches, **kwargs):
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batches, **kwargs)

    monkeypatch.setattr(EventWriter, "_draw_network", lambda *_: None)  # once is enough
    with monkeypatch.context() as context:
        context.setattr(Learner, "train_step", stopped)
        assert command("train", "parts") == 128 + signal.SIGTERM
    assert command("train", "parts") == 0
    whole, parts = trained("whole"), trained("parts")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())

    assert command("infer", "parts") == 0
    (place,) = (tmp_path / "out").glob("*.zarr")
    volume = open_volume(str(place / "sheet"), key="sheet", channels="any")
    assert np.unique(volume.read(volume.box)).size > 3


def test_a_frozen_part_stays_as_it_began(command, model, monkeypatch):
    monkeypatch.setattr(EventWriter, "_draw_network", lambda *_: None)
    part = part_names(name for name, _ in build(model).named_parameters())[0]
    assert command("train", "frozen", max_steps_per_epoch=1, freeze=[part]) == 0
    torch.manual_seed(0)  # as the task has it by default
    channels = 1 + 3 * model.needs_coordinates
    patch = LEAST.get(model.name, (16, 16, 16))
    begun = model.build(channels, HEADS, patch, (7.91, 7.91, 7.91)).state_dict()
    for name, value in trained("frozen").items():
        assert torch.equal(value, begun[name]) == (part_of(name) == part), name


class Halving(nn.Module):
    """Comes back to full resolution by doubling, so that an odd length grows by one."""

    def __init__(self, in_channels: int, heads: Mapping[str, int], *, has_skip: bool) -> None:
        super().__init__()
        # A constructor that computes with values, as those of transformers do.
        rates = [rate.item() for rate in torch.linspace(0.1, 0.3, 2)]
        self.down = nn.Conv3d(in_channels, 4, 3, 2, 1)
        self.drop = nn.Dropout(rates[0])
        self.up = nn.ConvTranspose3d(4, 2, 2, 2)
        self.heads = nn.ModuleDict({name: nn.Conv3d(2, n, 1) for name, n in heads.items()})
        self.has_skip = has_skip

    def forward(self, image: Tensor, targets: Collection[str] | None = None):
        features = self.up(self.drop(self.down(image)))
        if self.has_skip:
            features = features + image[:, :1]
        return {name: (self.heads[name](features),) for name in targets or self.heads}


class HalvingModel(Model):
    name: Literal["halving"] = "halving"
    has_skip: bool = False

    def build(self, in_channels, heads, patch, spacing):
        return Halving(in_channels, heads, has_skip=self.has_skip)


@pytest.mark.parametrize(
    ("has_skip", "message"),
    [
        (
            False,
            r"\[8, 9, 10\] does not fit halving, whose logits have \[8, 10, 10\] voxels; choose another",
        ),
        (True, r"\[8, 9, 10\] does not fit halving \(.+\); choose another"),
    ],
)
def test_a_network_without_a_check_refuses_what_a_pass_cannot_do(has_skip, message):
    model = HalvingModel(has_skip=has_skip)
    model.check_patch((8, 12, 10), SPACING)
    with pytest.raises(ValueError, match=message):
        model.check_patch((8, 9, 10), SPACING)


def test_a_constructor_that_computes_with_values_can_be_estimated():
    model, state = HalvingModel(), torch.get_rng_state()
    memory = model.estimate(1, HEADS, (8, 12, 10), SPACING)
    assert torch.equal(torch.get_rng_state(), state)
    image = torch.randn(1, 1, 8, 12, 10)
    network = model.build(1, HEADS, (8, 12, 10), SPACING)
    assert memory.kept_bytes() == pytest.approx(kept_bytes(network, image), rel=0.01)
