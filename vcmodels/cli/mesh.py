"""The command `mesh`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vcmodels.cli.arguments import Debug, Quiet
from vcmodels.cli.console import Console
from vcmodels.cli.objects import (
    ChosenIds,
    IdArray,
    LeastSize,
    ReadLevel,
    Workers,
    open_ids,
    read_ids,
    report_missing,
    run,
)


def mesh(
    context: typer.Context,
    ids: IdArray,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Write into this folder, which may be new.")
    ] = Path("meshes"),
    form: Annotated[
        Literal["ply", "obj", "precomputed"],
        typer.Option(help="A file an object, or a folder for neuroglancer."),
    ] = "ply",
    chosen: ChosenIds = None,
    min_size: LeastSize = 1,
    simplify: Annotated[
        int,
        typer.Option(min=1, max=1000, metavar="N", help="An N-th of the triangles, if it can be."),
    ] = 1,
    level: ReadLevel = 0,
    workers: Workers = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the surfaces of objects as closed meshes: PLY, OBJ, or for neuroglancer."""
    from vcmodels.objects.meshes import MeshRequest, write_meshes
    from vcmodels.objects.table import SYMBOLS

    console = Console(is_quiet=quiet)
    context.obj.begin()
    volume = open_ids(ids, level, console)
    request = MeshRequest(volume, output, form, read_ids(chosen), min_size, simplify)
    if not request.check() and form == "precomputed" and volume.unit not in SYMBOLS:
        console.say(f"note: {volume.shown} says no unit; neuroglancer takes nanometers")
    written = run(lambda crew: write_meshes(request, crew), workers, console)
    if written.table is None:
        console.say(f"{output} is complete already")
        return
    report_missing(request.chosen, written.table.ids.tolist(), console)
    count = len(written.table.ids)
    console.say(f"wrote {output}: {count} objects, {written.triangles:,} triangles")
