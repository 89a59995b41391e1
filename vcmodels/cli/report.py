"""The command `report`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vcmodels.cli.arguments import Debug
from vcmodels.cli.console import Console
from vcmodels.errors import RefusedError

if TYPE_CHECKING:
    from vcmodels.evaluation.report import Report

COMPARISON = "comparison.html"


def report(
    context: typer.Context,
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR|REPORT.json...", help="What evaluate wrote; several are compared."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The page; report.html next to the report, or comparison.html here, if left out.",
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Of the page of one report.")] = None,
    debug: Debug = False,
) -> None:
    """Make the page of a report again, or one that compares several."""
    from vcmodels.evaluation.page import write_page
    from vcmodels.evaluation.pictures import FOLDER, KeptPictures
    from vcmodels.evaluation.report import PAGE, REPORT
    from vcmodels.evaluation.side_by_side import write_comparison

    console = Console()
    context.obj.begin()
    files = [source / REPORT if source.is_dir() else source for source in sources]
    if title is not None and len(files) > 1:
        raise RefusedError("--title", "is for the page of one report", "leave it out")
    reports = [_read(file) for file in files]
    if len(files) == 1:
        page = output or files[0].with_name(PAGE)
        pictures = KeptPictures(files[0].parent / FOLDER)
        write_page(reports[0], page, pictures, title)
    else:
        page = output or Path(COMPARISON)
        names = _names(files)
        if not write_comparison(dict(zip(names, reports, strict=True)), page):
            console.say("note: the reports have no figure of one target in common")
    console.say(f"wrote {page}")


def _read(file: Path) -> "Report":
    """A report.

    Raises:
        RefusedError: it is not there, or no report of this version.
    """
    import json

    from vcmodels.evaluation.report import REPORT, Report

    try:
        return Report.from_json(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        remedy = f"name a folder that evaluate -o wrote, or its {REPORT}"
        raise RefusedError(str(file), "is not there", remedy) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found = f"is no report of this version ({type(error).__name__}: {error})"
        raise RefusedError(str(file), found, "evaluate again") from error


def _names(files: Sequence[Path]) -> list[str]:
    """Short names of reports: the folder by which they differ; those that do not are numbered."""
    parts = [file.resolve().with_suffix("").parts for file in files]
    if len(set(parts)) > 1:
        while len({part[-1] for part in parts}) == 1:
            parts = [part[:-1] for part in parts]
    else:
        parts = [part[:-1] for part in parts]
    names = [part[-1] for part in parts]
    if len(set(names)) < len(names):
        names = ["/".join(part[-2:]) for part in parts]
    if len(set(names)) < len(names):
        names = [f"{number}: {name}" for number, name in enumerate(names, 1)]
    return names
