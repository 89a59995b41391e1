"""What a killed process leaves is removed by the next one, and nothing else is."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vcmodels import scratch

PROGRAM = """
import multiprocessing, os, signal
from vcmodels.scratch import name_processes, scratch_folder
name_processes()
lock = multiprocessing.get_context("forkserver").Lock()
multiprocessing.util.get_temp_dir()
with scratch_folder() as folder:
    print(folder, flush=True)
    os.killpg(0, signal.SIGKILL)  # the tracker of semaphores goes, too
"""


def semaphores(pid: int) -> list[Path]:
    return list(Path("/dev/shm").glob(f"sem.vcmodels-*-{pid:x}-*"))


@pytest.fixture
def place(monkeypatch):
    """A folder for temporary files whose name is short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="semaphores have no files here")
def test_a_killed_process_is_swept_by_the_next(place):
    decoys = [place / "vcmodels-mine", place / f"vcmodels-1-{2**22 - 1:x}-other"]
    for decoy in decoys:  # of no process, and of another namespace
        decoy.mkdir()
    killed = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    killed.communicate(timeout=100)
    left = set(place.iterdir()) - set(decoys)
    assert len(left) == 2
    assert semaphores(killed.pid)
    with scratch.scratch_folder() as mine:
        scratch.sweep()
        assert set(place.iterdir()) == {*decoys, mine}
    assert not semaphores(killed.pid)
    assert set(place.iterdir()) == set(decoys)


def test_a_process_that_lives_keeps_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    folder = tmp_path / f"vcmodels-{scratch._namespace():x}-{os.getppid():x}-x"
    folder.mkdir()
    scratch.sweep()
    assert folder.exists()


def test_where_a_socket_would_not_fit_pythons_shorter_names_are_kept(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * (75 - len(str(tmp_path)) % 60))
    deep.mkdir()
    program = (
        "from multiprocessing import forkserver, process\n"
        "from vcmodels.scratch import name_processes\n"
        "name_processes()\n"
        "print(process.current_process()._config.get('tempdir'))\n"
    )
    environment = {**os.environ, "TMPDIR": str(deep)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "None\n"
    assert not list(deep.iterdir())
