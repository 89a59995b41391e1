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
    from vcmodels.workflows.fuse import FuseReport


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
    fuse: Annotated[
        bool,
        typer.Option(
            "--fuse", help="With --on: score them together, too, in every way, and without each."
        ),
    ] = False,
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,...", help="With --fuse: how much each counts.")
    ] = None,
    set_: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: Debug = False,
) -> int:
    """Train several networks or settings on one split, or score several checkpoints; one table."""
    from vcmodels.workflows import compare as workflow

    console = Errors() if as_json else Console()
    context.obj.begin()
    if (fuse or weights) and not (on and len(on) == 1 and fuse):
        option = "--fuse" if fuse else "--weights"
        remedy = "give one task by --on" if fuse else "give --fuse and --on, too"
        raise RefusedError(option, "scores checkpoints on what one task holds out", remedy)
    if on:
        if over or seeds > 1 or jobs > 1:
            raise RefusedError(
                "--on", "goes with none of --over, --seeds and --jobs", "leave it out"
            )
        if fuse:
            given = None if weights is None else _numbers(weights)
            return _fuse(sources, on[0], set_ or (), output, given, console, as_json=as_json)
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


def _numbers(text: str) -> list[float]:
    """The numbers of `--weights`.

    Raises:
        RefusedError: there is something else.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise RefusedError("--weights", f'found "{text}"', "give numbers, as in 2,1,1") from error


def _fuse(
    checkpoints: Sequence[str],
    task: str,
    overrides: Sequence[str],
    output: Path,
    weights: list[float] | None,
    console: Console,
    *,
    as_json: bool,
) -> int:
    from vcmodels.reporting import StopSignals
    from vcmodels.workflows import fuse as workflow

    with StopSignals() as stop:
        found = workflow.fuse(
            checkpoints,
            task,
            overrides,
            output,
            weights=weights,
            reporter=console,
            should_stop=stop.should_stop,
        )
    if found is None:
        console.say("stopped; the same command continues")
        return stop.exit_code
    if as_json:
        Console().write(json.dumps(found.to_json(), indent=2) + "\n")
        return 0
    _write_fused(found, console)
    console.say(f"note: {workflow.FITTED}: {workflow.NOTE}")
    console.say(f"wrote {output / workflow.TABLE} and {output / workflow.PAGE}")
    return 0


def _write_fused(found: "FuseReport", console: Console) -> None:
    """A line for each way with the main figure of each target, then what each member adds."""
    table = narrow_table("")
    for target, (figure, _) in found.main.items():
        table.add_column(f"{target} {figure}", justify="right", no_wrap=True)
    for way, report in found.reports.items():
        known = [target in report.targets for target in found.main]
        pairs = zip(found.main, known, strict=True)
        table.add_row(way, *(number(found.figure(way, t)) if k else "-" for t, k in pairs))
    for member in found.members:
        gains = [found.gains(target)[member] for target in found.main]
        table.add_row(f"{member} adds", *(f"{gain:+.4g}" for gain in gains))
    write_table(table, console)


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
