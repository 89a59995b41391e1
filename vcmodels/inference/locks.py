"""Who may write to an output: one process, or several that share the work.

A lease is an object that its process writes again every few seconds. One that was not for a minute
is void, and so is one whose process is known to have ended, as it ran on this machine. Leases rest
on conditional writes (`If-None-Match`, `If-Match`), of which the server lets just one through.

A process that stood still for longer than that may have lost its lease; it notices before its next
write, and ends.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

from vcmodels.errors import OutputError, RunError
from vcmodels.inference.journal import FOLDER
from vcmodels.reporting import Reporter
from vcmodels.volumes import LocalPlace, ObjectPlace, Place
from vcmodels.volumes.locks import FileLock, holder
from vcmodels.volumes.remote import UNKNOWN, RemoteError

BEAT_S = 5.0
VOID_S = 60.0
"""Age, by the server's clock, from which a lease is void."""
LOST_S = 40.0
"""Time without a beat after which its own process takes it for lost, well before others do."""
POLL_S = 0.5
REPORT_S = 5.0
"""Of waiting, before that is reported."""
_SETUP, _HOLD = "setup", "hold-"


@dataclass(frozen=True)
class SeenLease:
    """A lease of anybody, as it was at one moment."""

    name: str
    version: str
    age_s: float
    owner: dict[str, Any]

    @property
    def is_void(self) -> bool:
        """Whether its process is gone, or was silent for too long."""
        return self.age_s > VOID_S or (self._is_from_here and not self._is_running)

    @property
    def is_alive(self) -> bool:
        """Whether its process surely is there."""
        return not self.is_void and self._is_from_here

    def __str__(self) -> str:
        return f"pid {self.owner.get('pid')} on host {self.owner.get('host')}"

    @property
    def _is_from_here(self) -> bool:
        machine = _machine()
        return bool(machine) and self.owner.get("machine") == machine

    @property
    def _is_running(self) -> bool:
        return _started(self.owner.get("pid")) == self.owner.get("started")


class Lease:
    """An object that says that this process is there, from `take` to `drop`."""

    def __init__(self, folder: ObjectPlace, name: str, *, alone: bool) -> None:
        self.folder, self.name = folder, name
        self._owner = {
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "host": socket.gethostname(),
            "machine": _machine(),
            "alone": alone,
            "id": uuid.uuid4().hex,
        }
        self._version: str | None = None
        self._beats = 0
        self._last = 0.0
        self._dropped = Event()
        self._thread = Thread(target=self._renew, name=f"lease {name}", daemon=True)

    def take(self, over: SeenLease | None = None) -> bool:
        """Write it, if there is none of this name, or in place of another; whether that was done."""
        self._last = _now()
        if over is None:
            self._version = self.folder.create(self.name, self._text())
        else:
            self._version = self.folder.replace(self.name, self._text(), over.version)
        if self._version is None:
            return False
        self._thread.start()
        return True

    def drop(self) -> None:
        """Delete it, unless it was lost; if the server is gone it runs out by itself."""
        self._dropped.set()
        self._thread.join(timeout=1.0)  # a beat under way changes nothing once the object is gone
        if not self.is_lost:
            with suppress(RemoteError):
                self.folder.delete(self.name)

    @property
    def is_lost(self) -> bool:
        """Whether another process may have taken it for void."""
        return self._version is None or _now() - self._last > LOST_S

    def _renew(self) -> None:
        while not self._dropped.wait(BEAT_S) and self._version is not None:
            begun = _now()
            with suppress(RemoteError):  # at the next beat, then
                self._version = self.folder.replace(self.name, self._text(), self._version)
                self._last = begun

    def _text(self) -> bytes:
        self._beats += 1
        return json.dumps(self._owner | {"beats": self._beats}).encode()


