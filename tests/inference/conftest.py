import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config import Task, parse_task
from vcmodels.data.normalization import Normalization
from vcmodels.inference import (
    InferenceReport,
    Predictor,
    Request,
    RunOptions,
    predict_request,
    request_of,
)
from vcmodels.volumes import create_array, open_volume


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
            if path.is_file() and path.name not in (".zattrs", ".zarray", ".zgroup")
        }


@pytest.fixture
def workplace(tmp_path):
    def make(values: np.ndarray, chunks=(8, 8, 8), **more) -> Workplace:
        folder = tmp_path / f"work{len(list(tmp_path.iterdir()))}"
        return Workplace(folder, values, chunks, **more)

    return make
