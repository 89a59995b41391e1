"""`vcmodels cv`: what became of a cross-validation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from vcmodels.cli.arguments import Debug, Overrides, TaskFile, load
from vcmodels.cli.console import Console, Errors
from vcmodels.cli.folds import FoldCount, with_folds
from vcmodels.cli.tables import number, write_table

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


@cv.command()
def evaluate(
    context: typer.Context,
    task: TaskFile,
    set_: Overrides = None,
    folds: FoldCount = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    debug: Debug = False,
) -> int:
    """Predict what each fold held out with its best checkpoint, and score it as a whole."""
    from vcmodels.stopping import StopSignals
    from vcmodels.training.siblings import with_begun_folds
    from vcmodels.workflows.held_out import figures_of, score_held_out, scores_to_json

    console = Errors() if as_json else Console()
    context.obj.begin()
    loaded = with_begun_folds(load(task, with_folds(set_, folds), console))
    with StopSignals() as stop:

        def should_stop() -> bool:
            stop.defer()
            return stop.is_stopped()

        scored = score_held_out(loaded, console, should_stop)
    if scored is None:
        console.say("stopped; the same command continues")
        return stop.exit_code
    assert loaded.tr_params.folds
    count = loaded.tr_params.folds.count
    figures = figures_of(scored, count)
    if as_json:
        Console().write(json.dumps(scores_to_json(scored, figures), indent=2) + "\n")
        return 0
    table = _table([*(f"fold {index}" for index in range(count)), "mean", "sd"])
    for (target, metric), row in figures.items():
        table.add_row(target, metric, *map(_number, row.values), *_pair(row))
    write_table(table, console)
    return 0


def say_report(report: "FoldReport", console: Console) -> None:
    """Print the figures as a table, and which folds are not finished."""
    headers = [f"fold {fold.index}" for fold in report.folds]
    table = _table([*headers, "mean", "sd", "last: mean", "sd"])
    epochs = [str(fold.best_epoch or "-") for fold in report.folds]
    table.add_row("", "best epoch", *epochs, "", "", "", "")
    for row in report.rows:
        values = [_number(value) for value in row.best.values]
        table.add_row(row.target or "all", row.metric, *values, *_pair(row.best), *_pair(row.last))
    write_table(table, console)
    for note in report.notes():
        console.say(note)


def _table(headers: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("target", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _pair(figures: "Figures") -> tuple[str, str]:
    return _number(figures.mean), _number(figures.sd)


def _number(value: float | None) -> str:
    return number(value, unknown="-")
