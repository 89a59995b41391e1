"""Predictions that are killed, crowded or out of space, then the same command: the same bytes.

200 kills in full, see docs/reliability.md.
"""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.faults.forks import forks
from tests.faults.predicting import (
    CASES,
    numbers,
    work_on,
    work_together,
    work_within,
    workplace,
    write_for_ever,
)
from tests.inference.conftest import Workplace
from vcmodels.geometry.boxes import Box
from vcmodels.volumes import Storage, create_array, open_volume

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


def references(folder):
    """The chunks of each case, and how long it took."""
    reference, duration = {}, {}
    Workplace(folder, volume(), (8, 8, 8))
    for case in CASES:
        begun = time.monotonic()
        work_on(folder, case, memory=4e-2, parts=1)
        duration[case] = time.monotonic() - begun
        reference[case] = chunks(folder, case)
        shutil.rmtree(folder / "out")
    return reference, duration


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_nine_anywhere_then_the_same_bytes_and_no_litter(tmp_path, count):
    reference, duration = references(tmp_path)
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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_without_space_a_prediction_fails_and_goes_on_where_there_is_some(tmp_path, count):
    reference, _ = references(tmp_path)
    rng, failed = np.random.default_rng(1), 0
    with forks(work_within) as workers:
        for number in range(count(50)):
            manner = MANNERS[number % len(MANNERS)]
            order = {"folder": str(tmp_path), "limit": int(rng.integers(1, 1500)), **manner}
            code = workers.run(order, 60)
            assert code in (0, 1)
            failed += code
            work_on(tmp_path, **manner)
            assert chunks(tmp_path, manner["case"]) == reference[manner["case"]], order
            shutil.rmtree(tmp_path / "out")
    assert failed > count(50) / 2


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4, 8])
def test_of_several_on_one_output_one_is_through_and_the_others_are_refused(tmp_path, processes):
    reference, _ = references(tmp_path)
    with forks(work_together) as workers:
        order = {"folder": str(tmp_path), "processes": processes, **MANNERS[3]}
        assert workers.run(order, 60) == 0
    assert chunks(tmp_path, "plain") == reference["plain"]


@pytest.mark.slow
def test_a_chunk_that_two_write_at_once_is_whole_at_any_instant(tmp_path):
    shape = (16, 24, 40)
    array = create_array(
        str(tmp_path / "a"), "raw", shape=shape, chunks=shape, dtype="u1", storage=Storage(3)
    )
    array.write(Box((0, 0, 0), shape), numbers(shape))
    order = {"location": array.location, "shape": shape}
    reads = 0
    with forks(write_for_ever) as one, forks(write_for_ever) as other, ThreadPoolExecutor() as pool:
        writers = [pool.submit(worker.kill, order, 1.0) for worker in (one, other)]
        while not all(writer.done() for writer in writers):
            volume = open_volume(array.location, key="input")
            np.testing.assert_array_equal(volume.read(volume.box), numbers(shape))
            reads += 1
    assert all(writer.result() for writer in writers)
    assert reads > 3


def chunks(folder, case):
    """sha256 of every chunk or shard of all arrays; the attributes name the memory that was given."""
    hashes = workplace(folder, case).hashes()
    return {name: value for name, value in hashes.items() if not name.endswith("zarr.json")}
