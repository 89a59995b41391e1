"""The command `mesh`."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from vcmodels.cli.arguments import Debug, Quiet
from vcmodels.cli.console import Console
from vcmodels.cli.objects import IdArray, ReadLevel, Workers, open_ids, run
from vcmodels.errors import RefusedError


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
    chosen: Annotated[
        str | None, typer.Option("--ids", metavar="ID,ID", help="Only these objects.")
    ] = None,
    min_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Only objects of so many voxels.")
    ] = 1,
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
    request = MeshRequest(volume, output, form, _ids(chosen), min_size, simplify)
    if not request.check() and form == "precomputed" and volume.unit not in SYMBOLS:
        console.say(f"note: {volume.shown} says no unit; neuroglancer takes nanometers")
    written = run(lambda crew: write_meshes(request, crew), workers, console)
    if written.table is None:
        console.say(f"{output} is complete already")
        return
    for missing in sorted({*request.chosen} - {*written.table.ids.tolist()}):
        console.say(f"note: {missing} has no voxel, or fewer than --min-size")
    count = len(written.table.ids)
    console.say(f"wrote {output}: {count} objects, {written.triangles:,} triangles")


def _ids(text: str | None) -> tuple[int, ...]:
    """Ids from a list of them.

    Raises:
        RefusedError: it is none, or one is no id.
    """
    words = [] if text is None else [word.strip() for word in text.split(",")]
    for word in words:
        if not re.fullmatch(r"[0-9]{1,20}", word) or not 0 < int(word) < 2**64:
            raise RefusedError("--ids", f'found "{word}"', "give whole numbers above 0, as in 1,7")
    return tuple(int(word) for word in words)
