"""Lines on stdout, progress bars on stderr when a person is watching."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from vcmodels.cli.json_lines import JsonLines
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
        """Write text as it is; of several processes of a job the first alone does."""
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
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
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
    """Tells on stderr, where stdout is for a result alone."""

    def write(self, text: str) -> None:
        """Write text as it is."""
        if not is_follower():
            sys.stderr.write(text)
