"""The folder of a run: its lock, its records, what is not written over."""

import errno
import fcntl
import json
import os
import shutil
import threading
import time

import pytest

from vcmodels.checkpoint import save_checkpoint
from vcmodels.config import load_task, parse_task
from vcmodels.errors import OutputError, RefusedError, RunError
from vcmodels.runs.run import add_start, end_start, read_starts
from vcmodels.training.run_folder import RunFolder, newest_checkpoint
from vcmodels.volumes.locks import FileLock


@pytest.fixture
def task(sheet_task):
    return parse_task(sheet_task, "task.json")[0]


@pytest.fixture
def run(task):
    return RunFolder(task.run_dir, "tiny")


def fill(run, name="tiny", epochs=2, checkpoints=(), outcome=None):
    """The folder of a run of this name that wrote so many epochs and kept these checkpoints.

    Of each checkpoint the epochs that it has, or None for one that is damaged.
    """
    run.folder.mkdir(parents=True)
    (run.folder / "task.json").write_text(json.dumps({"tr_params": {"model_name": name}}))
    (run.folder / "splits.json").write_text("{}")
    lines = [json.dumps({"step": 10 * n, "epoch": n}) for n in range(1, epochs + 1)]
    (run.folder / "log.jsonl").write_text("".join(f"{line}\n" for line in lines))
    for checkpoint, epoch in dict(checkpoints).items():
        (run.folder / checkpoint).write_bytes(b"")
        if epoch is not None:
            state = {"schema": 1, "epoch": epoch, "step": 10 * epoch}
            save_checkpoint(run.folder / checkpoint, state, keep_previous=False)
    if outcome is not None:
        add_start(run.folder, {})
        end_start(run.folder, outcome)


@pytest.mark.parametrize(
    ("there", "match"),
    [
        (
            {"name": "other", "checkpoints": {"other_last.pth": 2}},
            'the run of "other", not of "tiny"',
        ),
        (
            {"checkpoints": {"tiny_2.pth": None}},
            r"tiny_last\.pth: is gone, but .* copy another checkpoint",
        ),
        (
            {"checkpoints": {"tiny_last.previous.pth": 2, "tiny_1.pth": 1}},
            r"is gone.*copy tiny_last\.previous\.pth",
        ),
        (
            {"epochs": 0, "checkpoints": {"tiny_best.pth": 1}},
            r"is gone, but .* copy tiny_best\.pth to tiny_last\.pth",
        ),
        (
            {
                "epochs": 3,
                "checkpoints": {
                    "tiny_best.previous.pth": 1,
                    "tiny_best.pth": None,
                    "tiny_3.pth": 3,
                },
            },
            r"is gone, but .* copy tiny_3\.pth to",
        ),
        ({"epochs": 1}, r"is gone, but the run has been saved; copy another checkpoint"),
        ({"epochs": 0, "outcome": "complete"}, r"is gone, but the run has been saved"),
        (
            {"checkpoints": {"tiny_last.pth": None, "tiny_2.pth": 2, "tiny_1.pth": 1}},
            r"tiny_last\.pth: has no checksum.*; copy tiny_2\.pth over it, and",
        ),
        (
            {"checkpoints": {"tiny_last.pth": None, "tiny_last.previous.pth": None}},
            r"tiny_last\.pth: has no checksum.*; no other is whole: .*, or --restart",
        ),
    ],
    ids=[
        "another run",
        "no last",
        "previous",
        "the best alone",
        "the newest",
        "its log alone",
        "its record alone",
        "damaged",
        "all damaged",
    ],
)
def test_nothing_begins_over_what_another_training_left(run, task, there, match):
    fill(run, **there)
    with pytest.raises(RefusedError, match=match):
        newest_checkpoint(run, task)


@pytest.mark.parametrize(
    "there",
    [
        {"epochs": 0, "outcome": "stopped"},
        {"name": "other", "epochs": 0, "checkpoints": {"tiny.pth": 1, "others_last.pth": 1}},
    ],
    ids=["stopped before the first step", "nothing was saved"],
)
def test_what_has_no_state_to_lose_begins_anew(run, task, there):
    fill(run, **there)
    assert newest_checkpoint(run, task) is None


def test_a_task_file_is_not_written_over(run, task):
    run.folder.mkdir(parents=True)
    (run.folder / "task.json").write_text("{}")
    with pytest.raises(OutputError, match=r"task\.json: no run wrote it, and this one would"):
        newest_checkpoint(run, task)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "complete"),
        (RunError("step 3", "not finite", "lower initial_lr"), "failed: step 3: not finite; lower"),
        (ValueError("two words"), "failed: ValueError: two words"),
        (SystemExit(143), "stopped"),
    ],
)
def test_how_a_training_ended_is_recorded(run, error, outcome):
    def attempt():
        with run:
            run.begin({"device": "cpu"})
            assert "outcome" not in read_starts(run.folder)[0]
            run.outcome = "complete"
            if error is not None:
                raise error

    if error is None:
        attempt()
    else:
        with pytest.raises(type(error), match=r"."):
            attempt()
    (start,) = read_starts(run.folder)
    assert start["device"] == "cpu"
    assert start["outcome"].startswith(outcome)


def test_a_lock_that_is_looked_at_for_an_instant_stops_nobody(run):
    run.folder.mkdir(parents=True)
    with (run.folder / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        threading.Timer(0.1, lambda: fcntl.flock(other, fcntl.LOCK_UN)).start()
        with run:
            pass


def test_a_lock_that_is_held_is_waited_for_no_longer_than_that(run):
    run.folder.mkdir(parents=True)
    with (run.folder / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        started = time.monotonic()
        with pytest.raises(OutputError, match="in use by"), run:
            pass
        assert time.monotonic() - started < 20


def test_a_file_system_without_locks_is_named(run, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(OutputError, match=f"{run.folder}: cannot be locked: Function not impl"),
        run,
    ):
        pass


def test_a_lock_that_was_removed_while_it_was_waited_for_holds_nothing(run, monkeypatch):
    """As by a training that was refused, between the opening and the locking of this one."""
    lock = FileLock._lock
    removals = [lambda: shutil.rmtree(run.folder), (run.folder / ".lock").unlink]

    def lock_late(file, **options):
        if removals:
            removals.pop()()
        lock(file, **options)

    monkeypatch.setattr(FileLock, "_lock", lock_late)
    with run:
        assert not removals
        with (
            pytest.raises(OutputError, match=f"in use by pid {os.getpid()}"),
            RunFolder(run.folder, "tiny"),
        ):
            pass


def test_a_resolved_task_is_written_whole(run, task):
    with run:
        run.write_task(task.to_json())
        run.begin({})
    written = json.loads((run.folder / "task.json").read_text())
    assert written == task.to_json()
    assert load_task(run.folder).task == task


def test_a_folder_that_can_never_be_made_is_refused(run, monkeypatch):
    def mkdir(path, **options):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))

    monkeypatch.setattr("pathlib.Path.mkdir", mkdir)
    with (
        pytest.raises(OutputError, match=r"No such file or directory; choose a writable folder"),
        run,
    ):
        pass
