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
from vcmodels.errors import RunError
from vcmodels.inference import RunOptions
from vcmodels.inference.dask_cluster import predict_on_cluster
from vcmodels.inference.journal import Journal
from vcmodels.volumes import place_at

PAUSE_S = 2.0
BLOCKS = 8
"""Of 45: so many are finished between two kills."""


def volume():
    return np.random.default_rng(2).random((40, 22, 24), np.float32) + 1


def kill_now_and_then(
    client: Client, journal: Journal, stop: threading.Event, killed: list[int]
) -> None:
    """Kill a worker, and another one whenever some blocks were finished since.

    On a loaded machine a worker takes longer to start than any pause: killed by the clock, none would
    ever finish a block, and the run would rightly give up.
    """
    rng, finished = np.random.default_rng(0), -BLOCKS
    while not stop.wait(PAUSE_S):
        if (now := len(journal.done())) < finished + BLOCKS:
            continue
        pids = list(client.run(os.getpid, on_error="ignore").values())
        if pids:
            finished, victim = now, pids[rng.integers(len(pids))]
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)


def predict_again_and_again(work: Workplace, client: Client) -> None:
    """Until all is there: a box that Dask has seen die with four workers is named, and tried again."""
    request = work.request(work.task(overlap=0.3))
    is_complete = False
    while not is_complete:
        try:
            is_complete = predict_on_cluster(request, client, RunOptions()).is_complete
        except RunError as error:
            assert "KilledWorker" in error.found  # noqa: PT017 -- no other is expected
        time.sleep(0.1)


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
            journal = Journal(place_at(str(work.folder / "out/net.zarr")))
            killer = threading.Thread(
                target=kill_now_and_then, args=(client, journal, stop, killed)
            )
            killer.start()
            try:
                predict_again_and_again(work, client)
            finally:
                stop.set()
                killer.join()
        assert killed
        assert work.hashes() == reference
