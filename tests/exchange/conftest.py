"""Checkpoints to export: one that was trained, and one with a head of every kind."""

import json

import numpy as np
import pytest
import torch

from vcmodels.checkpoint import load_checkpoint, save_checkpoint
from vcmodels.cli import main
from vcmodels.config import parse_task
from vcmodels.data.normalization import ChannelStatistics, Normalization
from vcmodels.volumes import Grid, create_array, open_volume

EVERY_KIND = {
    "sheet": {"channels": 1, "activation": "sigmoid"},
    "organ": {"channels": 3, "kind": "multiclass", "label_values": [0, 2, 7]},
    "depth": {"channels": 1, "kind": "regression", "output_range": [-4, 4]},
    "normals": {"channels": 3, "kind": "normals"},
    "fibre": {"channels": 3, "kind": "normals", "orientation": "axial"},
    "flow": {"channels": 3, "kind": "vector", "output_range": [-4, 4]},
    "wall": {"channels": 1, "kind": "distance", "clip": 4.0},
}
CHANNELS = (
    ChannelStatistics(100.0, 20.0, 3.0, 240.0, 60.0, 150.0, 98.0, 15.0),
    ChannelStatistics(9.0, 2.0, 1.0, 30.0, 60.0, 150.0, 8.0, 1.5),
)
"""Statistics of two channels, all different; both are clipped at the same values."""
EXTENT = (14, 30, 22)
PATCH = (8, 12, 16)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, phantom):
    """The run folder of two epochs with averaged weights and deep supervision."""
    folder = tmp_path_factory.mktemp("trained")
    volume = {name: str(phantom / name) for name in ("sheet", "normals")}
    task = {
        "tr_params": {
            "model_name": "tiny", "patch_size": [16, 24, 16], "batch_size": 2, "tr_val_split": 0.7,
            "max_steps_per_epoch": 2, "max_val_steps_per_epoch": 1, "max_epoch": 2,
            "num_dataloader_workers": 0, "ckpt_out_base": str(folder / "run"), "amp": "off",
            "compile": False, "warmup_steps": 1,
        },
        "model_config": {"name": "residual_unet", "f_maps": [4, 8, 8], "deep_supervision": True},
        "dataset_config": {
            "min_bbox_percent": 0.1, "min_labeled_ratio": 0.01,
            "normalization": {"scheme": "zscore", "per": "global"},
            "volume_paths": [{"input": str(phantom / "ct"), **volume, "ref_label": "sheet"}],
            "targets": {
                "sheet": {"channels": 1, "activation": "sigmoid", "ignore_label": 2},
                "normals": {"channels": 3, "activation": "none"},
            },
        },
    }  # fmt: skip
    path = folder / "task.json"
    path.write_text(json.dumps(task))
    assert main(["train", str(path)]) == 0
    return folder / "run"


@pytest.fixture(scope="session")
def every_kind(tmp_path_factory):
    """A checkpoint of fresh weights, two channels, a temperature and a head of every kind; and inputs."""
    folder = tmp_path_factory.mktemp("kinds")
    rng = np.random.default_rng(0)
    for name in ("ct", "dose"):
        store = str(folder / "in.zarr")
        create_array(
            store, name, shape=EXTENT, chunks=(8, 16, 16), dtype="uint8",
            grid=Grid((2.0, 0.5, 0.25), unit="micrometer"),
        ).write(
            open_volume(f"{store}/{name}", key="x").box,
            rng.integers(0, 255, (1, *EXTENT)).astype("uint8"),
        )  # fmt: skip
    return save_kinds(folder / "run" / "net_best.pth")


def save_kinds(path, targets=EVERY_KIND, **changes):
    """Write a checkpoint of fresh weights, without a training."""
    task, _ = parse_task(
        {
            "tr_params": {
                "model_name": "net", "patch_size": list(PATCH), "num_dataloader_workers": 1,
                "ckpt_out_base": "/home/somebody/run",
            },
            "model_config": {"name": "residual_unet", "f_maps": [4, 8], "deep_supervision": True},
            "inference_params": {"device": "cpu", "output_chunks": [8, 16, 16], "amp": "off"},
            "dataset_config": {
                "normalization": "zscore",
                "volume_paths": [{"input": ["a", "b"], **{name: name for name in targets}}],
                "targets": targets,
            },
        },
        "test",
    )  # fmt: skip
    torch.manual_seed(0)
    heads = {name: target.channels for name, target in task.dataset_config.targets.items()}
    network = task.model.build(2, heads, PATCH, (2.0, 0.5, 0.25))
    stats = tuple(
        ChannelStatistics(m, s, 0, 2 * m, 0, 2 * m, m, s) for m, s in ((128.0, 70.0), (120.0, 60.0))
    )
    averaged = {name: value * 1.1 for name, value in network.state_dict().items()}
    state = {
        "schema": 1, "task": task.to_json(), "model": network.state_dict(), "ema": averaged,
        "in_channels": 2, "patch_size": list(PATCH), "spacing": [2.0, 0.5, 0.25],
        "unit": "micrometer", "normalization": Normalization("zscore", channels=stats).to_dict(),
        "calibration": {"sheet": {"temperature": 1.5, "error_before": 0.1, "error_after": 0.05}},
        "heads": heads,
    } | changes  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, state)
    assert load_checkpoint(path).state["heads"] == heads
    return path


def predicted(result):
    """The codes of every target of a result."""
    names = [path.name for path in sorted(result.iterdir()) if (path / "0").is_dir()]
    volumes = {n: open_volume(str(result / n / "0"), key="x", channels="any") for n in names}
    return {name: volume.read(volume.box).astype(int) for name, volume in volumes.items()}


def infer(model, checkpoint, result):
    """The codes that `vcmodels infer` writes with a model, of the inputs next to `every_kind`."""
    inputs = [str(checkpoint.parent.parent / "in.zarr" / name) for name in ("ct", "dose")]
    options = ["-o", str(result), "--set", "inference_params.amp=off", "--quiet"]
    assert main(["infer", str(model), *inputs, *options]) == 0
    return predicted(result)
