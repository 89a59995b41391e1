"""Blocks are done once, whatever happens on the way."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from vcmodels.blockwise import BlockRecord, Threads, map_blocks
from vcmodels.blockwise.engines import DaskWorkers
from vcmodels.devices import dask_client
from vcmodels.errors import OutputError, RunError
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import blocks_of
from vcmodels.reporting import Silent

BLOCKS = list(blocks_of(Box((1, 2, 3), (9, 11, 13)), (4, 5, 6)))
IDENTITY = {"array": "a", "options": [1, 2.5]}


def made_of(box):
    values = np.random.default_rng([*box.origin, *box.shape]).normal(size=box.shape)
    return {"file": values, "n": np.array(box.voxels), "none": np.zeros((0, 3))}


def die(box):
    if box == BLOCKS[2]:
        os._exit(1)
    return made_of(box)


class Work:
    """Keeps its calls; fails after a number of them."""

    def __init__(self, fails_after=None):
        self.calls, self.fails_after, self.lock = [], fails_after, threading.Lock()

    def __call__(self, box):
        with self.lock:
            self.calls.append(box)
            number = len(self.calls)
        if self.fails_after is not None and number > self.fails_after:
            raise RunError("block", "cannot be read")
        return made_of(box)


def assert_whole(record):
    found = list(record.parts(BLOCKS))
    assert [box for box, _ in found] == BLOCKS
    for box, part in found:
        assert part.keys() == made_of(box).keys()
        for name, array in made_of(box).items():
            np.testing.assert_array_equal(part[name], array, strict=True)


@pytest.mark.parametrize("count", [1, 3, None])
def test_every_block_is_done_once_and_kept_in_the_order_of_the_blocks(tmp_path, count):
    work = Work()
    with BlockRecord(tmp_path / "new" / "a.parts", IDENTITY) as record:
        assert map_blocks(work, BLOCKS, record, engine=Threads(count))
        assert sorted(work.calls) == sorted(BLOCKS)
        assert_whole(record)
        named = dict(record.parts(BLOCKS, "no"))
        assert all(list(part) == ["ne"] for part in named.values())


def test_what_fails_keeps_what_was_done_and_the_rest_follows(tmp_path):
    path, failing = tmp_path / "a.parts", Work(fails_after=5)
    with BlockRecord(path, IDENTITY) as record, pytest.raises(RunError, match="cannot be read"):
        map_blocks(failing, BLOCKS, record, engine=Threads(1))
    work = Work()
    with BlockRecord(path, IDENTITY) as record:
        kept = len(record)
        assert kept in (4, 5)  # the last may be done, and not yet kept, when the next fails
        assert not record.changed
        assert map_blocks(work, BLOCKS, record)
        assert sorted(work.calls) == sorted(BLOCKS[kept:])
        assert_whole(record)


def test_a_stop_keeps_what_is_done_and_what_is_being_done(tmp_path):
    work = Work()
    with BlockRecord(tmp_path / "a.parts", IDENTITY) as record:
        stopped = map_blocks(
            work, BLOCKS, record, engine=Threads(2), should_stop=lambda: len(work.calls) >= 3
        )
        assert not stopped
        assert sorted(box for box in BLOCKS if box in record) == sorted(work.calls)
        assert 3 <= len(work.calls) < len(BLOCKS)
        assert map_blocks(work, BLOCKS, record)
        assert_whole(record)


def test_a_torn_tail_is_dropped_wherever_it_is_torn(tmp_path):
    path = tmp_path / "a.parts"
    with BlockRecord(path, IDENTITY) as record:
        map_blocks(made_of, BLOCKS[:3], record, engine=Threads(1))
    whole = path.read_bytes()
    for length in (*range(0, 100, 9), *range(len(whole) // 2, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        with BlockRecord(path, IDENTITY) as record:
            kept, work = [box for box in BLOCKS if box in record], Work()
            assert len(kept) < 3
            assert map_blocks(work, BLOCKS, record)
            assert sorted(work.calls + kept) == sorted(BLOCKS)
            assert_whole(record)


def test_a_damaged_frame_and_what_follows_it_are_done_again(tmp_path):
    path = tmp_path / "a.parts"
    with BlockRecord(path, IDENTITY) as record:
        map_blocks(made_of, BLOCKS, record, engine=Threads(1))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with BlockRecord(path, IDENTITY) as record:
        assert 0 < len(record) < len(BLOCKS)
        map_blocks(made_of, BLOCKS, record)
        assert_whole(record)


def test_another_identity_starts_again_and_says_what_changed(tmp_path):
    path, other = tmp_path / "a.parts", {**IDENTITY, "array": "b"}
    with BlockRecord(path, IDENTITY) as record:
        map_blocks(made_of, BLOCKS, record)
    with BlockRecord(path, other) as record:
        assert len(record) == 0
        assert record.changed == "array"
    with BlockRecord(path, other) as record:
        assert record.changed == ""
    path.write_bytes(b"no record at all, but longer than the head of one would be. " * 3)
    with BlockRecord(path, IDENTITY) as record:
        assert map_blocks(made_of, BLOCKS, record)
        assert_whole(record)


def test_two_do_not_share_a_record(tmp_path):
    path = tmp_path / "a.parts"
    held = pytest.raises(OutputError, match="another process works in it; wait for it")
    with BlockRecord(path, IDENTITY), held:
        BlockRecord(path, IDENTITY)
    with BlockRecord(path, IDENTITY):
        pass


KILLED = """
import sys, time
from pathlib import Path
from tests.blockwise.test_map_blocks import BLOCKS, IDENTITY, made_of
from vcmodels.blockwise import BlockRecord, Threads, map_blocks

