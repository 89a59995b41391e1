"""The command `audit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vcmodels.cli.arguments import Debug, Overrides, TaskFile, load
from vcmodels.cli.console import Console, Errors
from vcmodels.errors import RefusedError

if TYPE_CHECKING:
    from vcmodels.audit import Audit

_FORMS = (".html", ".json")


def audit(
    context: typer.Context,
    task: TaskFile,
    set_: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Write FILE.html or FILE.json, or both into this folder."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    fail_on: Annotated[
        Literal["error", "warning", "note"], typer.Option(help="Exit with 1 from this severity on.")
    ] = "error",
    debug: Debug = False,
) -> None:
    """Look at the data of a task for faults, and say what to do about each."""
    from vcmodels.audit import audit_task
    from vcmodels.volumes.places import refuse_in_store

    console = Errors() if as_json else Console()
    context.obj.begin()
    if output is not None:
        if output.suffix and output.suffix.lower() not in _FORMS and not output.is_dir():
            raise RefusedError("-o", f'found "{output}"', "name a .html, a .json, or a folder")
        refuse_in_store("-o", output)
    found = audit_task(load(task, set_, console), str(task), console)
    if as_json:
        Console().write(found.to_json())
    else:
        for line in found.lines():
            console.say(line)
    for path in _write(found, output) if output is not None else []:
        console.say(f"wrote {path}")
    if found.reaches(fail_on):
        raise typer.Exit(1)


def _write(found: "Audit", output: Path) -> list[Path]:
    """Write the forms that a path stands for; returns the files."""
    from vcmodels.audit.page import page
    from vcmodels.volumes.places import write_atomic

    is_file = output.suffix.lower() in _FORMS and not output.is_dir()
    paths = [output] if is_file else [output / "audit.html", output / "audit.json"]
    for path in paths:
        text = page(found) if path.suffix.lower() == ".html" else found.to_json()
        write_atomic(path, text.encode())
    return paths
