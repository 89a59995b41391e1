"""Of `sleep` and its like in place of trainings."""

import signal
import subprocess
import time

import pytest

from vcmodels.reporting import StopSignals
from vcmodels.workflows.cross_validation import Child, run_all


class Stub(Child):
    """A shell command in place of this program's."""

    def __init__(self, command):
        self.process = subprocess.Popen(["sh", "-c", command])
        self._listener = None


@pytest.fixture
def run():
    """Runs shell commands, numbered from 0; returns their codes and the places they were given."""

    def with_jobs(commands, jobs, received=None):
        places = {}

        def start(number, command):
            def begin(place):
                places[number] = place
                return Stub(command)

            return begin

        with StopSignals() as stop:
            stop.defer()
            stop.received = received
            starts = {n: start(n, command) for n, command in enumerate(commands)}
            return run_all(starts, jobs, stop), places

    return with_jobs


def test_a_child_that_fails_keeps_no_other_from_running(run):
    codes, places = run(["exit 3", "exit 0", "kill -9 $$", "exit 0"], 1)
    assert codes == {0: 3, 1: 0, 2: 128 + signal.SIGKILL, 3: 0}
    assert list(places) == [0, 1, 2, 3]
    assert set(places.values()) == {0}


def test_as_many_run_at_once_as_there_are_jobs(run, tmp_path):
    """Each waits for a file that the next one writes, so that one at a time would never end."""
    wait = (
        "touch {0}/{1}; for i in $(seq 300); do [ -e {0}/{2} ] && exit 0; sleep 0.05; done; exit 1"
    )
    codes, places = run([wait.format(tmp_path, n, n ^ 1) for n in range(4)], 2)
    assert codes == dict.fromkeys(range(4), 0)
    assert sorted(places[n] for n in (0, 1)) == sorted(places[n] for n in (2, 3)) == [0, 1]


def test_no_more_than_the_jobs_run_at_once(run, tmp_path):
    alone = "mkdir {0}/busy && sleep 0.2 && rmdir {0}/busy"
    assert run([alone.format(tmp_path)] * 3, 1)[0] == dict.fromkeys(range(3), 0)


def test_a_signal_reaches_those_that_run_and_no_other_is_started(run, tmp_path):
    command = f"trap 'touch {tmp_path}/saved; exit 143' TERM; kill -TERM $PPID; sleep 60 & wait"
    started = time.monotonic()
    codes, _ = run([command, f"touch {tmp_path}/second"], 1)
    assert time.monotonic() - started < 45
    assert codes == {0: 143}
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_nothing_is_started_after_a_signal(run):
    assert run(["exit 0"], 1, received=signal.SIGINT) == ({}, {})


def test_a_failure_of_our_own_leaves_no_child_behind():
    children = []

    def start(_place):
        children.append(Stub("sleep 60"))
        return children[-1]

    def fail(_place):
        raise OSError("no more processes")

    with pytest.raises(OSError, match="no more processes"), StopSignals() as stop:
        run_all({0: start, 1: fail}, 2, stop)
    assert children[0].process.returncode == -signal.SIGTERM


def test_a_child_is_of_this_package_whatever_the_working_directory_holds(tmp_path, monkeypatch):
    (tmp_path / "vcmodels").mkdir()
    (tmp_path / "vcmodels/__init__.py").write_text("raise RuntimeError('another version')\n")
    monkeypatch.chdir(tmp_path)
    lines = []
    child = Child(["train", "--help"], {}, lines.append)
    child.process.wait(60)
    assert child.ended() == 0
    assert any("--fold" in line for line in lines)