def slow(box):
    time.sleep(0.1)
    return made_of(box)

with BlockRecord(Path(sys.argv[1]), IDENTITY) as record:
    map_blocks(slow, BLOCKS, record, engine=Threads(1))
"""


def test_a_kill_loses_nothing_that_was_done(tmp_path):
    path = tmp_path / "a.parts"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)])
    while not path.exists() or path.stat().st_size < 5000:
        time.sleep(0.01)
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    with BlockRecord(path, IDENTITY) as record:
        assert 0 < len(record) < len(BLOCKS)
        kept, work = len(record), Work()
        assert map_blocks(work, BLOCKS, record)
        assert len(work.calls) == len(BLOCKS) - kept
        assert_whole(record)


@pytest.fixture(scope="module")
def client():
    with dask_client("local:2") as client:
        yield client


def test_a_cluster_gives_the_same_parts(tmp_path, client):
    with BlockRecord(tmp_path / "a.parts", IDENTITY) as record:
        assert map_blocks(made_of, BLOCKS, record, engine=DaskWorkers(client))
        assert_whole(record)


def test_a_block_that_kills_its_workers_is_named(tmp_path, client):
    with BlockRecord(tmp_path / "a.parts", IDENTITY) as record:
        with pytest.raises(RunError, match=r"workers died of the block at \(1, 2, 12\)"):
            map_blocks(die, BLOCKS[2:3], record, engine=DaskWorkers(client))
        assert BLOCKS[2] not in record


def test_the_bar_counts_voxels_those_that_were_done_before_included(tmp_path):
    amounts = []

    class Bars(Silent):
        @contextmanager
        def bar(self, name, total):
            assert (name, total) == ("blocks", sum(box.voxels for box in BLOCKS))
            yield lambda amount, _text: amounts.append(amount)

    with BlockRecord(tmp_path / "a.parts", IDENTITY) as record:
        map_blocks(made_of, BLOCKS[:2], record)
        map_blocks(made_of, BLOCKS, record, reporter=Bars())
    assert amounts[0] == BLOCKS[0].voxels + BLOCKS[1].voxels
    assert sum(amounts) == sum(box.voxels for box in BLOCKS)
