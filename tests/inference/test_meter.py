"""The figures that a run tells, against what it did."""

import re
import time
from datetime import UTC, datetime
from mmap import mmap
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from vcmodels.geometry.boxes import Box
from vcmodels.inference import Part, RunOptions, cost, predict_on, predict_request
from vcmodels.inference.cost import Meter, peak_bytes, resident_bytes
from vcmodels.reporting import Silent

PAGE = Path(__file__).parents[2] / "docs" / "inference.md"


class Sleepy(nn.Module):
    def forward(self, image, targets):
        time.sleep(0.002)
        return dict.fromkeys(targets, (image[:, :1],))


def volume():
    return np.random.default_rng(1).random((20, 30, 31), np.float32)


def documented():
    section = PAGE.read_text(encoding="utf-8").split("## While it runs")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def test_each_unit_is_told_once_with_the_documented_keys(workplace):
    work, reporter = workplace(volume(), network=Sleepy()), Silent()
    begun = time.perf_counter()
    report = work.run(memory=4e-4, options={"reporter": reporter})
    took = time.perf_counter() - begun
    records = reporter.records
    assert len(records) > 3
    seen = np.zeros((20, 30, 31), int)
    for record in records:
        assert list(record) == documented()
        assert record["finished"] is True
        assert record["worker"] is None
        seen[tuple(slice(*pair) for pair in record["unit"])] += 1
        shares = [record[f"{name}_share"] for name in ("reader", "device", "writer")]
        assert all(0 <= share <= 1 for share in shares)
        assert sum(shares) <= 1.001
        assert record["patches_per_s"] == pytest.approx(
            record["patches"] / record["seconds"], abs=1e-3, rel=1e-3
        )
        assert abs(datetime.now(UTC) - datetime.fromisoformat(record["time"])).seconds < 60
        assert record["memory_bytes"] > 1e7
    assert (seen == 1).all()
    assert sum(record["patches"] for record in records) == report.patches
    assert sum(record["seconds"] for record in records) < took
    voxels = sum(record["voxels_per_s"] * record["seconds"] for record in records)
    assert voxels == pytest.approx(20 * 30 * 31, rel=1e-3)
    slept = sum(record["device_share"] * record["seconds"] for record in records)
    assert slept >= 0.99 * 0.002 * report.patches


def test_a_stopped_run_tells_what_it_did_of_its_last_unit(workplace):
    work, reporter = workplace(volume(), network=Sleepy()), Silent()
    left = iter(range(5))
    report = work.run(
        options={"reporter": reporter, "should_stop": lambda: next(left, None) is None}
    )
    (record,) = reporter.records
    assert (record["finished"], record["patches"]) == (False, report.patches)


def test_a_long_unit_is_told_in_between(workplace, monkeypatch):
    monkeypatch.setattr(cost, "MOST_SILENT_S", 0.02)
    work, reporter = workplace(volume(), network=Sleepy()), Silent()
    report = work.run(options={"reporter": reporter})
    *between, last = reporter.records
    assert len(between) > 2
    assert not any(record["finished"] for record in between)
    assert last["finished"]
    assert sum(record["patches"] for record in reporter.records) == report.patches


def test_parts_name_themselves(workplace):
    work, reporter = workplace(volume()), Silent()
    request = work.request(work.task(memory=4e-4))
    for index in range(2):
        predict_request(request, RunOptions(part=Part(index, 2), reporter=reporter))
    assert {record["worker"] for record in reporter.records} == {"part 0/2", "part 1/2"}


@pytest.mark.slow
def test_devices_tell_through_the_process_that_watches(workplace):
    work, reporter = workplace(volume(), network=Sleepy()), Silent()
    request = work.request(work.task(memory=4e-4))
    report = predict_on(request, ["cpu", "cpu"], RunOptions(reporter=reporter))
    assert {record["worker"] for record in reporter.records} == {"0 on cpu", "1 on cpu"}
    assert sum(record["patches"] for record in reporter.records) == report.patches


def test_waits_are_those_of_the_thread_that_computes(monkeypatch):
    clock = iter(np.arange(0.0, 100.0))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    shown, told = [], []
    watch = Meter(lambda amount, text: shown.append((amount, text)), told.append)  # 0
    assert list(watch.timed([7])) == [7]  # 1 to 2, and 3 to 4 to find the end
    with watch.waiting("device"):  # 5 to 6
        watch.predicted()
    watch.final(2_000_000)
    watch.advance(1, Box((0, 0, 0), (1, 2, 3)))  # 7
    assert shown == [
        (1, "0.1 patches/s, 0.286 Mvoxels/s, waits: reader 29%, device 14%, writer 0%")
    ]
    watch.record(Box((1, 2, 3), (4, 5, 6)), is_finished=True)  # 8
    watch.record(Box((1, 2, 3), (4, 5, 6)), is_finished=True)  # 9: nothing since
    assert told[0]["unit"] == [[1, 5], [2, 7], [3, 9]]
    assert [t["seconds"] for t in told] == [8, 1]
    assert [t["reader_share"] for t in told] == [0.25, 0]
    assert [t["voxels_per_s"] for t in told] == [250_000, 0]


def test_resident_memory_is_what_the_system_counts():
    before = resident_bytes()
    with mmap(-1, 40_000_000) as held:  # not `malloc`, which may have freed memory at hand
        held.write(bytes(1) * len(held))
        grown = resident_bytes() - before
        assert 0.9 * len(held) < grown < 2.2 * len(held)
    assert peak_bytes() >= 0.9 * resident_bytes()
