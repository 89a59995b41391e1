import errno
import fcntl
import os
import subprocess
import sys

import pytest

from vcmodels.errors import OutputError
from vcmodels.volumes.locks import FileLock, holder, is_locked

CHILD = """
import sys
from pathlib import Path
from vcmodels.volumes.locks import FileLock
try:
    lock = FileLock(Path(sys.argv[1]), shared=sys.argv[2] == "shared")
except BlockingIOError:
    print("held")
else:
    print("free" if lock.is_sole() else "shared")
"""


def seen_by_another(path, how="alone"):
    words = [sys.executable, "-c", CHILD, str(path), how]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("mine", "others", "seen"),
    [(False, "alone", "held"), (False, "shared", "held"), (True, "alone", "held"),
     (True, "shared", "shared")],
)  # fmt: skip
def test_a_lock_keeps_off_those_that_it_may_not_share_with(tmp_path, mine, others, seen):
    path = tmp_path / "lock"
    lock = FileLock(path, shared=mine)
    assert lock.is_sole()
    assert seen_by_another(path, others) == seen
    assert lock.is_sole()  # asking did not cost it
    lock.close()
    assert seen_by_another(path, others) == "free"


def test_asking_whether_it_is_sole_keeps_a_lock_for_one_process(tmp_path):
    lock = FileLock(tmp_path / "lock")
    assert lock.is_sole()
    assert seen_by_another(tmp_path / "lock") == "held"


def test_who_holds_it_stands_in_the_file(tmp_path):
    path = tmp_path / "lock"
    assert holder(path) == "another process"
    lock = FileLock(path)
    path.write_text("a longer text of an earlier holder, which is gone without a trace")
    lock.sign()
    assert holder(path).startswith(f"pid {os.getpid()} on host ")
    assert "trace" not in holder(path)
    assert is_locked(path)
    lock.close()
    assert not is_locked(path)
    assert not is_locked(tmp_path / "none")


def test_closing_may_delete_the_file(tmp_path):
    path = tmp_path / "lock"
    FileLock(path).close(delete=True)
    assert not path.exists()


def test_a_file_that_was_deleted_before_it_was_locked_holds_nothing(tmp_path, monkeypatch):
    path, lock = tmp_path / "lock", FileLock._lock
    removals = [path.unlink]

    def lock_late(file, **options):
        if removals:
            removals.pop()()
        lock(file, **options)

    monkeypatch.setattr(FileLock, "_lock", lock_late)
    held = FileLock(path)
    assert is_locked(path)
    held.close()


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch, reason):
    def flock(handle, mode):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OutputError, match=r"cannot be locked: .*; choose a folder on a file sys"):
        FileLock(tmp_path / "lock")
