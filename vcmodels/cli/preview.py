"""`vcmodels preview`."""

from pathlib import Path
from typing import Annotated

import typer

from vcmodels.cli.arguments import Debug, Overrides, TaskFile
from vcmodels.cli.console import Console
from vcmodels.cli.folds import Fold, load_one


def preview(
    context: typer.Context,
    task: TaskFile,
    set_: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the PNGs; <run folder>/preview when left out.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, max=100, help="Patches to show the whole list on.")
    ] = 3,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the draws; else the task's.")] = None,
    fold: Fold = None,
    debug: Debug = False,
) -> None:
    """Draw patches and their labels before and after each transform of the task's augmentation."""
    from vcmodels.preview import write_preview

    console = Console()
    context.obj.begin()
    loaded = load_one(task, set_, console, fold)
    folder, written = write_preview(loaded, output, samples=samples, seed=seed, reporter=console)
    console.say(f"{len(written)} pictures in {folder}")
