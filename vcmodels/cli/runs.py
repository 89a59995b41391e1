"""`vcmodels runs`: the runs below a folder as a table, or some of them beside each other."""

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

from vcmodels.cli.arguments import Debug
from vcmodels.cli.console import Console
from vcmodels.cli.tables import UNLIMITED, number, write_table
from vcmodels.errors import RefusedError

if TYPE_CHECKING:
    from vcmodels.runs.survey import Figure, Run

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
    from vcmodels.runs.records import is_run
    from vcmodels.runs.survey import find_runs, read_run

    console = Console()
    context.obj.begin()
    given = folders or [Path()]
    for folder in given:
        if not folder.is_dir():
            raise RefusedError(str(folder), "no such folder", "name a folder that holds runs")
    if len(given) > 1 and all(is_run(folder) for folder in given):
        _compare([read_run(folder) for folder in given], as_json, console)
        return
    places = dict.fromkeys(place for folder in given for place in find_runs(folder))
    found = sorted(map(read_run, places), key=lambda run: run.changed)
    if as_json:
        _write_json([run.to_json() for run in found], console)
    elif found:
        write_table(_list_table(found, _width()), console, _width())
    else:
        console.say(f"no runs below {', '.join(map(str, given))}")
    for run in found:
        if run.reason and not as_json:
            console.say(f"{run.folder}: {run.state}: {run.reason}")


def _list_table(found: Sequence["Run"], width: int) -> Table:
    """A line for each run, the one that changed last at the end; or one for each target."""
    table = _table()
    for header in ("run", "state", "epoch", "val loss", "best"):
        table.add_column(header, no_wrap=header in ("state", "epoch"), overflow="fold")
    for header in ("min", "patch/s", "device", "changed"):
        table.add_column(header, no_wrap=True)
    for run in found:
        figures = [_figure(name, figure, figure.best) for name, figure in run.figures.items()]
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


def _compare(found: Sequence["Run"], as_json: bool, console: Console) -> None:
    from vcmodels.runs.differences import differing_keys, shown

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


def _rows(found: Sequence["Run"]) -> list[tuple[str, list[str]]]:
    """What is to be compared of runs besides their tasks: (name, a cell for each run)."""
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


def _figure(target: str, figure: "Figure", value: float | None) -> str:
    return f"{target} {figure.metric} {number(value)}"


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
    """Of the terminal, or as `COLUMNS` says."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return shutil.get_terminal_size().columns
    return UNLIMITED


def _write_json(value: object, console: Console) -> None:
    console.write(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