class LeasedHold:
    """The right to write to an output in an object store; as `LockedHold`.

    Args:
        root: the output group.
        alone: as of `LockedHold`.
        reporter: told whom it waits for, if that takes long.

    Raises:
        OutputError: another process holds it, or the server has no conditional writes.
    """

    def __init__(self, root: ObjectPlace, *, alone: bool, reporter: Reporter) -> None:
        self.root, self.alone = root, alone
        self._folder = root / FOLDER
        self._lease: Lease | None = None
        _require_conditions(self._folder)
        self._wait_for_others(_Patience(root, reporter))
        self._lease = Lease(self._folder, f"{_HOLD}{uuid.uuid4().hex}", alone=alone)
        taken = self._lease.take()
        assert taken, "nobody else has this name"

    def check(self) -> None:
        """Refuse to go on when others may have taken over.

        Raises:
            RunError: this process stood still, or was cut off, for too long.
        """
        if self._lease is not None and self._lease.is_lost:
            found = (
                f"this process gave no sign of life for {LOST_S:g} s, another may have taken over"
            )
            raise RunError(str(self.root), found, "run the same command again")

    def is_sole(self) -> bool:
        """Whether no other process works on the output now."""
        self.check()
        return not self._others()

    def release(self) -> None:
        """Give it back, if that was not done."""
        if self._lease is not None:
            self._lease.drop()
            self._lease = None

    def _others(self) -> list[SeenLease]:
        """The leases of others; void ones are removed."""
        own = self._lease.name if self._lease else None
        others: list[SeenLease] = []
        for name in sorted(self._folder.names()):
            if not name.startswith(_HOLD) or name == own:
                continue
            found = _look(self._folder, name)
            if found and found.is_void:
                self._folder.delete(name)
            elif found:
                others.append(found)
        return others

    def _wait_for_others(self, patience: "_Patience") -> None:
        """Wait until nobody is in the way; a lease from elsewhere may be of a killed process.

        Raises:
            OutputError: somebody is, who is alive.
        """
        seen: dict[str, str] = {}
        while True:
            others = [o for o in self._others() if self.alone or o.owner.get("alone")]
            for other in others:
                if other.is_alive or seen.setdefault(other.name, other.version) != other.version:
                    remedy = "wait for it, or choose another output_dir"
                    raise OutputError(str(self.root), f"in use by {other}", remedy)
            if not others:
                return
            patience.wait(others[0])


class _Patience:
    """Waits, and reports once for whom when that takes long."""

    def __init__(self, root: ObjectPlace, reporter: Reporter) -> None:
        self.root, self.reporter = root, reporter
        self._report_at = _now() + REPORT_S
        self._has_reported = False

    def wait(self, other: SeenLease | None) -> None:
        """Wait a moment for another process, if it still is there."""
        if other and not self._has_reported and _now() > self._report_at:
            self.reporter.say(f"{self.root}: waiting for {other}")
            self._has_reported = True
        time.sleep(POLL_S)


def take_setup(root: ObjectPlace, reporter: Reporter) -> Callable[[], None]:
    """Wait until no other process begins, or ends, the work on an output.

    Args:
        root: the output group.
        reporter: told whom it waits for, if that takes long.

    Returns:
        What lets others in again.

    Raises:
        OutputError: the server has no conditional writes.
        RemoteError: the store cannot be written to.
    """
    lease, patience = Lease(root / FOLDER, _SETUP, alone=True), _Patience(root, reporter)
    try:
        while not lease.take():
            found = _look(lease.folder, _SETUP)
            if found and found.is_void and lease.take(over=found):
                break
            patience.wait(found)
    except RemoteError as error:
        if error.status != UNKNOWN:
            raise
        raise _no_conditions(lease.folder) from error
    return lease.drop


