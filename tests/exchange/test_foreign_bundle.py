"""Bundles of MONAI by other programs, next to MONAI's own transforms and sliding window."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vcmodels.checkpoint import load_checkpoint
from vcmodels.cli import main
from vcmodels.errors import CheckpointError
from vcmodels.exchange import Exported, _pack, load_network, load_state
from vcmodels.inference import load_predictor

monai = pytest.importorskip("monai")

from monai.bundle import ConfigParser  # noqa: E402
from monai.inferers import SlidingWindowInferer  # noqa: E402
from monai.networks import nets  # noqa: E402
from monai.transforms import (  # noqa: E402
    ClipIntensityPercentiles,
    Compose,
    NormalizeIntensity,
    ScaleIntensity,
    ScaleIntensityRange,
)

ROI = (16, 8, 12)
"""Along (x, y, z)."""
UNET = {
    "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": "@classes",
    "channels": [4, 8], "strides": [2], "num_res_units": 1, "norm": "batch",
}  # fmt: skip
SEGRESNET = {
    "_target_": "monai.networks.nets.SegResNet", "spatial_dims": 3, "in_channels": 1,
    "out_channels": 3, "init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1],
}  # fmt: skip
RANGE = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 50, "a_max": 150,
         "b_min": -1.0, "b_max": 1.0, "clip": True}  # fmt: skip
SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
KEYS = {"keys": "image"}


def bundle(folder, network=UNET, steps=(RANGE,), after=(SOFTMAX,), **changes):
    """Written by MONAI, with random weights; returns the network."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    first = [{"_target_": "LoadImaged", **KEYS}, {"_target_": "EnsureChannelFirstd", **KEYS}]
    config = {
        "imports": ["$import glob"], "classes": 3, "roi": list(ROI), "output_dir": "$print('x')",
        "network_def": network,
        "network": "$@network_def.to('cpu')",
        "preprocessing": {"_target_": "Compose", "transforms": [*first, *steps]},
        "inferer": {
            "_target_": "SlidingWindowInferer", "roi_size": "$@roi", "overlap": 0.0,
            "sw_batch_size": 4,
        },
        "postprocessing": {"_target_": "Compose", "transforms": [
            *after, {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"},
        ]},
    } | changes  # fmt: skip
    tensor = {"type": "image", "num_channels": 1, "spatial_shape": list(ROI)}
    names = {"0": "background", "1": "liver", "2": "tumour"}
    out = {"type": "image", "num_channels": 3, "channel_def": names}
    metadata = {
        "version": "0.1.0", "name": "some bundle", "monai_version": monai.__version__,
        "network_data_format": {"inputs": {"image": tensor}, "outputs": {"pred": out}},
    }  # fmt: skip
    for name, value in (("metadata", metadata), ("inference", config)):
        ConfigParser.export_config_file(value, str(folder / "configs" / f"{name}.json"))
    made = getattr(nets, network["_target_"].split(".")[-1])
    torch.manual_seed(0)
    options = {k: v for k, v in network.items() if k != "_target_"} | {"out_channels": 3}
    net = made(**options)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm3d):
            nn.init.uniform_(part.running_mean, -0.1, 0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    torch.save(net.state_dict(), folder / "models" / "model.pt")
    return net.eval()


def with_network(folder, network):
    """A bundle whose configuration names another network than its weights are of."""
    bundle(folder)
    place = folder / "configs" / "inference.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"network_def": network}))


def volume(seed=0):
    """(Z, Y, X), of whole patches, and mostly of one value."""
    found = np.random.default_rng(seed).normal(100, 30, (24, 16, 32)).astype(np.float32)
    found[:, :, 20:] = 0
    return found


def by_monai(net, array, transforms):
    """(Z, Y, X) -> logits (C, Z, Y, X), through MONAI's own (x, y, z)."""
    image = Compose(transforms)(torch.from_numpy(array.transpose(2, 1, 0).copy())[None])
    with torch.no_grad():
        slide = SlidingWindowInferer(ROI, overlap=0.0)
        found = slide(torch.as_tensor(np.asarray(image))[None], net)
    return found[0].permute(0, 3, 2, 1)


NORMALIZED = {"_target_": "NormalizeIntensityd", **KEYS}
CHAINS = {
    "range": ([RANGE], [ScaleIntensityRange(50, 150, -1.0, 1.0, clip=True)]),
    "deviation": ([NORMALIZED], [NormalizeIntensity()]),
    "nonzero": (
        [{**NORMALIZED, "nonzero": True, "channel_wise": True}],
        [NormalizeIntensity(nonzero=True, channel_wise=True)],
    ),
    "given": (
        [{**NORMALIZED, "subtrahend": 90.0, "divisor": 12.0}],
        [NormalizeIntensity(subtrahend=90.0, divisor=12.0)],
    ),
    "scale": (
        [{"_target_": "ScaleIntensityd", **KEYS, "minv": -1.0, "maxv": 1.0}],
        [ScaleIntensity(-1.0, 1.0)],
    ),
    "cut": (
        [{"_target_": "ClipIntensityPercentilesd", **KEYS, "lower": 2, "upper": 90}, NORMALIZED],
        [ClipIntensityPercentiles(2, 90), NormalizeIntensity()],
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_it_predicts_what_monai_predicts(tmp_path, name):
    steps, transforms = CHAINS[name]
    net, array = bundle(tmp_path / "b", steps=steps), volume()
    predictor = load_predictor(tmp_path / "b")
    assert predictor.patch == ROI[::-1]
    assert list(predictor.targets) == ["label"]
    params = predictor.params.changed(amp="off")
    found = predictor.predict(array, params=params)["label"]
    logits = by_monai(net, array, transforms)
    top = logits.topk(2, 0).values
    sure = (top[0] - top[1]).numpy() > 1e-4
    assert sure.mean() > 0.98
    np.testing.assert_array_equal(found[sure], logits.argmax(0).numpy()[sure])


def test_each_channel_of_a_sigmoid_is_a_mask(tmp_path):
    sigmoid = [{"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
               {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}]  # fmt: skip
    net, array = bundle(tmp_path / "b", SEGRESNET, after=sigmoid), volume(1)
    predictor = load_predictor(tmp_path / "b")
    found = predictor.predict(array, params=predictor.params.changed(amp="off"))
    transforms = [ScaleIntensityRange(50, 150, -1.0, 1.0, clip=True)]
    wanted = by_monai(net, array, transforms).sigmoid().numpy()
    assert list(found) == ["mask_background", "mask_liver", "mask_tumour"]
    for values, one in zip(found.values(), wanted, strict=True):
        np.testing.assert_allclose(values, one, atol=1e-5)


def test_orientation_and_spacing_become_prepare(tmp_path):
    steps = [{"_target_": "Orientationd", **KEYS, "axcodes": "RAS"},
             {"_target_": "Spacingd", **KEYS, "pixdim": [1.5, 1.0, 2.0], "mode": "bilinear"},
             RANGE]  # fmt: skip
    bundle(tmp_path / "b", steps=steps)
    network = load_network(tmp_path / "b")
    prepare = network.task.dataset_config.prepare
    assert prepare.codes == "RAS"
    assert prepare.sides == network.spacing == (2.0, 1.0, 1.5)
    assert (network.unit, prepare.order.image) == ("millimeter", "linear")


def test_the_command_predicts_with_an_archive_and_exports_the_weights(tmp_path, phantom, capsys):
    net = bundle(tmp_path / "made" / "some_bundle")
    archive = tmp_path / "b.zip"
    _pack(tmp_path / "made", archive)
    result = tmp_path / "out.zarr"
    assert main(["infer", str(archive), str(phantom / "ct"), "-o", str(result)]) == 0
    assert "blended by our window" in capsys.readouterr().out
    assert (result / "label").is_dir()
    model = Exported.of(load_state(archive))
    with torch.no_grad():
        image = model.image()
        wanted = net(image.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
    np.testing.assert_allclose(model.logits(image)["label"], wanted.numpy(), atol=1e-5)


def test_a_training_starts_from_it(tmp_path, sheet_task, capsys):
    """With a head for another target, and the normalisation that the weights are used to."""
    bundle(tmp_path / "b")
    found = load_network(tmp_path / "b")
    sheet_task["model_config"] = found.task.to_json()["model_config"]
    sheet_task["tr_params"] |= {
        "ckpt_out_base": str(tmp_path / "run"), "max_epoch": 1, "max_steps_per_epoch": 1,
        "checkpoint_path": str(tmp_path / "b"), "patch_size": [16, 16, 16], "freeze": [],
    }  # fmt: skip
    path = tmp_path / "task.json"
    path.write_text(json.dumps(sheet_task))
    assert main(["train", str(path)]) == 2
    assert "tr_params.load_weights_only: is not given" in capsys.readouterr().err
    sheet_task["tr_params"]["load_weights_only"] = True
    path.write_text(json.dumps(sheet_task))
    assert main(["train", str(path)]) == 0
    assert "taken: body; new and random: heads." in capsys.readouterr().out
    (last,) = (tmp_path / "run").rglob("*_last.pth")
    assert (
        load_checkpoint(last).state["normalization"]["channels"]
        == (found.normalization.to_dict()["channels"])
    )


def refused(folder, match, **options):
    with pytest.raises(CheckpointError, match=match) as caught:
        load_network(folder, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"steps": [{"_target_": "RandGaussianNoised"}]}, "the step RandGaussianNoise, which"),
        ({"steps": [{**RANGE, "a_min": "$min(3, 4)"}]}, "ScaleIntensityRange with code for a_min"),
        ({"steps": [RANGE, NORMALIZED]}, "the step NormalizeIntensity after another step"),
        ({"after": [{"_target_": "MadeUpd"}]}, "the step MadeUp after its network"),
        ({"inferer": {"roi_size": "@roj"}}, "@roj names nothing"),
        ({"roi": "@roi"}, "go round in a circle"),
        ({"network": {**UNET, "strides": []}}, "UNet cannot be built"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(tmp_path, changes, match):
    if "network" in changes:
        with_network(tmp_path / "b", **changes)
    else:
        bundle(tmp_path / "b", **changes)
    refused(tmp_path / "b", match)


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.write_text, (self.canary, "ran")


def test_code_does_not_run_without_trust(tmp_path):
    """Neither expressions, nor classes that are not MONAI's networks, nor what a pickle calls."""
    canary = tmp_path / "canary"
    code = f"$__import__('pathlib').Path({str(canary)!r}).write_text('ran')"
    with_network(tmp_path / "a", {**UNET, "act": code})
    refused(tmp_path / "a", "needs its network UNet, which is code")
    with_network(tmp_path / "b", {"_target_": "os.system", "command": f"touch {canary}"})
    refused(tmp_path / "b", r"needs its network os\.system, which is code .*give --trust")
    bundle(tmp_path / "c", output_dir=code)
    load_network(tmp_path / "c")
    torch.save({"a": Evil(canary)}, tmp_path / "c" / "models" / "model.pt")
    refused(tmp_path / "c", "holds more than tensors")
    (tmp_path / "c" / "models" / "model.pt").write_bytes(pickle.dumps(Evil(canary)))
    refused(tmp_path / "c", r"model\.pt (holds more than tensors|is damaged)")
    assert not canary.exists()


def test_trusted_code_makes_the_network(tmp_path):
    folder = tmp_path / "b"
    with_network(folder, {**UNET, "dropout": "$0.0 * 2"})
    refused(folder, "needs its network UNet, which is code")
    network = load_network(folder, trust=True)
    assert any("running the network of configs/inference.json" in n for n in network.notes)
    other = tmp_path / "other"
    bundle(other)
    image = torch.randn(1, 1, *ROI[::-1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, wanted = (n.module(image)["label"][0] for n in (network, load_network(other)))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_damaged_bundles_are_refused(tmp_path):
    folder = tmp_path / "b"
    bundle(folder)
    place = folder / "models" / "model.pt"
    whole = place.read_bytes()
    place.write_bytes(whole[:-300])
    refused(folder, r"model\.pt is damaged")
    weights = torch.load(io.BytesIO(whole), weights_only=True)
    torch.save(dict(list(weights.items())[1:]), place)
    refused(folder, "do not fit the network")
    (folder / "configs" / "inference.json").write_text("{")
    refused(folder, "its configuration is damaged")
