"""A bundle of MONAI (docs.monai.io, "MONAI Bundle Specification"): configurations, a program, and the card.

`python -m monai.bundle run` predicts with it and needs nothing of ours. The program is that of
`torch_export`; the configuration normalises as we do, and slides a window of the patch size. Files that
MONAI reads have the axes (x, y, z), the network (z, y, x): the image is transposed, and the result back.
"""

import json
from pathlib import Path
from typing import Any

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.data.normalization import Normalization
from vcmodels.data.statistics import ChannelStatistics
from vcmodels.errors import OutputError
from vcmodels.exchange import foreign_bundle, torch_export
from vcmodels.exchange.base import INPUT, Errors, Exported
from vcmodels.exchange.card import card
from vcmodels.exchange.trust import Trust

METADATA, INFERENCE = "configs/metadata.json", "configs/inference.json"
PROGRAM, CARD = "models/model.pt2", "docs/README.md"
MONAI = "1.5"
"""The oldest version with all that a configuration uses."""

Json = dict[str, Any]


def write(model: Exported, folder: Path) -> Errors:
    """Write the bundle into a folder, and run its program.

    Raises:
        OutputError: the network cannot be traced, its inputs are made, or it gives other values.
    """
    model.require_plain_inputs()
    if model.network.normalization.rule is not None:
        found = "measures values as the package that it is from"
        raise OutputError(str(model.checkpoint.path), found, "export it as onnx")
    for name in (METADATA, PROGRAM, CARD):
        (folder / name).parent.mkdir()
    errors = torch_export.write(model, folder / PROGRAM)
    (folder / CARD).write_text(card(model, errors, "BUNDLE"), encoding="utf-8")
    _write_json(folder / METADATA, metadata(model))
    _write_json(folder / INFERENCE, inference(model))
    return errors


def load(path: Path, trust: Trust) -> TrainedNetwork:
    """The network of a bundle; the graph of one of ours is not read.

    Args:
        path: of the bundle.
        trust: whether code in a bundle of others may run.

    Raises:
        CheckpointError: it is damaged, or needs what we do not have.
        RefusedError: MONAI is missing.
    """
    if (path / PROGRAM).is_file():
        return torch_export.load(path / PROGRAM)
    return foreign_bundle.load(path, trust)


def _write_json(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def metadata(model: Exported) -> Json:
    """What `metadata.json` says; what only we read is in the program."""
    network, versions = model.network, model.checkpoint.state.get("versions", {})
    shape = list(network.patch)
    tensor = {"type": "image", "format": "magnitude", "dtype": "float32", "is_patch_data": True}
    outputs = {
        name: {
            **tensor,
            "format": one["kind"],
            "num_channels": one["channels"],
            "spatial_shape": shape,
            "channel_def": {str(number): name for number in range(one["channels"])},
        }
        for name, one in model.record["use"]["outputs"].items()
    }
    image = {**tensor, "num_channels": network.in_channels, "spatial_shape": shape}
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by {model.record['made_by']}"},
        "monai_version": MONAI,
        "pytorch_version": versions.get("torch", ""),
        "numpy_version": versions.get("numpy", ""),
        "required_packages_version": {"nibabel": "5.3"},
        "name": network.task.tr_params.model_name,
        "task": f"Prediction of {', '.join(model.names)} in volumes",
        "description": "A network of vcmodels, see docs/README.md",
        "authors": "",
        "copyright": model.licence or "",
        "network_data_format": {"inputs": {INPUT: image}, "outputs": outputs},
        "vcmodels": model.record["use"],
    }


def inference(model: Exported) -> Json:
    """What `inference.json` says: from a file to a file for each target."""
    network = model.network
    overlap = model.record["use"]["tiling"]["overlap"]
    turned = {"_target_": "Transpose", "indices": [0, 3, 2, 1]}
    saver = {"_target_": "SaveImage", "output_dir": "@output_dir", "separate_folder": False}
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "input": "image.nii.gz",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "cpu",
        "names": list(model.names),
        "program": f"$torch.export.load(@bundle_root + '/{PROGRAM}').module().to(@device)",
        "network": "$lambda image: dict(zip(@names, @program(image.as_subclass(torch.Tensor))))",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImage", "ensure_channel_first": True},
                turned,
                *normalizing(network.normalization),
                {"_target_": "EnsureType", "dtype": "$torch.float32"},
            ],
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(network.patch),
            "sw_batch_size": 1,
            "overlap": overlap,
            "mode": "gaussian",
            "padding_mode": "reflect",
        },
        "activations": {name: _activation(model, name) for name in model.names},
        "back": "$lambda one: one.cpu().as_subclass(torch.Tensor).permute(0, 3, 2, 1)",
        "savers": {name: {**saver, "output_postfix": name} for name in model.names},
        "image": "$@preprocessing(@input)",
        "logits": "$@inferer(@image[None].to(@device), @network)",
        "run": [
            f"$@savers#{name}(@back(@activations#{name}(@logits['{name}'][0])), @image.meta)"
            for name in model.names
        ],
    }


def _activation(model: Exported, name: str) -> str:
    """An expression: from the logits of one image, (C, Z, Y, X), to what they mean."""
    temperature = model.network.temperatures.get(name, 1.0)
    after = {"sigmoid": ".sigmoid()", "tanh": ".tanh()", "softmax": ".softmax(0)", "none": ""}
    return f"$lambda one: (one / {temperature!r}){after[model.network.targets[name].activation]}"


def normalizing(way: Normalization) -> list[Json]:
    """The normalisation as transforms of MONAI."""
    if way.scheme == "none":
        return []
    if way.per == "global":
        return [{"_target_": "Lambda", "func": _scaling(way)}]
    low, high = way.percentiles
    each = {"channel_wise": way.per_channel}
    ends = {"lower": low, "upper": high}
    zscore = {"_target_": "NormalizeIntensity", **each}
    return {
        "zscore": [zscore],
        "ct": [{"_target_": "ClipIntensityPercentiles", **ends, **each}, zscore],
        "minmax": [{"_target_": "ScaleIntensity", "minv": 0.0, "maxv": 1.0, **each}],
        "percentile": [
            {"_target_": "ScaleIntensityRangePercentiles", **ends, "b_min": 0.0, "b_max": 1.0, "clip": True, **each}
        ],
    }[way.scheme]  # fmt: skip


def _scaling(way: Normalization) -> str:
    """An expression: the statistics of the training on an image, (C, Z, Y, X)."""
    rows = [_numbers(way, one) for one in way.channels]
    low, high, offset, spread = (
        f"torch.tensor({list(column)!r}).view(-1, 1, 1, 1)" for column in zip(*rows, strict=True)
    )
    return (
        f"$lambda image: (torch.minimum(torch.maximum(image, {low}), {high}) - {offset}) / {spread}"
    )


def _numbers(way: Normalization, stat: ChannelStatistics) -> tuple[float, float, float, float]:
    """Where a channel is cut, what is subtracted, and what it is divided by."""
    largest = 3e38
    low, high, offset, spread = {
        "zscore": (-largest, largest, stat.mean, stat.sd),
        "ct": (stat.low, stat.high, stat.clipped_mean, stat.clipped_sd),
        "minmax": (-largest, largest, stat.minimum, stat.maximum - stat.minimum),
        "percentile": (stat.low, stat.high, stat.low, stat.high - stat.low),
    }[way.scheme]
    return low, high, offset, spread if spread > 0 and not stat.is_constant else 1.0
