"""`vcmodels reproduce`."""

import tempfile
from typing import Annotated

import typer

from vcmodels.cli.arguments import Debug
from vcmodels.cli.console import Console


def reproduce(
    context: typer.Context,
    output: Annotated[str, typer.Argument(metavar="OUTPUT.zarr", help="What infer wrote.")],
    into: Annotated[
        str | None,
        typer.Option("--output", metavar="DIR", help="Keep the second result in this folder."),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Where the checkpoint is now, if it was moved.")
    ] = None,
    debug: Debug = False,
) -> int:
    """Make a result again from its own attributes, and say whether it is identical; 1 if not."""
    from vcmodels import inference
    from vcmodels.stopping import StopSignals
    from vcmodels.volumes import expand_location

    console = Console()
    context.obj.begin()
    with StopSignals() as stop, tempfile.TemporaryDirectory(prefix="vcmodels-") as scratch:

        def should_stop() -> bool:
            stop.defer()
            return stop.is_stopped()

        comparison = inference.reproduce(
            expand_location(output),
            expand_location(into or scratch),
            checkpoint=checkpoint,
            reporter=console,
            should_stop=should_stop,
        )
    if not comparison.is_whole:
        console.say("stopped")
        return stop.exit_code
    for line in comparison.lines or [f"{output}: identical"]:
        console.say(line)
    return 1 if comparison.lines else 0
