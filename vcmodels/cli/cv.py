"""`vcmodels cv`: what became of a cross-validation."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console as RichConsole
from rich.table import Table

from vcmodels.cli.arguments import Debug, Overrides, load
from vcmodels.cli.console import Console

if TYPE_CHECKING:
    from vcmodels.workflows.fold_report import Figures, FoldReport

cv = typer.Typer(help="Look at a cross-validation.", rich_markup_mode=None)


@cv.callback()
def _group() -> None:
    """Look at a cross-validation."""


@cv.command()
def report(
    context: typer.Context,
    task: Annotated[
        Path, typer.Argument(metavar="TASK|RUN", help="The task file, or the folder of the folds.")
    ],
    set_: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    debug: Debug = False,
) -> None:
    """Show each fold's validation, with mean and standard deviation, for every target and metric."""
    from vcmodels.workflows.fold_report import report_folds

    console = Console()
    context.obj.begin()
    if task.is_dir():
        found = report_folds(task)
    else:
        loaded = load(task, set_, console)
        found = report_folds(loaded.run_dir, loaded)
    if as_json:
        console.write(json.dumps(found.to_json(), indent=2) + "\n")
    else:
        say_report(found, console)


def say_report(report: "FoldReport", console: Console) -> None:
    """Print the figures as a table, and which folds are not finished."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("target", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    headers = [f"fold {fold.index}" for fold in report.folds]
    for header in (*headers, "mean", "sd", "last: mean", "sd"):
        table.add_column(header, justify="right", no_wrap=True)
    epochs = [str(fold.best_epoch or "-") for fold in report.folds]
    table.add_row("", "best epoch", *epochs, "", "", "", "")
    for row in report.rows:
        values = [_number(value) for value in row.best.values]
        table.add_row(row.target or "all", row.metric, *values, *_pair(row.best), *_pair(row.last))
    drawer = RichConsole(file=sys.stdout, width=10_000)  # a cut number misleads
    with drawer.capture() as capture:
        drawer.print(table)
    console.write("\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n")
    for note in report.notes():
        console.say(note)


def _pair(figures: "Figures") -> tuple[str, str]:
    return _number(figures.mean), _number(figures.sd)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
