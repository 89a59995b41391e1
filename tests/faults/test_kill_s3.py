"""kill -9 of a run that writes to S3, then the same command: the bytes of a local run, nothing left.

30 kills in full, see docs/reliability.md.
"""

import hashlib
import time

import numpy as np
import pytest

from tests.faults.forks import forks
from tests.faults.predicting import work_on
from tests.inference.conftest import Workplace

METADATA = (".zattrs", ".zarray", ".zgroup", "zarr.json")
MANNERS = [
    {"case": "plain", "memory": 4e-4, "parts": 3},
    {"case": "shards", "memory": 6e-4, "parts": 1},
    {"case": "plain", "memory": 4e-4, "parts": 1},
]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_nine_of_a_run_that_writes_to_s3(tmp_path, s3, count):
    rng = np.random.default_rng(3)
    values = rng.random((24, 10, 11), np.float32)
    values[8:16, :8] = 0
    Workplace(tmp_path, values, (8, 8, 8))
    reference = {}
    killed, rounds, duration = 0, 0, 0.0
    with forks(work_on) as workers:
        while killed < count(30):
            manner = MANNERS[rounds % len(MANNERS)]
            if manner["case"] not in reference:
                begun = time.monotonic()
                work_on(tmp_path, **manner, output=f"s3://{s3.bucket}/first{rounds}")
                duration = time.monotonic() - begun
                reference[manner["case"]] = local_result(tmp_path, manner)
            output = f"s3://{s3.bucket}/{rounds}"
            order = {"folder": str(tmp_path), **manner, "output": output}
            for _ in range(3):
                killed += workers.kill(order, rng.uniform(0, 0.6 * duration))
            work_on(tmp_path, **manner, output=output)
            found = hashes(s3.objects(f"{s3.bucket}/{rounds}/net.zarr"))
            assert found == reference[manner["case"]], rounds
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
