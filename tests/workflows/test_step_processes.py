"""Steps in several real processes of the command line, killed and continued: the bytes of one.

All steps read the same array: one that reads what another wrote notes the times of its files as well.
"""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vcmodels.cli import main
from vcmodels.volumes import Grid, write_volume
from vcmodels.workflows.step_work import FOLDER

SHAPE = (24, 21, 31)
STEPS = [
    {"name": "components", "output": "blobs", "from": "source", "threshold": 0.5},
    {"name": "sizes", "output": "large", "from": "source", "min_size": 30},
    {"name": "smooth", "output": "smooth", "from": "source", "radius": 1},
]
SECONDS = 200.0
"""How long a process is waited for: a busy machine starts one slowly."""


class Place:
    """An array, steps on it, and commands that do them."""

    def __init__(self, folder):
        self.folder = folder
        noise = np.random.default_rng(4).normal(size=SHAPE)
        values = gaussian_filter(noise, 1.2) > 0.05
        self.array, self.steps = folder / "mask.zarr", folder / "steps.json"
        grid = Grid((2.0, 1.0, 1.0), (5.0, 0.0, 0.0), "micrometer")
        write_volume(str(self.array), values.astype(np.uint8), grid=grid, chunks=(8, 8, 8))
        self.steps.write_text(json.dumps(STEPS))
        self.out = folder / "out.zarr"
        assert main(self.words("--workers", "1")) == 0
        self.alone = self.hashes()

    def words(self, *more):
        """Of the command that does the steps."""
        fixed = ["--kind", "binary", "--steps", str(self.steps), "-o", str(self.out), "--quiet"]
        return ["postprocess", str(self.array), *fixed, *more]

    def start(self, *more):
        return subprocess.Popen([sys.executable, "-m", "vcmodels", *self.words(*more)])

    def hashes(self):
        return {
            str(path.relative_to(self.out)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.out.rglob("*"))
            if path.is_file()
        }

    def wait_for_work(self, part, process):
        """Wait until a process has recorded a block."""
        end = time.monotonic() + SECONDS
        pattern = f"*/*/{part.replace('/', '-of-')}.blocks"
        while not any(path.stat().st_size > 1000 for path in (self.out / FOLDER).glob(pattern)):
            assert process.poll() is None, "it ended before it was seen at work"
            assert time.monotonic() < end
            time.sleep(0.005)

    def require_same(self):
        assert self.hashes() == self.alone
        assert not (self.out / FOLDER).exists()


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("steps"))


@pytest.fixture
def place(worked):
    """Where nothing is done yet."""
    shutil.rmtree(worked.out, ignore_errors=True)
    return worked


@pytest.mark.slow
def test_processes_that_share_the_steps_write_the_bytes_of_one(place):
    processes = [place.start("--part", f"{n}/3") for n in range(3)]
    assert [process.wait(SECONDS) for process in processes] == [0, 0, 0]
    place.require_same()


@pytest.mark.slow
def test_of_a_part_that_is_killed_the_other_does_the_rest(place):
    one = place.start("--part", "1/2")
    place.wait_for_work("1/2", one)
    one.kill()
    assert one.wait(SECONDS) == -signal.SIGKILL
    assert place.start("--part", "0/2").wait(SECONDS) == 0
    place.require_same()


@pytest.mark.slow
def test_parts_that_are_killed_go_on_by_the_same_commands(place):
    one = place.start("--part", "0/2")
    place.wait_for_work("0/2", one)
    one.kill()
    assert one.wait(SECONDS) == -signal.SIGKILL
    assert (place.out / FOLDER).exists()
    processes = [place.start("--part", f"{n}/2") for n in range(2)]
    assert [process.wait(SECONDS) for process in processes] == [0, 0]
    place.require_same()


@pytest.mark.slow
def test_the_workers_of_a_cluster_write_the_bytes_of_one_process(place):
    assert place.start("--dask", "local:2").wait(SECONDS) == 0
    place.require_same()
