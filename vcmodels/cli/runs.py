"""The commands `runs` and `cv`: trainings as tables."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from vcmodels.cli.arguments import Debug, FoldCount, Overrides, TaskFile, load, with_folds
from vcmodels.cli.console import UNLIMITED, Console, Errors, narrow_table, number, write_table
from vcmodels.errors import RefusedError

if TYPE_CHECKING:
    from vcmodels.runs.survey import RunStatus
    from vcmodels.workflows.fold_report import Figures, FoldReport


WIDE = 100
NOT_COMPARED = ("tr_params.ckpt_out_base", "tr_params.tensorboard_log_dir", "overrides")
"""Keys that differ between any two runs, or say again what other keys say."""


def runs(
    context: typer.Context,
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER]...", help="Look here and below; else in this folder."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    debug: Debug = False,
) -> None:
    """List runs and how they stand; of two or more run folders, show how they differ."""
    from vcmodels.runs.run import Run
    from vcmodels.runs.survey import find_runs, read_status

    console = Console()
    context.obj.begin()
    given = folders or [Path()]
    for folder in given:
        if not folder.is_dir():
            raise RefusedError(str(folder), "no such folder", "name a folder that holds runs")
    if len(given) > 1 and all(Run(folder).is_begun() for folder in given):
        _compare([read_status(folder) for folder in given], as_json, console)
        return
    places = dict.fromkeys(place for folder in given for place in find_runs(folder))
    found = sorted(map(read_status, places), key=lambda run: run.changed)
    if as_json:
        _write_json([run.to_json() for run in found], console)
    elif found:
        write_table(_list_table(found, _width()), console, _width())
    else:
        console.say(f"no runs below {', '.join(map(str, given))}")
    for run in found:
        if run.reason and not as_json:
            console.say(f"{run.folder}: {run.state}: {run.reason}")


def _list_table(found: Sequence["RunStatus"], width: int) -> Table:
    """A line for each run, the one that changed last at the end; or one for each target."""
    table = _table()
    for header in ("run", "state", "epoch", "val loss", "best"):
        table.add_column(header, no_wrap=header in ("state", "epoch"), overflow="fold")
    for header in ("min", "patch/s", "device", "changed"):
        table.add_column(header, no_wrap=True)
    for run in found:
        figures = [f"{name} {one.metric} {number(one.best)}" for name, one in run.figures.items()]
        table.add_row(
            str(run.folder),
            run.state,
            f"{run.epoch}/{run.max_epoch}",
            number(run.best_loss),
            (", " if width == UNLIMITED else "\n").join(figures),
            number(run.minutes, 0),
            number(run.patches_per_second, 1),
            run.device,
            _age(run.changed),
        )
    return table


def _compare(found: Sequence["RunStatus"], as_json: bool, console: Console) -> None:
    from vcmodels.runs.run import differing_keys, shown

    differing = {
        key: values
        for key, values in differing_keys([run.task for run in found]).items()
        if key not in NOT_COMPARED
    }
    if as_json:
        _write_json({"differences": differing, "runs": [run.to_json() for run in found]}, console)
        return
    table = _table()
    for header in ("", *(str(run.folder) for run in found)):
        table.add_column(header, overflow="fold")
    for key, values in differing.items():
        table.add_row(key, *map(shown, values))
    if not differing:
        table.add_row("the tasks are the same")
    table.add_section()
    for name, cells in _rows(found):
        table.add_row(name, *cells)
    write_table(table, console, _width())


def _rows(found: Sequence["RunStatus"]) -> list[tuple[str, list[str]]]:
    """The rows under the tasks: (name, a cell for each run)."""
    rows = [
        ("state", [run.state for run in found]),
        ("epochs", [f"{run.epoch}/{run.max_epoch}" for run in found]),
        ("best epoch", [str(run.best_epoch or "") for run in found]),
        ("val loss: best", [number(run.best_loss) for run in found]),
        ("val loss: last", [number(run.last_loss) for run in found]),
    ]
    for target in dict.fromkeys(name for run in found for name in run.figures):
        figures = [run.figures.get(target) for run in found]
        metric = next(figure.metric for figure in figures if figure)
        name = f"{target} {metric}"
        rows += [
            (f"{name}: best", [number(f.best if f else None) for f in figures]),
            (f"{name}: last", [number(f.last if f else None) for f in figures]),
        ]
    return [
        *rows,
        ("minutes", [number(run.minutes, 1) for run in found]),
        ("patches/s", [number(run.patches_per_second, 1) for run in found]),
        ("device", [run.device for run in found]),
    ]


def _age(then: datetime) -> str:
    """How long ago something was, in the largest unit that is not zero."""
    seconds = max(int((datetime.now(UTC) - then).total_seconds()), 0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return "now"


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 1 if _width() < WIDE else 2, 0, 0))


def _width() -> int:
    """Characters in a line: of the terminal, or as `COLUMNS` says."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return shutil.get_terminal_size().columns
    return UNLIMITED


def _write_json(value: object, console: Console) -> None:
    console.write(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


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
        found = report_folds(loaded.run_dir, loaded.tr_params.folds)
    if as_json:
        console.write(json.dumps(found.to_json(), indent=2) + "\n")
    else:
        write_report(found, console)


@cv.command()
def evaluate(
    context: typer.Context,
    task: TaskFile,
    set_: Overrides = None,
    folds: FoldCount = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="For the report; else RUN/evaluation."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    debug: Debug = False,
) -> int:
    """Predict what each fold held out with its best checkpoint, and score it as a whole."""
    from vcmodels.reporting import StopSignals
    from vcmodels.training.other_folds import with_begun_folds
    from vcmodels.workflows.fold_report import figures_of, score_held_out, scores_to_json

    console = Errors() if as_json else Console()
    context.obj.begin()
    loaded = with_begun_folds(load(task, with_folds(set_, folds), console))
    with StopSignals() as stop:
        folder = output or loaded.run_dir / "evaluation"
        scored = score_held_out(loaded, console, stop.should_stop, folder)
    if scored is None:
        console.say("stopped; the same command continues")
        return stop.exit_code
    assert loaded.tr_params.folds
    count = loaded.tr_params.folds.count
    figures = figures_of(scored, count)
    if as_json:
        Console().write(json.dumps(scores_to_json(scored, figures), indent=2) + "\n")
        return 0
    table = _folds_table([*(f"fold {index}" for index in range(count)), "mean", "sd"])
    for (target, metric), row in figures.items():
        table.add_row(target, metric, *map(_number, row.values), *_pair(row))
    write_table(table, console)
    return 0


def write_report(report: "FoldReport", console: Console) -> None:
    """Write the figures as a table, and which folds are not finished."""
    headers = [f"fold {fold.index}" for fold in report.folds]
    table = _folds_table([*headers, "mean", "sd", "last: mean", "sd"])
    epochs = [str(fold.best_epoch or "-") for fold in report.folds]
    table.add_row("", "best epoch", *epochs, "", "", "", "")
    for row in report.rows:
        values = [_number(value) for value in row.best.values]
        table.add_row(row.target or "all", row.metric, *values, *_pair(row.best), *_pair(row.last))
    write_table(table, console)
    for note in report.notes():
        console.say(note)


def _folds_table(headers: Sequence[str]) -> Table:
    table = narrow_table("target", "metric")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _pair(figures: "Figures") -> tuple[str, str]:
    return _number(figures.mean), _number(figures.sd)


def _number(value: float | None) -> str:
    return number(value, unknown="-")
