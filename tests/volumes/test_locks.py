import errno
import fcntl
import os

import pytest

from vcmodels.errors import OutputError
from vcmodels.volumes.locks import FileLock


def test_one_process_holds_it_until_it_gives_it_back(tmp_path):
    lock = FileLock(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        FileLock(tmp_path / "lock")
    lock.close()
    FileLock(tmp_path / "lock").close(delete=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch, reason):
    def flock(handle, mode):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OutputError, match=r"cannot be locked: .*; choose a folder on a file sys"):
        FileLock(tmp_path / "lock")
