"""The command `tune`."""

from typing import TYPE_CHECKING, Annotated

import typer

from vcmodels.cli.arguments import Debug, FoldIndex, Overrides, Quiet, TaskFile, load_one
from vcmodels.cli.console import Console

if TYPE_CHECKING:
    from vcmodels.config import Task


def tune(
    context: typer.Context,
    task: TaskFile,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads; as many as cores by default.")
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="On a Dask cluster: tcp://HOST:PORT, or local:N."),
    ] = None,
    set_: Overrides = None,
    fold: FoldIndex = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Choose the "tuned" values of post-processing on the validation volumes of a trained task."""
    console = Console(is_quiet=quiet)
    context.obj.begin()
    return choose_values(load_one(task, set_, console, fold), console, workers, dask)


def choose_values(
    task: "Task", console: Console, workers: int | None = None, dask: str | None = None
) -> int:
    """Choose them, or continue doing so; returns the exit code."""
    from vcmodels.cli.evaluate import block_engine
    from vcmodels.reporting import StopSignals
    from vcmodels.workflows.tuning import tune as tune_task

    with block_engine(workers, dask) as engine, StopSignals() as stop:
        found = tune_task(task, engine=engine, reporter=console, should_stop=stop.should_stop)
    if found is None:
        console.say("stopped; the same command continues")
    return stop.exit_code
