"""Weights of an encoder from a local file, next to the network that they are of."""

import json
import re
from pathlib import Path

import pytest
import torch

from vcmodels.checkpoint import load_checkpoint
from vcmodels.cli import main
from vcmodels.errors import TaskError
from vcmodels.models import MODELS

pytest.importorskip("monai")
PATCH, SPACING = (1, 64, 64), (1.0, 1.0, 1.0)
BODY = "body.encoder."


def block(**keys):
    given = {"decoder_features": [16, 8, 8, 4, 4], **keys}
    return MODELS["unet_encoder"].model_validate_json(json.dumps(given))


def built(channels, **keys):
    torch.manual_seed(len(keys))
    return block(**keys).build(channels, {"sheet": 1}, PATCH, SPACING)


@pytest.fixture(scope="module")
def colour():
    """A network for three channels."""
    return built(3)


def as_port(network):
    """Its encoder as the first PyTorch port saves an EfficientNet."""
    state = {n.removeprefix(BODY): v for n, v in network.state_dict().items() if n.startswith(BODY)}
    found = {re.sub(r"^_blocks\.\d+\.", "_blocks.", name): value for name, value in state.items()}
    extra = {"_bn0.running_mean": torch.zeros(32), "_fc.weight": torch.zeros(1000, 1280)}
    return found | extra


@pytest.fixture(scope="module")
def file(colour, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "b0.pth"
    torch.save(as_port(colour), path)
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_the_features_of_a_grey_image_are_those_of_the_file(colour, file, channels):
    network = built(channels, encoder_weights=str(file))
    weights = block(encoder_weights=str(file)).first_weights(network)
    assert set(weights) == {n for n in network.state_dict() if n.startswith(BODY)}
    network.load_state_dict(weights, strict=False)
    image = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = stem(colour, image.expand(1, 3, 64, 64))
        found = stem(network, image.expand(1, channels, 64, 64))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    before, now = colour.state_dict(), network.state_dict()
    others = [name for name in weights if not name.endswith("_conv_stem.weight")]
    assert len(others) > 100
    assert all(torch.equal(now[name], before[name]) for name in others)


def stem(network, image):
    """The first convolution: deeper norms of few voxels make much of rounding."""
    encoder = network.body.encoder
    return encoder._conv_stem(encoder._conv_stem_padding(image))


def test_a_training_reads_it_once(file, sheet_task, tmp_path, capsys):
    """The first step moves the weights of the file; to go on needs no file."""
    copy = tmp_path / "copy.safetensors"
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(torch.load(file, weights_only=True), copy)
    sheet_task["model_config"] = {
        "name": "unet_encoder", "decoder_features": [16, 8, 8, 4, 4], "encoder_weights": str(copy),
    }  # fmt: skip
    sheet_task["tr_params"] |= {
        "ckpt_out_base": str(tmp_path / "run"), "patch_size": [1, 64, 64], "freeze": [],
        "max_epoch": 1, "max_steps_per_epoch": 1, "warmup_steps": 100,
    }  # fmt: skip
    path = tmp_path / "task.json"
    path.write_text(json.dumps(sheet_task))
    assert main(["train", str(path)]) == 0
    (last,) = (tmp_path / "run").rglob("*_last.pth")
    state, given = load_checkpoint(last).state["model"], torch.load(file, weights_only=True)
    name = "_blocks.1._expand_conv.weight"
    torch.testing.assert_close(
        state[f"{BODY}_blocks.1.1._expand_conv.weight"], given[name], atol=0.01, rtol=0
    )
    copy.unlink()
    sheet_task["tr_params"]["max_epoch"] = 2
    path.write_text(json.dumps(sheet_task))
    assert main(["train", str(path)]) == 0
    assert main(["train", str(path), "--restart"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "model_config.encoder_weights: there is no file" in line


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.write_text, (self.canary, "ran")


def test_other_weights_and_code_are_refused_in_a_line(colour, tmp_path):
    path, whole = tmp_path / "other.pth", as_port(colour)
    model = block(encoder_weights=str(path))
    outline = model.outline(1, {"sheet": 1}, PATCH, SPACING)

    def refused(value, match):
        torch.save(value, path)
        with pytest.raises(TaskError, match=match) as caught:
            model.first_weights(outline)
        assert "\n" not in str(caught.value)

    lacking = {k: v for k, v in whole.items() if k != "_blocks.3._bn0.bias"}
    refused(lacking, r"1 of \d+ tensors do not fit the encoder: _blocks\.3\._bn0\.bias")
    refused(whole | {"own.weight": torch.zeros(2)}, r"do not fit the encoder: own\.weight")
    deep = {k: v[..., None] if v.ndim == 4 else v for k, v in whole.items()}
    refused(deep, "do not fit the encoder: _conv_stem.weight")
    refused({"_bn0.weight": Evil(tmp_path / "canary")}, "holds more than tensors")
    refused([1], "holds no tensors by name")
    assert not (tmp_path / "canary").exists()
