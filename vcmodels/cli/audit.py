"""The command `audit`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vcmodels.cli.arguments import Debug, Overrides, load
from vcmodels.cli.console import Console, Errors
from vcmodels.errors import FaultError, RefusedError

if TYPE_CHECKING:
    from vcmodels.audit import Audit
    from vcmodels.targets.stored import ForegroundRule

_FORMS = (".html", ".json")


def audit(
    context: typer.Context,
    task: Annotated[
        Path,
        typer.Argument(metavar="TASK|PREDICTION", help="A task file; or a mask, with --image."),
    ],
    set_: Overrides = None,
    image: Annotated[
        str | None,
        typer.Option(help="What the mask was predicted from: an array, or an OME group."),
    ] = None,
    mask: Annotated[
        str | None, typer.Option(help="Write the mask, 0 where the image is empty, to this folder.")
    ] = None,
    foreground: Annotated[
        str | None, typer.Option(help='Which of its values are foreground, such as ">= 0.5".')
    ] = None,
    empty: Annotated[
        str | None, typer.Option(help='Which values of the image are empty, such as "<= 12".')
    ] = None,
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
    """Look at the data of a task, or at a predicted mask, for faults; say what to do about each."""
    from vcmodels.audit import audit_task
    from vcmodels.volumes.places import refuse_in_store

    console = Errors() if as_json else Console()
    context.obj.begin()
    if output is not None:
        if output.suffix and output.suffix.lower() not in _FORMS and not output.is_dir():
            raise RefusedError("-o", f'found "{output}"', "name a .html, a .json, or a folder")
        refuse_in_store("-o", output)
    _refuse_stray(image, {"--mask": mask, "--foreground": foreground, "--empty": empty}, set_)
    if image is None:
        found = audit_task(load(task, set_, console), str(task), console)
    else:
        found = _of_prediction(str(task), image, mask, foreground, empty, console)
    if as_json:
        Console().write(found.to_json())
    else:
        for line in found.lines():
            console.say(line)
    for path in _write(found, output) if output is not None else []:
        console.say(f"wrote {path}")
    if found.reaches(fail_on):
        raise typer.Exit(1)


def _refuse_stray(
    image: str | None, others: dict[str, str | None], overrides: list[str] | None
) -> None:
    """Refuse options that have no effect.

    Raises:
        RefusedError: one of a prediction without --image, or --set with it.
    """
    if image is not None and overrides:
        raise RefusedError("--set", "goes with no --image", "leave one out")
    for option, value in others.items():
        if image is None and value is not None:
            raise RefusedError(option, "is for a prediction", "give its image with --image")


def _of_prediction(
    prediction: str,
    image: str,
    mask: str | None,
    foreground: str | None,
    empty: str | None,
    console: Console,
) -> "Audit":
    from vcmodels.audit.prediction import audit_prediction
    from vcmodels.formats.imported import open_located
    from vcmodels.volumes import expand_location
    from vcmodels.volumes.places import refuse_in_store

    if mask is not None:
        refuse_in_store("--mask", mask)
    # A path loses one of two slashes, which a URL needs.
    place = re.sub(r"^(\w+):/(?!/)", r"\1://", prediction)
    return audit_prediction(
        open_located(expand_location(place), channels=1, reporter=console),
        open_located(expand_location(image), key="--image", channels=1, reporter=console),
        foreground=_rule("--foreground", foreground),
        empty=_rule("--empty", empty),
        mask=None if mask is None else expand_location(mask),
        reporter=console,
    )


def _rule(option: str, text: str | None) -> "ForegroundRule | None":
    from vcmodels.targets.stored import ForegroundRule

    try:
        return None if text is None else ForegroundRule.parse(text)
    except FaultError as error:
        raise RefusedError(option, error.found, error.remedy) from error


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
