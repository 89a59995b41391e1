"""The commands. Each imports what it needs itself, so that `--help` is there at once."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer

import vcmodels
from vcmodels.cli import Session
from vcmodels.cli.arguments import (
    Debug,
    Overrides,
    TaskFile,
    load,
)
from vcmodels.cli.audit import audit
from vcmodels.cli.cases import cases
from vcmodels.cli.compare import compare
from vcmodels.cli.console import Console
from vcmodels.cli.data import derive, init, patches, preview
from vcmodels.cli.distill import distill
from vcmodels.cli.evaluate import evaluate
from vcmodels.cli.export import export
from vcmodels.cli.imports import import_
from vcmodels.cli.infer import infer, reproduce
from vcmodels.cli.mesh import mesh
from vcmodels.cli.objects import objects
from vcmodels.cli.overlay import overlay
from vcmodels.cli.phantom import phantom
from vcmodels.cli.postprocess import postprocess
from vcmodels.cli.prune import prune
from vcmodels.cli.region import region
from vcmodels.cli.report import report
from vcmodels.cli.roi import roi
from vcmodels.cli.runs import cv, runs
from vcmodels.cli.skeleton import skeleton
from vcmodels.cli.submit import submit
from vcmodels.cli.suggest import suggest
from vcmodels.cli.symmetry import symmetry
from vcmodels.cli.train import train
from vcmodels.cli.tune import tune
from vcmodels.cli.view import view
from vcmodels.errors import RefusedError

# Typer carries its own copy of click; this is the base of all errors in the arguments.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

SCHEMA_FILE = Path(vcmodels.__file__).with_name("task.schema.json")
"""Made by `make docs`: building it takes two seconds, for all that it describes is imported."""

app = typer.Typer(
    name="vcmodels",
    help="Multi-task 3D networks for huge, sparsely labelled Zarr volumes.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def run(arguments: list[str], session: Session) -> int:
    """Parse the arguments and run the command; returns its exit code."""
    try:
        result = app(
            args=arguments or ["--help"],
            prog_name=session.program,
            standalone_mode=False,
            obj=session,
        )
    except typer.Exit as leaving:
        return leaving.exit_code
    except typer.Abort:
        return 130
    except _UsageError as error:
        _refuse_arguments(error, session)
    return result if isinstance(result, int) else 0


def _refuse_arguments(error: Exception, session: Session) -> NoReturn:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else session.program
    message = getattr(error, "format_message", error.__str__)().rstrip(".")
    raise RefusedError(command, message, f"see {command} --help") from error


app.command()(init)
app.command()(train)


@app.command()
def check(
    context: typer.Context, task: TaskFile, set_: Overrides = None, debug: Debug = False
) -> None:
    """Validate a task and print its plan; nothing is trained and nothing written."""
    from vcmodels.cli.plan import report_plan

    console = Console()
    context.obj.begin()
    report_plan(load(task, set_, console), console)


@app.command()
def plan(
    context: typer.Context, task: TaskFile, set_: Overrides = None, debug: Debug = False
) -> None:
    """Plan patch and batch size from the volumes and the memory, and say why; writes nothing."""
    from vcmodels.cli.plan import report_sizes

    console = Console()
    context.obj.begin()
    report_sizes(load(task, set_, console), console)


@app.command()
def schema(
    context: typer.Context,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As the page docs/task-file.md.")
    ] = False,
    losses: Annotated[
        bool, typer.Option("--losses", help="The page docs/losses.md instead.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Print the JSON Schema of the task file."""
    if not markdown and not losses:
        context.obj.begin()
        Console().write(SCHEMA_FILE.read_text(encoding="utf-8"))
        return
    from vcmodels.config import task_schema
    from vcmodels.config.schema import loss_page, task_page

    context.obj.begin()
    Console().write(loss_page() if losses else task_page(task_schema()))


app.command()(phantom)
app.command()(cases)
app.command("import")(import_)
app.command()(patches)
app.command()(infer)
app.command()(reproduce)
app.command()(runs)
app.add_typer(cv, name="cv")
app.command()(submit)
app.command()(derive)
app.command()(preview)
app.command()(compare)
app.command()(distill)
app.command()(region)
app.command()(roi)
app.command()(audit)
app.command()(suggest)
app.command()(symmetry)
app.command()(postprocess)
app.command()(tune)
app.command()(evaluate)
app.command()(objects)
app.command()(mesh)
app.command()(skeleton)
app.command()(view)
app.command()(overlay)
app.command()(report)
app.command()(export)
app.command()(prune)
