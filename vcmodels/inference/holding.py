"""Who may write to an output: one process alone, or several that share the work."""

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vcmodels.errors import OutputError
from vcmodels.inference.leasing import LeasedHold, take_setup
from vcmodels.volumes import LocalPlace, ObjectPlace, Place
from vcmodels.volumes.remote import RemoteError


class LockedHold:
    """The right to write to an output, until it is given back or the process ends.

    It is the lock of a file beside the output. It is got, and given back, inside `setting_up` alone,
    so that nobody sees a state in between.

    Args:
        root: the output group.
        alone: keep all others off; else only those that want it alone.

    Raises:
        OutputError: another process holds it.
    """

    def __init__(self, root: LocalPlace, *, alone: bool) -> None:
        self.path = _beside(root, "lock")
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

    def check(self) -> None:
        """Nothing: a lock cannot be lost."""

    def release(self) -> None:
        """Give it back, if that was not done."""
        if self._handle is None:
            return
        if self.is_sole():
            self.path.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = None


Hold = LockedHold | LeasedHold


@contextmanager
def setting_up(root: Place, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Begin, or end, the work on an output, one process at a time.

    Args:
        root: the output group.
        say: told whom it waits for, if that takes long, in an object store.

    Raises:
        OutputError: the output cannot be written.
    """
    key = "inference_params.output_dir"
    try:
        give_back = take_setup(root, say) if isinstance(root, ObjectPlace) else _lock_setup(root)
    except RemoteError as error:
        raise OutputError(key, f"{error.subject} {error.found}", error.remedy) from error
    except OSError as error:
        found = f"{root} cannot be written ({error.strerror})"
        raise OutputError(key, found, "choose a writable folder") from error
    try:
        yield
    finally:
        give_back()


@contextmanager
def working_on(
    root: Place, *, alone: bool, say: Callable[[str], None] = lambda _: None
) -> Iterator[Hold]:
    """Hold an output while the context lasts, however it ends; `say` as for `setting_up`.

    Raises:
        OutputError: another process holds it, or the output cannot be written.
    """
    with setting_up(root, say):
        if isinstance(root, ObjectPlace):
            hold = LeasedHold(root, alone=alone, say=say)
        else:
            hold = LockedHold(root, alone=alone)
    try:
        yield hold
    finally:
        if isinstance(hold, LeasedHold):
            hold.release()  # at once: a server that is gone is not waited for
        else:
            with setting_up(root):
                hold.release()


def _lock_setup(root: LocalPlace) -> Callable[[], None]:
    path = _beside(root, "setup.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _lock(path, fcntl.LOCK_EX)

    def give_back() -> None:
        path.unlink(missing_ok=True)
        os.close(handle)

    return give_back


def _beside(root: LocalPlace, ending: str) -> Path:
    return root.path.with_name(f".{root.name}.{ending}")


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
