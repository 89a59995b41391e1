"""The command `skeleton`."""

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


def skeleton(
    context: typer.Context,
    ids: IdArray,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Write into this folder, which may be new.")
    ] = Path("skeletons"),
    form: Annotated[
        Literal["swc", "precomputed"],
        typer.Option(help="A file an object, or a folder for neuroglancer."),
    ] = "swc",
    chosen: ChosenIds = None,
    min_size: LeastSize = 1,
    max_voxels: Annotated[
        int,
        typer.Option(min=1000, metavar="N", help="Of a box; larger objects: on a coarser level."),
    ] = 1 << 24,
    level: ReadLevel = 0,
    workers: Workers = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the centre lines of objects with their radii: SWC, or for neuroglancer."""
    from vcmodels.objects.skeletons import SkeletonRequest, write_skeletons
    from vcmodels.objects.table import SYMBOLS
    from vcmodels.volumes.levels import stored_levels

    console = Console(is_quiet=quiet)
    context.obj.begin()
    volume = open_ids(ids, level, console)
    levels = stored_levels(volume)
    request = SkeletonRequest(levels, output, form, read_ids(chosen), min_size, max_voxels)
    if not request.check() and volume.unit not in SYMBOLS:
        taken = "nanometers" if form == "precomputed" else "micrometers"
        console.say(f"note: {volume.shown} says no unit; readers of {form} take {taken}")
    written = run(lambda crew: write_skeletons(request, crew), workers, console)
    if written.table is None:
        console.say(f"{output} is complete already")
        return
    found = written.table.ids.tolist()
    report_missing(request.chosen, [*found, *written.left_out], console)
    for number, count in written.coarse:
        console.say(f"note: {count} objects on level {level + number}, for --max-voxels")
    for one in written.left_out:
        console.say(f"note: {one} is too large for --max-voxels on every level that shows it")
    console.say(f"wrote {output}: {len(found)} objects, {written.points:,} points")
