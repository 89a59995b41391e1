"""The same bytes from a Dask cluster of two processes, whatever happens to them."""

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster
from distributed.comm.core import CommClosedError
from torch import nn

from tests.inference.conftest import Workplace
from vcmodels.devices import dask_client
from vcmodels.errors import RefusedError, RunError
from vcmodels.geometry.boxes import Box
from vcmodels.inference import RunOptions
from vcmodels.inference.dask_cluster import predict_on_cluster
from vcmodels.reporting import Silent


class PatchPosition(nn.Module):
    """Depends on the place in the patch; where a value is negative it does as it is told once."""

    def __init__(self, trap="", folder=""):
        super().__init__()
        self.trap, self.folder = trap, folder

    def forward(self, image, targets):
        if self.trap == "slow":
            time.sleep(0.02)
        elif image.min() < 0:
            if self.trap == "bug":
                raise TypeError("as a bug would")
            marker = Path(self.folder, "died")
            if self.trap == "die" and not marker.exists():
                marker.touch()
                os._exit(1)
        ramp = torch.arange(image[0, 0].numel(), dtype=torch.float32).reshape(image[0, 0].shape)
        return dict.fromkeys(targets, (image[:, :1] * 3 + ramp.sin(),))


def volume():
    values = np.random.default_rng(2).random((40, 22, 24), np.float32) + 1
    values[33, 3, 4] = -1
    return values


@pytest.fixture(scope="module")
def client():
    with dask_client("local:2") as client:
        yield client


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    work = Workplace(tmp_path_factory.mktemp("reference"), volume(), (8, 8, 8), PatchPosition())
    work.run(overlap=0.3)
    return work.hashes()


def run(work, client, **options):
    request = work.request(work.task(overlap=0.3))
    return predict_on_cluster(request, client, RunOptions(**options))


def test_a_cluster_gives_the_same_bytes(workplace, reference, client):
    work, reporter = workplace(volume(), network=PatchPosition()), Silent()
    report = run(work, client, reporter=reporter)
    assert report.is_complete
    assert report.patches
    assert sum(record["patches"] for record in reporter.records) == report.patches
    assert {record["worker"] for record in reporter.records} == {"0", "1"}
    assert work.hashes() == reference
    assert "boxes on 2 workers" in reporter.lines[-1]
    assert run(work, client).was_complete
    assert run(work, client, overwrite=True).is_complete
    assert work.hashes() == reference
    assert not list((work.folder / "out").glob(".*"))
    assert not (work.folder / "out/net.zarr/.vcmodels").exists()


def test_a_box_whose_worker_is_lost_goes_to_another(workplace, reference, client):
    work = workplace(volume())
    work.network = PatchPosition("die", str(work.folder))
    assert run(work, client).is_complete
    assert (work.folder / "died").exists()
    assert work.hashes() == reference


def test_a_block_that_always_fails_is_named_and_the_rest_is_there(workplace, reference, client):
    work = workplace(volume(), network=PatchPosition("bug"))
    with pytest.raises(
        RunError, match=r"output at \(\d+, 0, 0\), .*failed twice \(TypeError: as a"
    ):
        run(work, client)
    done = work.hashes()
    lost = {name for name in reference if name not in done}
    assert 0 < len(lost) <= 8
    touched = Box((24, 0, 0), (16, 16, 16))
    for name in lost:
        z, y, x = (8 * int(n) for n in name.split("/")[2:])
        assert touched.contains(Box((z, y, x), (8, 8, 8)))
    assert all(done[name] == reference[name] for name in done if name.startswith("value/0/"))
    work.network.trap = ""
    assert run(work, client).is_complete
    assert work.hashes() == reference


def test_a_stopped_run_continues(workplace, reference, client):
    work = workplace(volume(), network=PatchPosition("slow"))
    asked = iter([False, False, False])
    report = run(work, client, should_stop=lambda: next(asked, True))
    assert not report.is_through
    work.network.trap = ""
    for _ in range(50):  # a worker may still be at its last patch
        report = run(work, client)
        if report.is_complete:
            break
        time.sleep(0.1)
    assert work.hashes() == reference


def test_without_workers_it_says_so_and_waits_for_others(workplace, reference, monkeypatch):
    monkeypatch.setattr("vcmodels.inference.dask_cluster.MOST_WITHOUT_S", 0.3)
    work = workplace(volume(), network=PatchPosition("slow"))
    manner = {"processes": True, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=1, **manner) as cluster, Client(cluster) as client:
        leaving = iter([cluster.workers[0].kill])

        class Bringing(Silent):
            def say(self, line):
                super().say(line)
                if "no worker" in line:
                    cluster.scale(1)

        def should_stop():
            for leave in leaving:
                cluster.scale(0)
                client.sync(leave)
            return False

        reporter = Bringing()
        assert run(work, client, reporter=reporter, should_stop=should_stop).is_complete
    alone, back = reporter.lines[-2:]
    assert re.fullmatch(r"the cluster has had no worker for \d+ s; waiting until some come", alone)
    assert back == "workers are back: 1; continuing"
    assert work.hashes() == reference


def test_a_scheduler_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("vcmodels.devices.CONNECT_S", 0.3)
    with (
        pytest.raises(
            RefusedError, match=r"--dask: no Dask scheduler answers at tcp://127.0.0.1:9"
        ),
        dask_client("tcp://127.0.0.1:9"),
    ):
        pass


class Hurt:
    """A client that loses a worker while it is asked for something, so many times."""

    def __init__(self, client, calls, times):
        self.client, self.calls, self.times = client, calls, times

    def __getattr__(self, name):
        found = getattr(self.client, name)
        if name not in self.calls or not self.times:
            return found

        def lose(*given, **named):
            self.times -= 1
            if name == "register_plugin":
                found(*given, **named)  # the scheduler and the other workers have it by then
            raise CommClosedError("in <TCP (closed) ConnectionPool>: Stream is closed")

        return lose


@pytest.mark.parametrize("call", ["register_plugin", "submit"])
def test_a_worker_that_is_lost_at_the_start_is_replaced(
    workplace, reference, client, monkeypatch, call
):
    monkeypatch.setattr("vcmodels.inference.dask_cluster.time.sleep", lambda _: None)
    work, reporter = workplace(volume(), network=PatchPosition()), Silent()
    assert run(work, Hurt(client, [call], 2), reporter=reporter).is_complete
    assert reporter.lines.count("a Dask worker was lost at the start; trying again") == 1
    assert work.hashes() == reference


def test_workers_that_are_always_lost_at_the_start_end_the_run_in_one_line(
    workplace, client, monkeypatch
):
    monkeypatch.setattr("vcmodels.inference.dask_cluster.time.sleep", lambda _: None)
    work = workplace(volume(), network=PatchPosition())
    lost = r"--dask: workers were lost 5 times at the start \(CommClosedError\); see their logs"
    with pytest.raises(RunError, match=lost):
        run(work, Hurt(client, ["register_plugin"], 99))
    assert run(work, client).is_complete
