"""What long work reports to whoever called it, and in what words; how a signal asks it to stop."""

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType, TracebackType
from typing import Any, Protocol

Record = dict[str, Any]
"""JSON values by name: what was done since the record before."""
Advance = Callable[[float, str], None]
"""Called with the amount of work just done and a short text to show next to the bar."""


def is_follower() -> bool:
    """Whether this is one of several processes of a job (torchrun's, say) but not the first.

    The first speaks for all: what each of them would say, only the first says.
    """
    return os.environ.get("RANK", "0") != "0" and os.environ.get("WORLD_SIZE", "1") != "1"


def is_told_on_this_host() -> bool:
    """Whether another process of the job reports what is refused before they have met.

    What is refused then is the same for all processes of a host: a task file, a device.
    """
    return is_follower() and os.environ.get("LOCAL_RANK", "0") != "0"


class Reporter(Protocol):
    """Where lines and progress go."""

    def say(self, line: str) -> None:
        """Report one line."""
        ...

    def bar(self, name: str, total: float) -> AbstractContextManager[Advance]:
        """Show progress towards `total` while the context lasts."""
        ...

    def record(self, values: Record) -> None:
        """Keep figures of the work, for programs to read."""
        ...


def list_some(words: Iterable[object], most: int, *, between: str = ", ") -> str:
    """Some words as text for a message, and how many are left out: `a, b and 3 more`.

    Args:
        words: each is shown as `str` gives it.
        most: so many are shown, the first ones.
        between: separates them; it stands before "and", too, unless it is a comma.
    """
    every = [*map(str, words)]
    left_out = len(every) - most
    rest = f"and {left_out} more"
    shown = between.join(every[:most])
    if left_out <= 0:
        return shown
    return f"{shown} {rest}" if between == ", " else f"{shown}{between}{rest}"


def duration(seconds: float) -> str:
    """A time in the unit that people would say it in, as in `45 s`, `10 min`, `7 h`, `3 days`."""
    for unit, length, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


class Silent:
    """Keeps quiet: for library use and tests; what was said stays in `lines` and `records`."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.records: list[Record] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    @contextmanager
    def bar(self, name: str, total: float) -> Iterator[Advance]:
        del name, total
        yield lambda _amount, _text: None

    def record(self, values: Record) -> None:
        self.records.append(values)


class Notes(Silent):
    """Warns of each note, which a library user would else not see; other lines stay silent."""

    def say(self, line: str) -> None:
        super().say(line)
        if line.startswith("note: "):
            warnings.warn(line.removeprefix("note: "), stacklevel=2)


class Lines(Silent):
    """Prints each line, for notebooks and scripts; progress and records stay silent."""

    def say(self, line: str) -> None:
        print(line, flush=True)  # noqa: T201


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

ECHO_SECONDS = 2.0
"""What comes so soon after the first signal is the same one: a terminal, SLURM and `torchrun` signal
every process of a run, and a process that started others passes it on to them."""


class StopSignals:
    """While active, the first signal sets `received`; a later one ends the process at once.

    Before `defer` is called there is no state worth saving, so the first signal leaves at once too:
    a minute of compiling, say, is not waited for.
    Saving inside a handler can tear a file or hang on a lock that the interrupted code holds.

    Args:
        leaving: called when the first signal ends the work that early: reports what is left of it.
    """

    def __init__(self, leaving: Callable[[], None] | None = None) -> None:
        self._leaving = leaving
        self.received: int | None = None
        self.is_deferred = False
        self._since = 0.0
        self._previous: dict[int, object] = {}
        self._hook = sys.unraisablehook

    def __enter__(self) -> "StopSignals":
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._signal_again
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)  # pyright: ignore[reportArgumentType]
        sys.unraisablehook = self._hook
        if self._leaving is not None and kind is SystemExit and not self.is_deferred:
            self._leaving()

    def defer(self) -> None:
        """From now on leave the stopping to the loop."""
        self.is_deferred = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is not None:
            if time.monotonic() - self._since < ECHO_SECONDS:
                return
            os._exit(128 + number)
        self.received, self._since = number, time.monotonic()
        if not self.is_deferred:
            raise SystemExit(128 + number)

    def _signal_again(self, lost: "sys.UnraisableHookArgs") -> None:
        """Repeat a signal in a moment: Python drops what its handler raised inside a destructor.

        Compiling has many of those.
        """
        if lost.exc_type is not SystemExit or self.received is None:
            self._hook(lost)
            return
        number, self.received = self.received, None
        place = (threading.main_thread().ident or 0, number)
        threading.Timer(0.1, signal.pthread_kill, place).start()

    def is_stopped(self) -> bool:
        """Whether a signal came."""
        return self.received is not None

    def should_stop(self) -> bool:
        """As `is_stopped`; from the first time on, stopping is left to the loop that asks."""
        self.defer()
        return self.is_stopped()

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell reports it; 0 when none came."""
        return 0 if self.received is None else 128 + self.received
