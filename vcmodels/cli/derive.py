"""`vcmodels derive`."""

from typing import Annotated

import typer

from vcmodels.cli.arguments import Debug, Overrides, TaskFile, load
from vcmodels.cli.console import Console


def derive(
    context: typer.Context,
    task: TaskFile,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A target with derive.")],
    output: Annotated[str, typer.Option(metavar="OUT.zarr", help="The store to write.")],
    volume: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which volume, if there are several.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what derive has written there before.")
    ] = False,
    set_: Overrides = None,
    debug: Debug = False,
) -> None:
    """Write the derived label of a target for a whole volume, as training sees it."""
    from vcmodels import derivation

    console = Console()
    context.obj.begin()
    loaded = load(task, set_, console)
    derivation.derive(loaded, target, output, volume=volume, overwrite=overwrite, reporter=console)
