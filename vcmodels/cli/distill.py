"""The command `distill`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vcmodels.cli.arguments import Debug, Overrides, Quiet, TaskFile
from vcmodels.cli.console import Console, narrow_table, number, write_table
from vcmodels.errors import RefusedError

if TYPE_CHECKING:
    from vcmodels.workflows.distill import Wish


def distill(
    context: typer.Context,
    task: TaskFile,
    teacher: Annotated[
        list[str],
        typer.Option(
            "--teacher", metavar="CHECKPOINT", help="Who teaches, or a run folder; may be repeated."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="For all runs and labels.")
    ],
    rounds: Annotated[
        int,
        typer.Option(
            min=0, max=100, metavar="N", help="Rounds of pseudo-labels; 0 teaches while it trains."
        ),
    ] = 0,
    confidence: Annotated[
        float | None,
        typer.Option(metavar="C", help="Voxels of which the teachers are less sure are left out."),
    ] = None,
    weight: Annotated[
        float, typer.Option(metavar="W", help="How much the teachers count next to the labels.")
    ] = 1.0,
    unlabelled: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT", help="A volume without labels; may be repeated, or hold a *."
        ),
    ] = None,
    set_: Overrides = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Train a student of trained networks, or continue doing so; volumes may have no labels."""
    from vcmodels.workflows import distill as workflow

    console = Console(is_quiet=quiet)
    context.obj.begin()
    if rounds and weight > 1:
        found = f"is {weight:g}, and a pseudo-label counts 1 at most"
        raise RefusedError("--weight", found, "give up to 1 with --rounds")
    wish = workflow.Wish(
        str(task),
        tuple(teacher),
        output.absolute(),
        rounds,
        confidence,
        weight,
        tuple(unlabelled or ()),
        tuple(set_ or ()),
    )
    code = workflow.distill(wish, console)
    if rounds and code == 0:
        _write(wish, console)
    return code


def _write(wish: "Wish", console: Console) -> None:
    """A line for each round: its best figures, and the shares that it was taught."""
    from vcmodels.workflows.distill import rounds

    found = list(rounds(wish.folder))
    table = narrow_table("round", "kept")
    names = list(dict.fromkeys(name for one in found for name in one.figures))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        kept = ", ".join(f"{label.target} {100 * label.kept:.0f} %" for label in one.labels)
        figures = (one.figures.get(name) for name in names)
        cells = ["-" if value is None else number(value) for value in figures]
        table.add_row(str(one.number), kept, *cells)
    write_table(table, console)
