"""The command `postprocess`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vcmodels.cli.arguments import Debug, FoldIndex, Overrides, Quiet, load_one
from vcmodels.cli.console import Console
from vcmodels.errors import RefusedError, TaskError

if TYPE_CHECKING:
    from vcmodels.postprocess import AnyStep
    from vcmodels.workflows.ground import Ground

    Job = tuple[Ground, Sequence[AnyStep]]
    """What is worked on, and what is to be done."""

KEY = "postprocess"


def postprocess(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="TASK|RESULT|ARRAY",
            help="A task file or a run folder, a result of infer, or any array or OME-Zarr group.",
        ),
    ],
    steps: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON list of steps, instead of those of the task."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="DIR", help="Group for what is made of an array."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="What an array holds: binary, boundary, distance, instances, ..."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads; as many as cores by default.")
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Share the work: this is process I (from 0) of N."),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="On a Dask cluster: tcp://HOST:PORT, or local:N."),
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For what is needed on the way; else in the result."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make again what was made of something else.")
    ] = False,
    set_: Overrides = None,
    fold: FoldIndex = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Make masks, objects and surfaces of predictions, or continue doing so."""
    from vcmodels.blockwise import WHOLE, Crew
    from vcmodels.cli.evaluate import block_engine
    from vcmodels.cli.infer import read_part
    from vcmodels.reporting import StopSignals
    from vcmodels.workflows.postprocess import postprocess as do_steps

    if part is not None and dask is not None:
        raise RefusedError("--part", "goes with no --dask", "leave one out")
    which = WHOLE if part is None else read_part(part)
    console = Console(is_quiet=quiet)
    context.obj.begin()
    jobs = list(_jobs(source, steps, output, kind, set_, fold, console))
    with block_engine(workers, dask) as engine, StopSignals() as stop:
        crew = Crew(engine, which, console, stop.should_stop)
        for ground, wanted in jobs:
            report = do_steps(ground, wanted, crew, scratch=scratch, overwrite=overwrite)
            for name in report.made:
                console.say(f"{name}: {report.root / name}")
            if not report.is_complete:
                console.say("stopped; the same command continues")
                return stop.exit_code
    return 0


def _jobs(
    source: str,
    steps: Path | None,
    output: str | None,
    kind: str | None,
    set_: list[str] | None,
    fold: int | None,
    console: Console,
) -> "Iterator[Job]":
    """What is worked on: the result of a task, or those of its many volumes; a result; an array.

    Raises:
        RefusedError: an option is for another source, or there is nothing to do.
    """
    from vcmodels.cli.view import is_task, refuse_options
    from vcmodels.postprocess.tuning import with_tuned
    from vcmodels.viewers.contents import is_result
    from vcmodels.volumes import expand_location, place_at
    from vcmodels.workflows.ground import ground_of_result, results_of_task
    from vcmodels.workflows.tuning import steps_of_task

    given = None if steps is None else with_tuned(_read_steps(steps), {})
    if is_task(source):
        refuse_options("a task", output=output, kind=kind)
        task = load_one(Path(source), set_, console, fold)
        wanted = steps_of_task(task) if given is None else given
        _require_some(wanted, source)
        yield from ((ground, wanted) for ground in results_of_task(task))
        return
    refuse_options("an array or a result", set=set_, fold=fold)
    location = expand_location(source)
    if is_result(location):
        refuse_options("a result", output=output, kind=kind)
        wanted = _recorded_steps(location) if given is None else given
        _require_some(wanted, source)
        yield ground_of_result(place_at(location)), wanted
        return
    if given is None:
        remedy = "give a JSON file with a list of them, as a task has under postprocess"
        raise RefusedError("--steps", "is missing", remedy)
    yield _ground_of_array(location, output, kind, console), given


def _require_some(steps: "Sequence[AnyStep]", source: str) -> None:
    if not steps:
        found = f"{source} has no steps of post-processing"
        raise TaskError(KEY, found, "add some to the task, or give --steps FILE")


def _read_steps(path: Path) -> "tuple[AnyStep, ...]":
    """The steps in a file.

    Raises:
        TaskError: it cannot be read, or a key is wrong.
    """
    from vcmodels.config.load import parse_steps
    from vcmodels.config.read import parse_json

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(str(path), f"cannot be read ({error})", "name a JSON file") from error
    return parse_steps(parse_json(text, str(path)))


def _recorded_steps(location: str) -> "tuple[AnyStep, ...]":
    """The steps of the task that a result was predicted with."""
    from vcmodels.config.load import parse_steps
    from vcmodels.results import our_attributes
    from vcmodels.volumes import place_at

    task = our_attributes(place_at(location)).get("provenance", {}).get("task", {})
    return parse_steps(task.get(KEY, []))


def _ground_of_array(
    location: str, output: str | None, kind: str | None, console: Console
) -> "Ground":
    """A plain array, and the group for what is made of it.

    Raises:
        RefusedError: it is not said what it holds, or where the result goes.
    """
    from vcmodels.formats.imported import open_located
    from vcmodels.results import group_place
    from vcmodels.workflows.ground import ground_of_array

    volume = open_located(location, key="SOURCE", channels="any", reporter=console)
    if output is None:
        raise RefusedError(
            "--output", "is missing", "name the group for what is made, as in out.zarr"
        )
    if kind is None:
        if volume.dtype.kind == "f" or volume.dtype.itemsize < 4:
            found = f"is needed: {location} holds {volume.dtype}"
            raise RefusedError("--kind", found, "give binary, boundary, distance, instances, ...")
        kind = "instances"
    return ground_of_array(volume, "source", kind, group_place(output.rstrip("/")))
