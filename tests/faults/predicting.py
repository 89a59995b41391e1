"""Predictions that take their time, for workers that are killed."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests.inference.conftest import Workplace
from vcmodels.inference import Part, RunOptions, predict_request, request_of

CASES = {
    "plain": {"pyramid": "auto"},
    "averaged": {"pyramid": 1, "tta": {"flips": ["z", "x"]}, "uncertainty": True},
    "shards": {"pyramid": 2, "output_zarr_format": 3, "output_shards": [16, 8, 16]},
}
"""What is predicted how, by `inference_params`; "averaged" has two networks."""


class Slow(nn.Module):
    """Depends on the place in the patch, and leaves time to be killed."""

    def __init__(self, seconds: float = 0.002, share: float = 1.0) -> None:
        super().__init__()
        self.seconds, self.share = seconds, share

    def forward(self, image, targets):
        time.sleep(self.seconds)
        ramp = np.sin(np.arange(image[0, 0].numel(), dtype=np.float32)).reshape(image[0, 0].shape)
        return {name: (self.share * image[:, :1] + image.new_tensor(ramp),) for name in targets}


def workplace(folder: Path, case: str) -> Workplace:
    """One that predicts a volume which is on the disk already."""
    work = object.__new__(Workplace)
    work.folder, work.store = folder, str(folder / "input.zarr")
    work.network = Slow(2.5e-4) if case == "averaged" else Slow()
    return work


def work_on(
    folder: str | Path, case: str, memory: float, parts: int, output: str | None = None
) -> None:
    """Predict with so much memory, in so many parts, one after the other; elsewhere if named."""
    torch.set_num_threads(1)
    folder = Path(folder)
    work = workplace(folder, case)
    output = output or str(folder / "out")
    task = work.task(memory=memory, output_dir=output, **CASES[case])
    networks = [work.trained(task)]
    if case == "averaged":
        networks += [work.trained(task, module=Slow(2.5e-4, 0.5).eval(), sha256="1" * 64)]
    for index in range(parts):
        request = request_of(task, tuple(networks))
        predict_request(request, RunOptions(part=Part(index, parts)))
