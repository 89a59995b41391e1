"""The command `phantom`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vcmodels.cli.arguments import Debug, three_numbers, two_lengths
from vcmodels.cli.console import Console
from vcmodels.errors import FaultError, RefusedError

if TYPE_CHECKING:
    from vcmodels.phantom.cohort import NeckScans
    from vcmodels.phantom.nuclei import NucleiScan

_OPTIONS = {
    "scroll": ("--shape", "--spacing", "--chunks"),
    "cord": ("--subjects", "--size"),
    "nuclei": ("--shape", "--objects"),
}
"""Which options a kind takes, besides those of all."""


def phantom(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="The store to write.")],
    kind: Annotated[
        Literal["scroll", "cord", "nuclei"],
        typer.Option(
            help="A CT scan of a scroll, MR scans of necks with a lesioned cord, or touching nuclei."
        ),
    ] = "scroll",
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="Z,Y,X", help="Voxels of a scroll, 160,224,224, or of nuclei, 128,128,128."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    spacing: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="Voxels between neighbouring wraps: 2,6 are pressed and touch in places. "
            "About 8 to 17 when left out.",
        ),
    ] = None,
    chunks: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="Chunk shape of a scroll; 64,64,64.")
    ] = None,
    subjects: Annotated[
        int | None, typer.Option(min=1, max=99, help="Necks, with two contrasts each; 5.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="S,A,R", help="Field of view of a neck: height, depth, width; mm."),
    ] = None,
    objects: Annotated[int | None, typer.Option(min=1, help="How many nuclei; 40.")] = None,
    zarr_format: Annotated[int, typer.Option(min=2, max=3, help="Version of Zarr.")] = 2,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the same phantom as it is if it is there.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write made-up scans with exact labels, to try things on."""
    context.obj.begin()
    version: Literal[2, 3] = 2 if zarr_format == 2 else 3
    given = {
        "--shape": shape, "--spacing": spacing, "--chunks": chunks, "--subjects": subjects,
        "--size": size, "--objects": objects,
    }  # fmt: skip
    for option, value in given.items():
        if value is not None and option not in _OPTIONS[kind]:
            raise RefusedError(option, f"has no effect with --kind {kind}", "leave it out")
    if kind == "cord":
        cohort = _cohort(5 if subjects is None else subjects, seed, size or "96,80,64")
        _write_cords(path, cohort, version, keep=keep)
    elif kind == "nuclei":
        scan = _nuclei(shape or "128,128,128", 40 if objects is None else objects, seed)
        _write_nuclei(path, scan, version, keep=keep)
    else:
        _write_scroll(
            path, shape or "160,224,224", seed, spacing, chunks or "64,64,64", version, keep=keep
        )


def _nuclei(shape: str, objects: int, seed: int) -> "NucleiScan":
    from vcmodels.phantom.nuclei import LONGEST, MOST_OBJECTS, NucleiScan

    lengths = three_numbers("--shape", shape)
    if max(lengths) > LONGEST:
        raise RefusedError("--shape", f"found {shape}", f"give at most {LONGEST} along an axis")
    if objects > MOST_OBJECTS:
        raise RefusedError("--objects", f"found {objects}", f"give at most {MOST_OBJECTS}")
    return NucleiScan(lengths, objects, seed)


def _write_nuclei(path: Path, scan: "NucleiScan", version: Literal[2, 3], *, keep: bool) -> None:
    from vcmodels.phantom.nuclei import require_nuclei, write_nuclei

    console = Console()
    if keep and path.exists():
        require_nuclei(str(path), scan)
        console.say(f"{path} is there already")
        return
    try:
        write_nuclei(str(path), scan, zarr_format=version)
    except FaultError as error:
        raise RefusedError("--objects", error.found, error.remedy) from error
    console.say(f"wrote {path}: raw and ids of {scan.objects} nuclei in {scan.shape} voxels")


def _cohort(subjects: int, seed: int, size: str) -> "NeckScans":
    from vcmodels.phantom.cohort import LEAST_MM, MOST_MM, NeckScans

    lengths = three_numbers("--size", size)
    if not all(LEAST_MM <= length <= MOST_MM for length in lengths):
        remedy = f"give lengths from {LEAST_MM:g} to {MOST_MM:g} mm"
        raise RefusedError("--size", f"found {size}", remedy)
    return NeckScans(subjects, seed, (float(lengths[0]), float(lengths[1]), float(lengths[2])))


def _write_cords(path: Path, cohort: "NeckScans", version: Literal[2, 3], *, keep: bool) -> None:
    from vcmodels.phantom.cohort import require_cohort, write_cohort

    console = Console()
    if keep and path.exists():
        require_cohort(str(path), cohort)
        console.say(f"{path} is there already")
        return
    count = sum(1 for _ in cohort.scans())
    with console.bar("phantom", count) as advance:
        write_cohort(
            str(path), cohort, zarr_format=version, advance=lambda scans: advance(scans, "")
        )
    console.say(f"wrote {path}: image, cord and lesion of {count} scans")


def _write_scroll(
    path: Path,
    shape: str,
    seed: int,
    spacing: str | None,
    chunks: str,
    version: Literal[2, 3],
    *,
    keep: bool,
) -> None:
    from vcmodels.phantom import require_phantom, write_phantom
    from vcmodels.phantom.scroll import PressedWinding

    console = Console()
    size, chunk = three_numbers("--shape", shape), three_numbers("--chunks", chunks)
    pressed = None if spacing is None else two_lengths("--spacing", spacing)
    if pressed is not None:
        try:
            PressedWinding.between(*pressed)
        except FaultError as error:
            raise RefusedError("--spacing", error.found, error.remedy) from error
    if keep and path.exists():
        require_phantom(str(path), shape=size, seed=seed, spacing=pressed)
        console.say(f"{path} is there already")
        return
    with console.bar("phantom", size[0] * size[1] * size[2]) as advance:
        done = 0

        def progress(voxels: int, total: int) -> None:
            nonlocal done
            advance(voxels - done, "")
            done = voxels

        write_phantom(
            str(path), shape=size, seed=seed, spacing=pressed, chunks=chunk, zarr_format=version,
            progress=progress,
        )  # fmt: skip
    console.say(f"wrote {path}: ct, sheet, normals and wraps of {size} voxels")
