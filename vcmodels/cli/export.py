"""The command `export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vcmodels.cli.arguments import Debug, Quiet
from vcmodels.cli.console import Console


def export(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="RESULT|ARRAY|FILE",
            help="A result of infer, any array or OME-Zarr group, or a file of another format.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help=".nii.gz, .nii, .tif, .ome.tif, .seg.dcm, .h5, .nrrd, .mha or .npy.",
        ),
    ],
    like: Annotated[
        str | None,
        typer.Option(
            metavar="ORIGINAL",
            help="The file, or DICOM folder, that was predicted: its header and its place are taken.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of a result with several, which one."),
    ] = None,
    dtype: Annotated[
        Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"] | None,
        typer.Option(help="Type of the voxels; chosen by what they mean when left out."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(metavar="VALUE", help="Write a mask of the voxels from this value on."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a prediction, or any volume, as NIfTI, TIFF, HDF5, NRRD, MetaImage, npy or DICOM SEG."""
    import numpy as np

    from vcmodels.reporting import StopSignals
    from vcmodels.workflows.export import ExportOptions
    from vcmodels.workflows.export import export as write

    console = Console(is_quiet=quiet)
    context.obj.begin()
    wanted = ExportOptions(like, None if dtype is None else np.dtype(dtype), threshold, overwrite)
    with StopSignals():
        write(source, target, output.expanduser(), wanted, console)
    console.say(f"wrote {output}")
