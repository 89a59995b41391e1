"""How long work tells what it does: lines, progress bars and records, shown by whoever calls."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

Record = dict[str, Any]
"""JSON values by name: what was done since the record before."""
Advance = Callable[[float, str], None]
"""Called with the amount of work just done and a short text to show beside the bar."""


def is_follower() -> bool:
    """Whether this is one of several processes of a job (torchrun's, say) but not the first.

    The first speaks for all: what every one of them would say, it alone does.
    """
    return os.environ.get("RANK", "0") != "0" and os.environ.get("WORLD_SIZE", "1") != "1"


def is_told_on_this_host() -> bool:
    """Whether another process of the job says what is refused before they have met.

    What is refused then is the same for all processes of a host: a task file, a device.
    """
    return is_follower() and os.environ.get("LOCAL_RANK", "0") != "0"


class Reporter(Protocol):
    """Where lines and progress go."""

    def say(self, line: str) -> None:
        """Tell one line."""
        ...

    def bar(self, name: str, total: float) -> AbstractContextManager[Advance]:
        """Show progress towards `total` while the context lasts."""
        ...

    def record(self, values: Record) -> None:
        """Keep figures of the work, for programs to read."""
        ...


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
