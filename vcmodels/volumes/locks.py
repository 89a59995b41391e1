"""Locks between processes: on files of a disk. They go with the process, however it ends."""

import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from vcmodels.errors import OutputError


class FileLock:
    """A locked file, until it is closed or the process ends.

    Args:
        path: of the file, which is made if it is not there; its folder must be.
        shared: keep off only those that want it for themselves.
        waits: wait for who holds it, however long.
        patience_s: how long it is tried for, if it does not wait.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file cannot be made.
        OutputError: the file system has no locks, as some network file systems.
    """

    def __init__(
        self, path: Path, *, shared: bool = False, waits: bool = False, patience_s: float = 0.0
    ) -> None:
        self.path = path
        self._mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        deadline = time.monotonic() + patience_s
        while True:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._lock(waits=waits, deadline=deadline, pause_s=patience_s / 10)
            except OSError as error:
                os.close(self._handle)
                if isinstance(error, BlockingIOError):
                    raise
                found = f"cannot be locked: {error.strerror}"
                remedy = "choose a folder on a file system that has locks (flock)"
                raise OutputError(str(path.parent), found, remedy) from error
            # Its last holder may have deleted the file between our open and our lock.
            if self._is_at_its_path():
                return
            os.close(self._handle)

    def _lock(self, *, waits: bool, deadline: float, pause_s: float) -> None:
        while True:
            try:
                return fcntl.flock(self._handle, self._mode | (0 if waits else fcntl.LOCK_NB))
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(pause_s)

    def _is_at_its_path(self) -> bool:
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._handle))
        except FileNotFoundError:
            return False

    def sign(self) -> None:
        """Write into the file who holds it, for `holder`."""
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"pid {os.getpid()} on host {socket.gethostname()}".encode(), 0)

    def is_sole(self) -> bool:
        """Whether no other process shares it now."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        finally:
            fcntl.flock(self._handle, self._mode)  # trying may have cost the lock that was there

    def close(self, *, delete: bool = False) -> None:
        """Give it back, and delete the file if nobody else needs it."""
        if delete:
            self.path.unlink(missing_ok=True)
        os.close(self._handle)


def holder(path: Path) -> str:
    """Who signed a lock file, in words."""
    with suppress(OSError):
        return path.read_text(errors="replace").strip() or "another process"
    return "another process"


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock file for itself; two that ask do not see each other."""
    with suppress(OSError), path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
