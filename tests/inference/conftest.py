import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vcmodels.checkpoint import TrainedNetwork, save_checkpoint
from vcmodels.config import Task, parse_task
from vcmodels.data.normalization import ChannelStatistics, Normalization
from vcmodels.inference import (
    InferenceReport,
    Predictor,
    Request,
    RunOptions,
    predict_request,
    request_of,
)
from vcmodels.volumes import Grid, create_array, open_volume


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny networks run faster on one thread; the tests after these get theirs back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Identity(nn.Module):
    """Gives every head the first channel of its input; counts what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = 0

    def forward(self, image, targets):
        self.patches += len(image)
        return dict.fromkeys(targets, (image[:, :1],))


METADATA = (".zattrs", ".zarray", ".zgroup", "METADATA.ome.xml")


@dataclass
class Workplace:
    """A volume on disk, and predictions of it with a network of the test's choice."""

    folder: Path
    values: np.ndarray
    chunks: tuple[int, int, int]
    network: nn.Module = field(default_factory=Identity)
    dtype: type = np.float32

    def __post_init__(self) -> None:
        self.store = str(self.folder / "input.zarr")
        array = create_array(
            self.store, "raw", shape=self.values.shape, chunks=self.chunks, dtype=self.values.dtype
        )
        volume = open_volume(f"{self.store}/raw", key="input")
        array.write(volume.box, self.values[None])

    def task(self, **inference) -> Task:
        settings = {
            "input_path": f"{self.store}/raw",
            "output_dir": str(self.folder / "out"),
            "output_type": "float32",
            "num_dataloader_workers": 2,
            "output_chunks": [8, 8, 8],
            "patch_size": [6, 8, 10],
            "device": "cpu",
            "pyramid": None,
        }
        task, _ = parse_task(
            {
                "tr_params": {"model_name": "net", "patch_size": [16, 16, 16]},
                "model_config": {"name": "residual_unet", "f_maps": [2, 4]},
                "inference_params": settings | inference,
                "dataset_config": {
                    "normalization": "none",
                    "volume_paths": [{"input": "a.zarr", "value": "b.zarr"}],
                    "targets": {"value": {"kind": "regression"}},
                },
            },
            "test",
        )
        return task

    def trained(self, task: Task, **changes) -> TrainedNetwork:
        # The identity takes any patch, so the patch of the "training" is the one asked for.
        patch = task.inference_params.patch_size
        values = {
            "module": self.network.eval(),
            "task": task,
            "targets": dict(task.dataset_config.targets),
            "normalization": Normalization("none"),
            "patch": patch,
            "spacing": (1.0, 1.0, 1.0),
            "in_channels": 1,
            "sha256": "0" * 64,
            "path": Path("net_best.pth"),
        }
        return TrainedNetwork(**(values | changes))

    def predictor(self, task: Task, **changes) -> Predictor:
        return Predictor((self.trained(task, **changes),))

    def request(self, task: Task, **changes) -> Request:
        return request_of(task, (self.trained(task, **changes),))

    def run(self, *, options=None, **inference) -> InferenceReport:
        return predict_request(self.request(self.task(**inference)), RunOptions(**(options or {})))

    def read(self, target: str = "value") -> np.ndarray:
        volume = open_volume(
            str(self.folder / "out" / "net.zarr" / target / "0"), key="out", channels="any"
        )
        return volume.read(volume.box)[0]

    def hashes(self) -> dict[str, str]:
        root = self.folder / "out" / "net.zarr"
        return {
            str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*"))
            if path.is_file() and path.name not in METADATA
        }


@pytest.fixture
def workplace(tmp_path):
    def make(values: np.ndarray, chunks=(8, 8, 8), **more) -> Workplace:
        folder = tmp_path / f"work{len(list(tmp_path.iterdir()))}"
        return Workplace(folder, values, chunks, **more)

    return make


EXTENT = (20, 33, 26)
TARGETS = {
    "sheet": {"channels": 1, "activation": "sigmoid"},
    "organ": {"channels": 3, "kind": "multiclass", "label_values": [0, 2, 7]},
    "depth": {"channels": 1, "kind": "regression"},
    "normals": {"channels": 3, "kind": "normals"},
    "fibre": {"channels": 3, "kind": "normals", "orientation": "axial"},
}


def write_inputs(folder):
    """Two inputs, to be stacked as channels."""
    rng = np.random.default_rng(0)
    for name, dtype, top in (("ct", "uint8", 255), ("dose", "uint16", 60000)):
        values = rng.integers(0, top, EXTENT).astype(dtype)
        array = create_array(
            str(folder / "in.zarr"),
            name,
            shape=EXTENT,
            chunks=(8, 16, 16),
            dtype=dtype,
            grid=Grid((2.0, 0.5, 0.25), unit="micrometer"),
        )
        array.write(open_volume(str(folder / "in.zarr" / name), key="x").box, values[None])


@pytest.fixture
def place(tmp_path):
    """A folder with two inputs, to be stacked as channels."""
    write_inputs(tmp_path)
    return tmp_path


def make_task(place, normalization="zscore", **inference):
    task, _ = parse_task(
        {
            "tr_params": {
                "model_name": "net",
                "patch_size": [16, 16, 16],
                "ckpt_out_base": str(place / "run"),
                "num_dataloader_workers": 1,
            },
            "model_config": {"name": "residual_unet", "f_maps": [4, 8]},
            "inference_params": {
                "input_path": [str(place / "in.zarr/ct"), str(place / "in.zarr/dose")],
                "output_dir": str(place / "out"),
                "output_targets": ["sheet", "organ", "normals", "fibre"],
                "output_chunks": [16, 16, 16],
                "device": "cpu",
            }
            | inference,
            "dataset_config": {
                "normalization": normalization,
                "volume_paths": [{"input": ["a", "b"], **{name: name for name in TARGETS}}],
                "targets": TARGETS,
            },
        },
        "test",
    )
    return task


def save(place, task, per="global", *, seed=0, name="run/net_best.pth"):
    torch.manual_seed(seed)
    heads = {name: target.channels for name, target in task.dataset_config.targets.items()}
    spacing = (2.0, 0.5, 0.25)
    network = task.model.build(2, heads, (16, 16, 16), spacing)
    stats = tuple(
        ChannelStatistics(m, s, 0, 2 * m, 0, 2 * m, m, s) for m, s in ((128.0, 70.0), (3e4, 2e4))
    )
    normalization = Normalization("zscore", per, channels=stats if per == "global" else ())
    state = {
        "schema": 1, "task": task.to_json(), "model": network.state_dict(), "ema": None,
        "in_channels": 2, "patch_size": [16, 16, 16], "spacing": list(spacing),
        "normalization": normalization.to_dict(),
    }  # fmt: skip
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, state)
    return path


def stored(place, name):
    volume = open_volume(str(place / "out/net.zarr" / name), key="x", channels="any")
    return volume, volume.read(volume.box)
