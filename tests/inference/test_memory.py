"""Resident memory, as the system counts it, of predictions in processes of their own."""

import os
import subprocess
import sys

import numpy as np
import pytest

from vcmodels.geometry.boxes import Box
from vcmodels.volumes import create_array

CHILD = """
import sys
from pathlib import Path
import torch
from tests.inference.conftest import Identity, Workplace
torch.set_num_threads(1)
work = object.__new__(Workplace)
work.folder, work.store, work.network = Path(sys.argv[1]), sys.argv[1] + "/input.zarr", Identity()
def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024
settings = {"patch_size": [32] * 3, "output_chunks": [64] * 3, "memory": float(sys.argv[2]),
            "compile": False}
work.run(bbox=[[0, 32]] * 3, **settings)
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = resident("VmRSS")
work.run(options={"overwrite": True}, **settings)
print(resident("VmHWM") - before)
"""

PEAK = """
import sys
from pathlib import Path
import torch
from tests.inference.conftest import Identity, Workplace
from vcmodels.inference.cost import peak_bytes
torch.set_num_threads(1)
work = object.__new__(Workplace)
work.folder, work.store, work.network = Path(sys.argv[1]), sys.argv[1] + "/input.zarr", Identity()
is_dry = sys.argv[2] == "plan"
settings = {"patch_size": [48] * 3, "output_chunks": [64] * 3, "memory": 1, "compile": False,
            "pyramid": "auto"}
report = work.run(options={"dry_run": is_dry}, **settings)
print(report.estimate.memory_bytes if is_dry else peak_bytes())
"""


def growth(folder, shape, memory):
    """MiB that a prediction of a volume takes at most over the loaded process."""
    fill(folder, shape)
    return answer(CHILD, folder, memory)


def fill(folder, shape):
    array = create_array(
        str(folder / "input.zarr"), "raw", shape=shape, chunks=(64,) * 3, dtype=np.float32
    )
    for z in range(0, shape[0], 64):
        array.write(Box((z, 0, 0), (64, *shape[1:])), np.ones((1, 64, *shape[1:]), np.float32))


def answer(code, folder, argument):
    """The number that code says in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(argument)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return float(done.stdout)


@pytest.mark.slow
def test_memory_keeps_to_its_budget_and_does_not_grow_with_the_volume(tmp_path):
    shapes = [(128, 256, 256), (320, 256, 256), (128, 256, 640)]
    found = [growth(tmp_path / str(n), shape, 0.06) for n, shape in enumerate(shapes)]
    # How far the threads happen to be apart shows, and what the allocator keeps: some MiB each way.
    assert max(found) < 1.1 * 0.06e9 / 2**20 + 16, found
    assert max(found) < 1.25 * min(found) + 16, found


@pytest.mark.slow
def test_the_dry_run_knows_the_peak(tmp_path):
    fill(tmp_path, (128, 512, 384))
    planned, real = (answer(PEAK, tmp_path, what) for what in ("plan", "run"))
    assert planned == pytest.approx(real, rel=0.1)
