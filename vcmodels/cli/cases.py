"""The command `cases`."""

from pathlib import Path
from typing import Annotated

import typer

from vcmodels.cli.arguments import Debug, Overrides, TaskFile, load
from vcmodels.cli.console import Console, narrow_table, write_table
from vcmodels.errors import OutputError

MOST_SHOWN = 200
SHOWN = ("Split", "Group", "Cohort", "Shape", "Spacing", "Unit", "DType", "Channels")


def cases(
    context: typer.Context,
    task: TaskFile,
    set_: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="CSV", help="Also write the table, with all paths."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.")
    ] = False,
    debug: Debug = False,
) -> None:
    """List the volumes of a task as they are read: labels, split, groups, shape, voxel size, type."""
    from vcmodels.data.cases import case_rows, mixtures, write_cases
    from vcmodels.data.opening import open_each

    console = Console()
    context.obj.begin()
    if output is not None:
        require_free_file(output, overwrite=overwrite)
    loaded = load(task, set_, console)
    volumes = open_each(loaded, console)
    rows = case_rows(volumes, {})
    used = [name for name in SHOWN if any(row[name] for row in rows)]
    table = narrow_table("volume", "labels", *(name.lower() for name in used))
    for volume, row in list(zip(volumes, rows, strict=True))[:MOST_SHOWN]:
        table.add_row(volume.name, ", ".join(volume.labels), *(row[name] for name in used))
    write_table(table, console)
    if len(rows) > MOST_SHOWN:
        console.say(f"... and {len(rows) - MOST_SHOWN} more; -o writes all")
    console.say(f"{len(rows)} volumes")
    for line in mixtures(volumes):
        console.say(line)
    if output is not None:
        write_cases(output, rows)
        console.say(f"table written to {output}")


def require_free_file(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that would take the place of another: it may be the table that is read.

    Raises:
        OutputError: a file is there and is not to be replaced, or it is a folder or in a Zarr store.
    """
    from vcmodels.volumes.places import refuse_in_store

    if path.is_dir():
        raise OutputError("-o", f"{path} is a folder", "name a file, such as found.csv")
    refuse_in_store("-o", path)
    if path.exists() and not overwrite:
        raise OutputError("-o", f"{path} is there already", "name another, or give --overwrite")
