"""How long work tells a person what it does: lines and progress bars, drawn by whoever calls."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[float, str], None]
"""Called with the amount of work just done and a short text to show beside the bar."""


class Reporter(Protocol):
    """Where lines and progress go."""

    def say(self, line: str) -> None:
        """Tell one line."""
        ...

    def bar(self, name: str, total: float) -> AbstractContextManager[Advance]:
        """Show progress towards `total` while the context lasts."""
        ...


class Silent:
    """Keeps quiet: for library use and tests; what was said stays in `lines`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    @contextmanager
    def bar(self, name: str, total: float) -> Iterator[Advance]:
        del name, total
        yield lambda _amount, _text: None
