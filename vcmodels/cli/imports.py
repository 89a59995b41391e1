"""The command `import`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vcmodels.cli.arguments import Debug, Quiet
from vcmodels.cli.console import Console
from vcmodels.errors import RefusedError


def import_(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE... DEST",
            help="Files (NIfTI, DICOM, TIFF, HDF5, NRRD, MetaImage, N5, npy), and a .zarr, or a folder; "
            "or a trained fold of nnU-Net, and a .pth.",
        ),
    ],
    labels: Annotated[
        bool,
        typer.Option(
            "--labels", help="Values are classes or ids: coarser levels take the most frequent."
        ),
    ] = False,
    levels: Annotated[
        int | None,
        typer.Option(min=0, max=20, help="Coarser levels; as many as help viewers when left out."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what import has written there before.")
    ] = False,
    keep_header: Annotated[
        bool,
        typer.Option(
            "--keep-header", help="Keep all tags of DICOM as attributes: they name the patient."
        ),
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write files of other formats as OME-Zarr, as (z, y, x), with voxel size and place; or a model."""
    from vcmodels.exchange.nnunet_folder import is_nnunet
    from vcmodels.formats.imported import import_file
    from vcmodels.volumes import Pyramid

    console = Console(is_quiet=quiet)
    context.obj.begin()
    *given, destination = paths
    if len(given) == 1 and is_nnunet(Path(given[0])):
        _import_model(Path(given[0]), Path(destination), console, overwrite=overwrite)
        return
    sources = _expanded(given)
    places = _places(sources, destination, overwrite=overwrite)
    for source, place in places.items():
        pyramid = Pyramid(levels, "mode" if labels else "mean")
        header = import_file(
            source, place, console, pyramid=pyramid, overwrite=overwrite, keep_header=keep_header
        )
        console.say(f"wrote {place}: {header.shape} {header.dtype}")


def _import_model(source: Path, destination: Path, console: Console, *, overwrite: bool) -> None:
    """Write a trained fold of nnU-Net as a checkpoint.

    Raises:
        RefusedError: it cannot be done here, or the destination is no name for it.
    """
    from vcmodels.exchange.nnunet import convert

    if destination.suffix != ".pth":
        raise RefusedError(str(destination), "is no name of a checkpoint", "name it as net.pth")
    if destination.exists() and not overwrite:
        raise RefusedError(str(destination), "is there already", "name another, or add --overwrite")
    convert(source, destination)
    console.say(f"wrote {destination}")


def _expanded(given: Sequence[str]) -> list[str]:
    """The files that are named, those of patterns too.

    Raises:
        RefusedError: there is none, one is no file that can be imported.
    """
    from vcmodels.formats import FORMATS, format_of
    from vcmodels.volumes import expand_location, expand_pattern

    if not given:
        raise RefusedError("SOURCE", "is missing", "give a file, and the .zarr to write")
    found = [place for text in given for _, place in expand_pattern(expand_location(text))]
    for place in found:
        if format_of(place) is None:
            endings = " ".join(ending for one in FORMATS for ending in one.endings)
            text = "is not there, or of no format that is known"
            raise RefusedError(place, text, f"give one of {endings}")
    return found


def _places(sources: Sequence[str], destination: str, *, overwrite: bool) -> dict[str, Path]:
    """Where the import of each file goes: the destination, or a .zarr of the file's name in it.

    Raises:
        RefusedError: it is a URL, two would have one name, something is there, or a store is around
            it.
    """
    from vcmodels.formats import file_stem
    from vcmodels.formats.imported import require_free
    from vcmodels.volumes import expand_location, is_remote

    located = expand_location(destination)
    if is_remote(located):
        raise RefusedError(located, "is a URL", "name a local path, and copy what is written")
    into = Path(located)
    if len(sources) == 1 and into.suffix == ".zarr":
        places = [into]
    else:
        places = [into / f"{file_stem(one) or Path(one).name}.zarr" for one in sources]
    for place in places:
        if places.count(place) > 1:
            raise RefusedError(str(place), "would be written twice", "import one by one")
        require_free(place, overwrite=overwrite)
    return dict(zip(sources, places, strict=True))
