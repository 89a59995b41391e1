"""SIGINT and SIGTERM: a flag that the loop looks at, so that nothing is saved inside a handler."""

import os
import signal
import time
from types import FrameType, TracebackType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

ECHO_SECONDS = 2.0
"""What comes so soon after the first signal is the same one: a terminal, SLURM and `torchrun` signal
every process of a run, and a process that started others passes it on to them."""


class StopSignals:
    """While active, the first signal sets `received`; a later one ends the process at once.

    Before `defer` is called there is no state worth saving, so the first signal leaves at once too:
    a minute of compiling, say, is not waited for.
    Saving inside a handler can tear a file or hang on a lock that the interrupted code holds.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.is_deferred = False
        self._since = 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)  # pyright: ignore[reportArgumentType]

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

    def is_stopped(self) -> bool:
        """Whether a signal came."""
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell reports it; 0 when none came."""
        return 0 if self.received is None else 128 + self.received
