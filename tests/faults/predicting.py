"""Predictions that take their time, for workers that are killed."""

import errno
import os
import resource
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.inference.conftest import Workplace
from vcmodels.errors import RefusedError
from vcmodels.geometry.boxes import Box, triple
from vcmodels.inference import Part, RunOptions, predict_request, request_of
from vcmodels.volumes.backend import ArrayHandle
from vcmodels.volumes.writer import WritableArray

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


def work_within(limit: int, **manner: Any) -> int:
    """Predict where no file may become larger than so many bytes; the exit code."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        work_on(**manner)
    except OSError as error:  # the command line ends with 1, and names it
        return int(error.errno == errno.EFBIG)
    return 0


def work_together(processes: int, **manner: Any) -> int:
    """Let several processes predict into one output at once; how many were neither through nor refused."""
    children = []
    for _ in range(processes):
        child = os.fork()
        if child == 0:
            try:
                work_on(**manner)
                os._exit(0)
            except RefusedError:
                os._exit(2)
            finally:
                os._exit(1)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return 0 if 0 in codes and set(codes) <= {0, 2} else 1


def write_for_ever(location: str, shape: list[int]) -> None:
    """Write the same voxels again and again."""
    array, box = WritableArray(ArrayHandle(location, 3, "r+")), Box((0, 0, 0), triple(shape))
    while True:
        array.write(box, numbers(shape))


def numbers(shape: Sequence[int]) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 255, (1, *shape)).astype(np.uint8)
