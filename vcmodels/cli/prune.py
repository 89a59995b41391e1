"""The command `prune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vcmodels.cli.arguments import Debug, Overrides, Quiet
from vcmodels.cli.console import Console, narrow_table, number, write_table

if TYPE_CHECKING:
    from vcmodels.workflows.prune import Measured


def prune(
    context: typer.Context,
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT|RUN", help="A checkpoint, or a run for its best.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="The new run folder.")
    ],
    amount: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Of the channels of each level, that are removed."),
    ] = 0.5,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--fine-tune",
            metavar="MINUTES",
            min=0.01,
            help="Train the pruned network on for so long; not at all when left out.",
        ),
    ] = None,
    patches: Annotated[
        int, typer.Option(min=1, max=100_000, help="Training patches by which channels are judged.")
    ] = 32,
    set_: Overrides = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Remove channels of a trained network, and train the smaller one on."""
    from vcmodels.workflows.prune import PruneOptions
    from vcmodels.workflows.prune import prune as remove

    console = Console(is_quiet=quiet)
    context.obj.begin()
    folder = output.expanduser()
    options = PruneOptions(amount, folder, minutes, patches, tuple(set_ or ()))
    return remove(checkpoint.expanduser(), options, console, lambda found: _show(found, console))


def _show(found: list["Measured"], console: Console) -> None:
    """One row for each network."""
    scores = list(dict.fromkeys(name for one in found for name in one.scores))
    headers = ("network", "parameters", "kMAC/voxel", "ms/window", *scores)
    table = narrow_table(*headers)
    for one in found:
        figures = (number(one.scores.get(name), 4) for name in scores)
        size = (f"{one.parameters:,}", number(one.products / 1e3, 1), number(1e3 * one.window_s, 1))
        table.add_row(one.name, *size, *figures)
    write_table(table, console)
