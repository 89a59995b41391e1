"""The command `roi`."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from vcmodels.cli.arguments import Debug
from vcmodels.cli.console import Console
from vcmodels.errors import RefusedError, VolumeError


def roi(
    context: typer.Context,
    outlines: Annotated[
        Path, typer.Argument(metavar="FILE", help="Polygons in JSON, or a .roi of Jim.")
    ],
    like: Annotated[str, typer.Option(metavar="IMAGE", help="The image that they were drawn on.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="MASK.zarr", help="The mask.")],
    axis: Annotated[
        Literal["z", "y", "x"],
        typer.Option(help="Across which the slices of Jim lie, in the stored image."),
    ] = "z",
    mirror: Annotated[
        str, typer.Option(metavar="x|y|xy", help="Axes of Jim's slices that run the other way.")
    ] = "",
    debug: Debug = False,
) -> None:
    """Fill outlines that were drawn on slices, as a mask on the grid of their image."""
    import numpy as np

    from vcmodels.formats.imported import open_located
    from vcmodels.regions.outlines import PaintedSlices, read_outlines
    from vcmodels.volumes import Blocks, Description, Grid, Pyramid, expand_location, write_volume
    from vcmodels.volumes.places import refuse_in_store
    from vcmodels.volumes.spacing import in_unit
    from vcmodels.volumes.world import GEOMETRY, OURS, geometry_note, world_affine

    console = Console()
    context.obj.begin()
    if not re.fullmatch("|x|y|xy|yx", mirror):
        raise RefusedError("--mirror", f'found "{mirror}"', "give x, y or xy")
    refuse_in_store("--output", output)
    image = open_located(expand_location(like), key="--like", channels="any", reporter=console)
    if not image.has_spacing:
        found = f"{image.shown} does not say how large its voxels are"
        raise VolumeError("--like", found, "give an image that does")
    size = in_unit(image.spacing, image.unit, "millimeter")
    found = read_outlines(outlines, image.extent, size, axis, mirror)
    painted = PaintedSlices.of(found, image.extent)
    affine = world_affine(image)
    notes = {} if affine is None else {OURS: {GEOMETRY: geometry_note(affine)}}
    chunks = (min(64, image.extent[0]), min(64, image.extent[1]), min(64, image.extent[2]))
    place = write_volume(
        output,
        Blocks(image.extent, np.dtype(np.uint8), painted.pieces(chunks)),
        grid=Grid(image.spacing, image.offset, image.unit),
        chunks=chunks,
        pyramid=Pyramid(values="mode"),
        description=Description(outlines.stem, notes),
    )
    console.say(f"wrote {place}: {len(found.polygons)} outlines on {len(painted.planes)} slices")
