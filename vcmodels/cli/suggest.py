"""The command `suggest`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vcmodels.cli.arguments import (
    Debug,
    FoldIndex,
    Overrides,
    Quiet,
    TaskFile,
    load_one,
    three_numbers,
)
from vcmodels.cli.console import Console, narrow_table, write_table


def suggest(
    context: typer.Context,
    task: TaskFile,
    boxes: Annotated[int, typer.Option(min=1, max=10_000, help="How many to suggest.")] = 20,
    size: Annotated[str, typer.Option(metavar="Z,Y,X", help="Voxels of a box.")] = "64,64,64",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="boxes.json, or boxes.zarr with their numbers.")
    ] = Path("boxes.json"),
    volume: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="A volume without labels, not of the task; repeated."),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Whose doubt counts; repeated.")
    ] = None,
    rule: Annotated[
        Literal["uncertain", "random"],
        typer.Option(help="What the network doubts, or at random, two of three with something."),
    ] = "uncertain",
    noise: Annotated[
        float, typer.Option(min=0, max=100, help="Of uncertain: 0 takes the most doubtful.")
    ] = 1.0,
    candidates: Annotated[
        int, typer.Option(min=1, max=100_000, help="Boxes that are predicted to choose from.")
    ] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    set_: Overrides = None,
    fold: FoldIndex = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Suggest what to label next: boxes without labels of which the trained network is unsure."""
    from vcmodels.errors import RefusedError

    if candidates < boxes:
        found = f"is {candidates}, fewer than the {boxes} boxes that are wanted"
        raise RefusedError("--candidates", found, "give more")
    console = Console(is_quiet=quiet)
    shape = three_numbers("--size", size)
    context.obj.begin()
    loaded = load_one(task, set_, console, fold)
    from vcmodels.reporting import StopSignals
    from vcmodels.workflows.suggest import SuggestOptions
    from vcmodels.workflows.suggest import suggest as suggest_boxes

    options = SuggestOptions(
        boxes, shape, candidates, rule, noise, seed, tuple(volume or ()), tuple(target or ())
    )
    with StopSignals() as stop:
        chosen = suggest_boxes(loaded, options, output, console, stop.should_stop)
    if chosen is None:
        console.say("stopped; the same command continues")
        return stop.exit_code
    table = narrow_table("", "volume", "origin z, y, x", "for", "doubt")
    for number, one in enumerate(chosen, 1):
        where = ", ".join(map(str, one.candidate.box.origin))
        table.add_row(str(number), one.candidate.volume, where, one.reason, f"{one.score:.4f}")
    write_table(table, console)
    if len(chosen) < boxes:
        console.say(f"note: {len(chosen)} boxes only: no other of the candidates is left")
    console.say(f"wrote {output}, and pictures in {output.with_suffix('')}")
    return stop.exit_code
