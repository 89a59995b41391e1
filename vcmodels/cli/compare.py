"""The command `compare`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vcmodels.cli.arguments import Debug, Overrides
from vcmodels.cli.console import Console, Errors, narrow_table, number, write_table
from vcmodels.errors import RefusedError

if TYPE_CHECKING:
    from vcmodels.workflows.cohort_scores import CohortScore
    from vcmodels.workflows.compare import ComparedRow
    from vcmodels.workflows.fold_report import Figures


def compare(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK...|CHECKPOINT...",
            help="Task files to train; or, with --on, checkpoints to score.",
        ),
    ],
    over: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V,W,...", help="Train with each of these; may be repeated."),
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Score checkpoints on what this task holds out."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="For all runs and results.")
    ] = Path("comparison"),
    seeds: Annotated[
        int, typer.Option(min=1, max=100, metavar="N", help="Train each with N seeds.")
    ] = 1,
    jobs: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="Train N at once.")] = 1,
    set_: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: Debug = False,
) -> int:
    """Train several networks or settings on one split, or score several checkpoints; one table."""
    from vcmodels.workflows import compare as workflow

    console = Errors() if as_json else Console()
    context.obj.begin()
    if on:
        if over or seeds > 1 or jobs > 1:
            raise RefusedError(
                "--on", "goes with none of --over, --seeds and --jobs", "leave it out"
            )
        return _score(sources, on, set_ or (), output, console, as_json=as_json)
    variants = workflow.variants_of(sources, over or (), set_ or ())
    code = workflow.compare(variants, seeds, output, jobs=jobs, reporter=console)
    if code <= 1:
        _write(list(workflow.compared_rows(variants, seeds, output)), console, as_json=as_json)
    return code


def _write(rows: "Sequence[ComparedRow]", console: Console, *, as_json: bool) -> None:
    if as_json:
        Console().write(json.dumps([row.to_json() for row in rows], indent=2) + "\n")
        return
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    table = narrow_table("", "runs")
    for header in (*names, "minutes"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        cells = [_spread(row.figures.get(name)) for name in names]
        table.add_row(row.name, str(row.runs), *cells, _spread(row.minutes))
    write_table(table, console)


def _score(
    checkpoints: Sequence[str],
    tasks: Sequence[str],
    overrides: Sequence[str],
    output: Path,
    console: Console,
    *,
    as_json: bool,
) -> int:
    from vcmodels.reporting import StopSignals
    from vcmodels.workflows.cohort_scores import score_cohorts

    with StopSignals() as stop:
        scores = score_cohorts(
            checkpoints, tasks, overrides, output, reporter=console, should_stop=stop.should_stop
        )
    if scores is None:
        console.say("stopped; the same command continues")
        return stop.exit_code
    if as_json:
        Console().write(json.dumps([one.to_json() for one in scores], indent=2) + "\n")
        return 0
    _write_scores(scores, checkpoints, console)
    return 0


def _write_scores(
    scores: "Sequence[CohortScore]", checkpoints: Sequence[str], console: Console
) -> None:
    """A line for each checkpoint; of two, a third one says how they differ."""
    known = {
        (one.checkpoint, f"{one.cohort}: {target} {name}"): figures
        for one in scores
        for target, found in one.targets.items()
        for name, figures in list(found.items())[:1]
    }
    columns = list(dict.fromkeys(column for _, column in known))
    table = narrow_table("")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for checkpoint in checkpoints:
        table.add_row(checkpoint, *(_spread(known.get((checkpoint, c))) for c in columns))
    if len(checkpoints) == 2:
        before, after = checkpoints
        pairs = [(known.get((before, c)), known.get((after, c))) for c in columns]
        table.add_row("change", *(_change(a, b) for a, b in pairs))
    write_table(table, console)


def _change(before: "Figures | None", after: "Figures | None") -> str:
    if before is None or after is None or before.mean is None or after.mean is None:
        return "-"
    change = after.mean - before.mean
    return f"{'+' if change > 0 else ''}{number(change)}"


def _spread(figures: "Figures | None") -> str:
    """Mean and standard deviation."""
    if figures is None or figures.mean is None:
        return "-"
    spread = "" if figures.sd is None else f" +- {number(figures.sd)}"
    return f"{number(figures.mean)}{spread}"
