"""kill -9 of a run that writes to S3, then the same command: the bytes of a local run, nothing left.

3 kills in the suite; by hand more: pytest tests/faults/test_kill_s3.py --kills 60.
"""

import hashlib
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.faults.nursery import work_on
from tests.inference.conftest import Workplace

METADATA = (".zattrs", ".zarray", ".zgroup", "zarr.json")
MANNERS = [
    {"case": "plain", "memory": 4e-4, "parts": 3},
    {"case": "shards", "memory": 6e-4, "parts": 1},
    {"case": "plain", "memory": 4e-4, "parts": 1},
]


@pytest.fixture
def nursery(s3, tmp_path):
    """Makes workers, which inherit where the server is."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.nursery", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    yield process
    process.stdin.close()
    process.wait()
    process.stdout.close()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_nine_of_a_run_that_writes_to_s3(tmp_path, s3, nursery, pytestconfig):
    kills = pytestconfig.getoption("kills", None) or 3
    rng = np.random.default_rng(3)
    values = rng.random((24, 10, 11), np.float32)
    values[8:16, :8] = 0
    Workplace(tmp_path, values, (8, 8, 8))
    reference = {}
    killed, rounds, duration = 0, 0, 0.0
    while killed < kills:
        manner = MANNERS[rounds % len(MANNERS)]
        if manner["case"] not in reference:
            begun = time.monotonic()
            work_on(tmp_path, **manner, output=f"s3://{s3.bucket}/first{rounds}")
            duration = time.monotonic() - begun
            reference[manner["case"]] = local_result(tmp_path, manner)
        place = f"{s3.bucket}/{rounds}"
        for _ in range(3):
            seconds = rng.uniform(0, 0.6 * duration)
            nursery.stdin.write(
                json.dumps({**manner, "output": f"s3://{place}", "seconds": seconds}) + "\n"
            )
            nursery.stdin.flush()
            killed += int(nursery.stdout.readline()) == 9
        work_on(tmp_path, **manner, output=f"s3://{place}")
        assert hashes(s3.objects(f"{place}/net.zarr")) == reference[manner["case"]], rounds
        rounds += 1


def local_result(folder, manner):
    output = folder / manner["case"]
    work_on(folder, **manner, output=str(output))
    root = output / "net.zarr"
    files = (path for path in root.rglob("*") if path.is_file())
    return hashes({path.relative_to(root).as_posix(): path.read_bytes() for path in files})


def hashes(files):
    """sha256 of all that is stored but the metadata, which name the place and the memory."""
    return {
        name: hashlib.sha256(data).hexdigest()
        for name, data in sorted(files.items())
        if name.rpartition("/")[2] not in METADATA
    }
