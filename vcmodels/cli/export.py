"""The command `export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vcmodels.cli.arguments import Debug, Quiet
from vcmodels.cli.console import Console
from vcmodels.errors import RefusedError


def export(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="RESULT|ARRAY|FILE|CHECKPOINT",
            help="A result of infer, any array or OME-Zarr group, or a file of another format; "
            "with --to, a checkpoint or run folder.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help=".nii.gz, .nii, .tif, .ome.tif, .seg.dcm, .h5, .nrrd, .mha or .npy; "
            "of a model, the file or folder for it.",
        ),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FORM",
            help="Write the model of a checkpoint: onnx, torch_export, safetensors, bioimageio or "
            "monai_bundle.",
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option("--license", metavar="NAME", help="Of an exported model, as in CC-BY-4.0."),
    ] = None,
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
    """Write a prediction, or any volume, as NIfTI, TIFF, HDF5 and more; or a model as ONNX and more."""
    if to is not None:
        _refuse_of_volumes(
            like=like, target=target, dtype=dtype, threshold=threshold, overwrite=overwrite
        )
        _export_model(context, source, to, output.expanduser(), licence, Console(is_quiet=quiet))
        return
    if licence is not None:
        raise RefusedError("--license", "goes with --to", "leave it out")
    _refuse_checkpoint(source)
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


def _export_model(
    context: typer.Context,
    source: str,
    to: str,
    output: Path,
    licence: str | None,
    console: Console,
) -> None:
    from vcmodels.reporting import StopSignals
    from vcmodels.workflows.model_export import export_model

    context.obj.begin()
    with StopSignals():
        export_model(Path(source).expanduser(), to, output, licence, console)


def _refuse_of_volumes(**given: object) -> None:
    """Refuse options that are about voxels.

    Raises:
        RefusedError: one is given.
    """
    for name, value in given.items():
        if value not in (None, False):
            raise RefusedError(f"--{name}", "goes with a volume, not with --to", "leave it out")


def _refuse_checkpoint(source: str) -> None:
    """Refuse a checkpoint where a volume should be.

    Raises:
        RefusedError: saying how a model is exported.
    """
    if source.endswith(".pth"):
        remedy = f"give the form of the model: vcmodels export {source} --to onnx -o model.onnx"
        raise RefusedError("--to", f"is missing, and {source} is a checkpoint", remedy)
