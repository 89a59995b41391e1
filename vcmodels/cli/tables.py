"""How tables of figures are printed."""

import sys

from rich.console import Console as RichConsole
from rich.table import Table

from vcmodels.cli.console import Console

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


def number(value: float | None, digits: int | None = None, unknown: str = "") -> str:
    """A figure in four digits, or with `digits` behind the point; `unknown` when there is none."""
    if value is None:
        return unknown
    return f"{value:.4g}" if digits is None else f"{value:.{digits}f}"
