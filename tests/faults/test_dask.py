"""Workers of a cluster are killed again and again, 20 runs in full: the bytes of a run on one's own."""

import os
import signal
import threading
import time

import numpy as np
import pytest
from distributed import Client, LocalCluster

from tests.inference.conftest import Workplace
from tests.inference.test_dask_cluster import PatchPosition
from vcmodels.inference import RunOptions
from vcmodels.inference.dask_cluster import predict_on_cluster

PAUSE_S = 2.0


def volume():
    return np.random.default_rng(2).random((40, 22, 24), np.float32) + 1


def kill_now_and_then(client: Client, stop: threading.Event, killed: list[int]) -> None:
    rng = np.random.default_rng(0)
    while not stop.wait(PAUSE_S):
        pids = list(client.run(os.getpid).values())
        victim = pids[rng.integers(len(pids))]
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_workers_that_are_killed_cost_time_and_no_byte(tmp_path, count):
    work = Workplace(tmp_path / "alone", volume(), (8, 8, 8), network=PatchPosition())
    work.run(overlap=0.3)
    reference = work.hashes()
    for number in range(max(count(20) // 2, 1)):
        network = PatchPosition("slow")
        work = Workplace(tmp_path / str(number), volume(), (8, 8, 8), network=network)
        stop, killed = threading.Event(), list[int]()
        with (
            LocalCluster(4, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
            Client(cluster) as client,
        ):
            killer = threading.Thread(target=kill_now_and_then, args=(client, stop, killed))
            killer.start()
            try:
                while not (
                    report := predict_on_cluster(
                        work.request(work.task(overlap=0.3)), client, RunOptions()
                    )
                ).is_complete:
                    time.sleep(0.1)
            finally:
                stop.set()
                killer.join()
        assert report.is_complete
        assert killed
        assert work.hashes() == reference
