"""The command `objects`, and what it shares with `mesh` and `skeleton`."""

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from vcmodels.cli.arguments import Debug, Quiet
from vcmodels.cli.console import Console
from vcmodels.errors import RefusedError, VolumeError

if TYPE_CHECKING:
    from vcmodels.blockwise import Crew
    from vcmodels.postprocess import Source
    from vcmodels.volumes import Volume

IdArray = Annotated[
    str,
    typer.Argument(metavar="IDS", help="An array, or OME-Zarr group, with the id of each voxel."),
]
ReadLevel = Annotated[int, typer.Option(min=0, help="Which level of an OME-Zarr group.")]
Workers = Annotated[
    int | None, typer.Option(min=1, max=1024, metavar="N", help="Threads; else one a core.")
]
ChosenIds = Annotated[
    str | None, typer.Option("--ids", metavar="ID,ID", help="Only these objects.")
]
LeastSize = Annotated[int, typer.Option(min=1, metavar="N", help="Only objects of so many voxels.")]
Done = TypeVar("Done")


def objects(
    context: typer.Context,
    ids: IdArray,
    values: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Mean in each object: of probabilities, or an image of integers."
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Classes of voxels: that of most voxels of an object."),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Write FILE.csv or FILE.parquet.")
    ] = Path("objects.csv"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.")
    ] = False,
    level: ReadLevel = 0,
    workers: Workers = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a table of objects: id, class, size, centroid, bounding box, mean of values, border."""
    from vcmodels.objects.table import ObjectArrays, measure_objects
    from vcmodels.objects.written import require_table_file, write_table

    console = Console(is_quiet=quiet)
    context.obj.begin()
    require_table_file("-o", output, overwrite=overwrite)
    arrays = ObjectArrays(
        open_ids(ids, level, console),
        None if values is None else _values(values, level, console),
        None if classes is None else open_ids(classes, level, console, "--classes"),
    )
    record = output.with_name(f".{output.name}.unfinished")
    table = run(lambda crew: measure_objects(arrays, record, crew), workers, console)
    write_table(table, output)
    shutil.rmtree(record)
    console.say(f"wrote {output}: {len(table.ids)} objects")


def open_ids(text: str, level: int, console: Console, key: str | None = None) -> "Volume":
    """An array of whole numbers; of a group the level, of an array or a file itself.

    Raises:
        VolumeError: it is missing, or damaged.
    """
    from vcmodels.formats.imported import open_located
    from vcmodels.volumes import expand_location

    return open_located(expand_location(text), key=key, level=level, channels=1, reporter=console)


def _values(text: str, level: int, console: Console) -> "Source":
    """What the mean is taken of: a prediction of ours by its encoding, other arrays as they are.

    Raises:
        VolumeError: it is a prediction that holds no probabilities.
    """
    from vcmodels.data.predictions import prediction_notes, writer_of
    from vcmodels.formats.imported import open_located
    from vcmodels.postprocess import Source
    from vcmodels.postprocess.base import PROBABILITIES
    from vcmodels.volumes import expand_location

    place = expand_location(text)
    volume = open_located(place, key="--values", level=level, channels="any", reporter=console)
    notes = prediction_notes(volume)
    if notes is None:
        return Source("values", volume, "regression")
    encoding = notes["encoding"]
    kind, quantity = encoding.get("kind"), encoding.get("quantity")
    if kind not in PROBABILITIES or quantity == "logit":
        found = f"{volume.shown} holds {quantity or kind}, not one probability for each voxel"
        raise VolumeError("--values", found, f"give one of {', '.join(sorted(PROBABILITIES))}")
    writer = writer_of(encoding, volume)
    return Source("values", volume, kind, writer.decode, encoding)


def read_ids(text: str | None) -> tuple[int, ...]:
    """Ids from a list of them.

    Raises:
        RefusedError: it is none, or one is no id.
    """
    words = [] if text is None else [word.strip() for word in text.split(",")]
    for word in words:
        if not re.fullmatch(r"[0-9]{1,20}", word) or not 0 < int(word) < 2**64:
            raise RefusedError("--ids", f'found "{word}"', "give whole numbers above 0, as in 1,7")
    return tuple(int(word) for word in words)


def report_missing(chosen: Iterable[int], found: Iterable[int], console: Console) -> None:
    """Say which of the chosen objects there are not."""
    for missing in sorted({*chosen} - {*found}):
        console.say(f"note: {missing} has no voxel, or fewer than --min-size")


def run(work: "Callable[[Crew], Done | None]", workers: int | None, console: Console) -> Done:
    """Do work over blocks until it is done.

    Raises:
        Exit: it was stopped, which is said.
    """
    from vcmodels.blockwise import Crew, Threads
    from vcmodels.reporting import StopSignals

    with StopSignals() as stop:
        found = work(Crew(Threads(workers), reporter=console, should_stop=stop.should_stop))
    if found is None:
        console.say("stopped; the same command continues")
        raise typer.Exit(stop.exit_code)
    return found