def _require_conditions(folder: ObjectPlace) -> None:
    """Refuse a server that does not keep to the conditions of a write.

    Raises:
        OutputError: two processes could not be kept apart.
    """
    name = "probe"  # others wait for us; one of a killed process may be there
    folder.delete(name)
    try:
        version = folder.create(name, b"1")
        keeps = version is not None and folder.create(name, b"2") is None
        keeps = keeps and folder.replace(name, b"3", f'"{"0" * 32}"') is None
    except RemoteError as error:
        if error.status != UNKNOWN:
            raise
        keeps = False
    folder.delete(name)
    if not keeps:
        raise _no_conditions(folder)


def _no_conditions(folder: ObjectPlace) -> OutputError:
    found = "its server takes no conditional writes, which keep two runs apart"
    return OutputError(str(folder), found, "write to a folder, and copy the result there")


def _look(folder: ObjectPlace, name: str) -> SeenLease | None:
    stamped = folder.look(name)
    if stamped is None:
        return None
    try:
        owner = json.loads(stamped.data)
    except ValueError:
        owner = {}  # not ours; it is void after a minute
    return SeenLease(name, stamped.version, stamped.age_s, owner if isinstance(owner, dict) else {})


def _machine() -> str:
    """What two processes share that can see each other by their ids; empty where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: object) -> str:
    """When a process began, in ticks since the machine did; empty when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The name, in parentheses, may hold anything. State is the third field, the start the 22nd.
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


def _now() -> float:
    """Seconds, those that the machine slept included."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class LockedHold:
    """The right to write to an output, until it is given back or the process ends.

    It is the lock of a file next to the output. It is got, and given back, only inside `setting_up`,
    so that nobody sees a state in between.

    Args:
        root: the output group.
        alone: keep all others off; else only processes that want it for themselves.

    Raises:
        OutputError: another process holds it.
    """

    def __init__(self, root: LocalPlace, *, alone: bool) -> None:
        path = _beside(root, "lock")
        try:
            self._lock: FileLock | None = FileLock(path, shared=not alone)
        except BlockingIOError as error:
            remedy = "wait for it, or choose another output_dir"
            raise OutputError(str(root), f"in use by {holder(path)}", remedy) from error
        self._lock.sign()

    def is_sole(self) -> bool:
        """Whether no other process works on the output now."""
        assert self._lock is not None, "it was given back"
        return self._lock.is_sole()

    def check(self) -> None:
        """Nothing: a lock cannot be lost."""

    def release(self) -> None:
        """Give it back, if that was not done."""
        if self._lock is not None:
            self._lock.close(delete=self._lock.is_sole())
            self._lock = None


Hold = LockedHold | LeasedHold


@contextmanager
def setting_up(root: Place, reporter: Reporter) -> Iterator[None]:
    """Begin, or end, the work on an output, one process at a time.

    Args:
        root: the output group.
        reporter: told whom it waits for, if that takes long, in an object store.

    Raises:
        OutputError: the output cannot be written.
    """
    key = "inference_params.output_dir"
    try:
        give_back = (
            take_setup(root, reporter) if isinstance(root, ObjectPlace) else _lock_setup(root)
        )
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
def working_on(root: Place, *, alone: bool, reporter: Reporter) -> Iterator[Hold]:
    """Hold an output while the context lasts, however it ends; `reporter` as for `setting_up`.

    Raises:
        OutputError: another process holds it, or the output cannot be written.
    """
    with setting_up(root, reporter):
        if isinstance(root, ObjectPlace):
            hold = LeasedHold(root, alone=alone, reporter=reporter)
        else:
            hold = LockedHold(root, alone=alone)
    try:
        yield hold
    finally:
        if isinstance(hold, LeasedHold):
            hold.release()  # at once: a server that is gone is not waited for
        else:
            with setting_up(root, reporter):
                hold.release()


def _lock_setup(root: LocalPlace) -> Callable[[], None]:
    path = _beside(root, "setup.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, waits=True)
    return lambda: lock.close(delete=True)


def _beside(root: LocalPlace, ending: str) -> Path:
    return root.path.with_name(f".{root.name}.{ending}")
