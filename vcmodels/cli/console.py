"""Lines and tables on stdout, progress bars on stderr, and a file of JSON lines."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from vcmodels.errors import RefusedError
from vcmodels.reporting import Advance, Record, is_follower


class Console:
    """The reporter of the command line.

    Args:
        has_records: records without a log go to stdout, if no person reads that; else nowhere.
        is_quiet: nothing is said, and no bar drawn.
    """

    def __init__(self, *, has_records: bool = False, is_quiet: bool = False) -> None:
        self._is_quiet = is_quiet
        self._progress: Progress | None = None
        self._has_records = has_records
        self.log: JsonLines | None = None
        """Where records go."""

    def say(self, line: str) -> None:
        """Write one line; when nobody reads stdout any more, the work goes on in silence."""
        self.write(line + "\n")

    def write(self, text: str) -> None:
        """Write text as it is; of several processes of a job only the first does."""
        if self._is_quiet or is_follower():
            return
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            # Also for the flush at the end of the process, which would complain once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def record(self, values: Record) -> None:
        """Write figures as a line of JSON."""
        if self.log is not None:
            if complaint := self.log.append(values):
                sys.stderr.write(complaint + "\n")  # an error: --quiet leaves it
        elif self._has_records and not sys.stdout.isatty():
            self.say(json.dumps(values))

    @contextmanager
    def bar(self, name: str, total: float) -> Iterator[Advance]:
        """A bar towards `total`; a second one, inside the first, is drawn below it."""
        if self._is_quiet or not sys.stderr.isatty() or is_follower():
            yield lambda _amount, _text: None
            return
        if self._progress is not None:
            with self._task(self._progress, name, total) as advance:
                yield advance
            return
        with self._live() as progress:
            self._progress = progress
            try:
                with self._task(progress, name, total) as advance:
                    yield advance
            finally:
                self._progress = None

    def _live(self) -> Progress:
        text = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # cut first where it is narrow
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", table_column=text),
            expand=True,
            console=RichConsole(stderr=True),
            transient=True,
            # Lines go above the bar on a terminal, and untouched into a file or pipe.
            redirect_stdout=sys.stdout.isatty(),
        )

    @contextmanager
    def _task(self, progress: Progress, name: str, total: float) -> Iterator[Advance]:
        task = progress.add_task(name, total=total, text="")

        def advance(amount: float, text: str) -> None:
            progress.update(task, advance=amount, text=text)

        try:
            yield advance
        finally:
            progress.remove_task(task)


class Errors(Console):
    """Writes to stderr, where stdout is only for a result."""

    def write(self, text: str) -> None:
        """Write text as it is."""
        if not is_follower():
            sys.stderr.write(text)


UNLIMITED = 10_000
"""Columns of a table that goes into a file or a pipe, or whose numbers must not be cut."""


def write_table(table: Table, console: Console, width: int = UNLIMITED) -> None:
    """Print a table without what would be blanks at the ends of its lines.

    Args:
        table: names in it are shown as they are, whatever brackets and colons they hold.
        console: where it goes.
        width: columns that it may take.
    """
    drawer = RichConsole(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)
    with drawer.capture() as capture:
        drawer.print(table)
    console.write("\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n")


def narrow_table(*headers: str) -> Table:
    """A table with a line under its headers, whose cells stay in one line."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(header, no_wrap=True)
    return table


def number(value: float | None, digits: int | None = None, unknown: str = "") -> str:
    """A figure in four digits, or with `digits` behind the point; `unknown` when there is none."""
    if value is None:
        return unknown
    return f"{value:.4g}" if digits is None else f"{value:.{digits}f}"


class JsonLines:
    """Appends records to a file, each in one write, so that several processes may share it.

    Args:
        path: the file; what it holds stays.

    Raises:
        RefusedError: it cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            found = f"{path} cannot be written ({error.strerror})"
            raise RefusedError(
                "--log-json", found, "name a file in a folder that is there"
            ) from error
        self._is_torn = False
        self._has_complained = False

    def append(self, values: Record) -> str:
        """Add a line; returns what to report about it, once: the disk is full, say."""
        line = f"{json.dumps(values)}\n".encode()
        if self._is_torn:
            line = b"\n" + line
        try:
            written = os.write(self._handle, line)
        except OSError as error:
            return self._complaint(error.strerror or str(error))
        self._is_torn = written < len(line)
        return self._complaint("the disk is full") if self._is_torn else ""

    def _complaint(self, reason: str) -> str:
        if self._has_complained:
            return ""
        self._has_complained = True
        return f"note: {self.path} loses lines ({reason}); the work goes on"

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)
