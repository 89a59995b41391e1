"""Who may write to an output: one process alone, or several that share the work."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vcmodels.errors import OutputError


class Hold:
    """The right to write to an output, until it is given back or the process ends.

    It is got, and given back, inside `setting_up` alone, so that nobody sees a state in between.

    Args:
        root: the output group.
        alone: keep all others off; else only those that want it alone.

    Raises:
        OutputError: another process holds it.
    """

    def __init__(self, root: Path, *, alone: bool) -> None:
        self.path = root.with_name(f".{root.name}.lock")
        self.alone = alone
        self._handle: int | None = None
        try:
            self._handle = _lock(self.path, self._mode | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = self.path.read_text(errors="replace") or "another process"
            remedy = "wait for it, or choose another output_dir"
            raise OutputError(str(root), f"in use by {holder}", remedy) from error
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"pid {os.getpid()} on host {socket.gethostname()}".encode(), 0)

    @property
    def _mode(self) -> int:
        return fcntl.LOCK_EX if self.alone else fcntl.LOCK_SH

    def is_sole(self) -> bool:
        """Whether no other process works on the output now."""
        assert self._handle is not None, "it was given back"
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # which may have cost the lock that was there
            fcntl.flock(self._handle, self._mode)
            return False
        fcntl.flock(self._handle, self._mode)
        return True

    def release(self) -> None:
        """Give it back, if that was not done; the last one leaves nothing behind."""
        if self._handle is None:
            return
        if self.is_sole():
            self.path.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = None


@contextmanager
def setting_up(root: Path) -> Iterator[None]:
    """Begin, or end, the work on an output, one process at a time.

    Raises:
        OutputError: the folder cannot be written.
    """
    path = root.with_name(f".{root.name}.setup.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _lock(path, fcntl.LOCK_EX)
    except OSError as error:
        found = f"{path.parent} cannot be written ({error.strerror})"
        remedy = "choose a writable folder"
        raise OutputError("inference_params.output_dir", found, remedy) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def working_on(root: Path, *, alone: bool) -> Iterator[Hold]:
    """Hold an output while the context lasts, however it ends.

    Raises:
        OutputError: another process holds it, or the folder cannot be written.
    """
    with setting_up(root):
        hold = Hold(root, alone=alone)
    try:
        yield hold
    finally:
        with setting_up(root):
            hold.release()


def _lock(path: Path, mode: int) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, mode)
        except BlockingIOError:
            os.close(handle)
            raise
        # Its last holder may have deleted the file between our open and our lock.
        if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
            return handle
        os.close(handle)
