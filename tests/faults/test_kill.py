"""kill -9 anywhere, then the same command: the same bytes, and nothing left behind.

200 kills in full, see docs/reliability.md.
"""

import shutil
import time

import numpy as np
import pytest

from tests.faults.forks import forks
from tests.faults.predicting import CASES, work_on, workplace
from tests.inference.conftest import Workplace

MANNERS = [
    {"case": "plain", "memory": 4e-4, "parts": 1},
    {"case": "averaged", "memory": 6e-4, "parts": 1},
    {"case": "shards", "memory": 6e-4, "parts": 3},
    {"case": "plain", "memory": 1.0, "parts": 1},
    {"case": "averaged", "memory": 1.0, "parts": 2},
    {"case": "shards", "memory": 1.0, "parts": 1},
    {"case": "plain", "memory": 4e-4, "parts": 3},
]


def volume():
    values = np.random.default_rng(3).random((40, 30, 31), np.float32)
    values[8:16] = 0
    return values


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_nine_anywhere_then_the_same_bytes_and_no_litter(tmp_path, count):
    Workplace(tmp_path, volume(), (8, 8, 8))
    reference, duration = {}, {}
    for case in CASES:
        begun = time.monotonic()
        work_on(tmp_path, case, memory=4e-2, parts=1)
        duration[case] = time.monotonic() - begun
        reference[case] = chunks(tmp_path, case)
        shutil.rmtree(tmp_path / "out")
    rng = np.random.default_rng(0)
    killed, rounds = 0, 0
    with forks(work_on) as workers:
        while killed < count(200):
            manner = MANNERS[rounds % len(MANNERS)]
            case = manner["case"]
            for _ in range(3):
                seconds = rng.uniform(0, 0.6 * duration[case])
                killed += workers.kill({"folder": str(tmp_path), **manner}, seconds)
            work_on(tmp_path, **manner)
            assert chunks(tmp_path, case) == reference[case], (manner, rounds)
            assert not list((tmp_path / "out").rglob("*.partial*"))
            assert not list((tmp_path / "out").glob(".*"))
            assert not (tmp_path / "out" / "net.zarr" / ".vcmodels").exists()
            shutil.rmtree(tmp_path / "out")
            rounds += 1


def chunks(folder, case):
    """sha256 of every chunk or shard of all arrays; the attributes name the memory that was given."""
    hashes = workplace(folder, case).hashes()
    return {name: value for name, value in hashes.items() if not name.endswith("zarr.json")}
