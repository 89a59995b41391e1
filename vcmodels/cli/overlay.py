"""The command `overlay`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vcmodels.cli.arguments import Debug, FoldIndex, Overrides, load_one, spans
from vcmodels.cli.console import Console
from vcmodels.errors import RefusedError

if TYPE_CHECKING:
    from vcmodels.pictures.layers import Subject
    from vcmodels.pictures.planes import View

SLICES = 3
"""Rows of a PNG where nothing is said."""


def overlay(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="PREDICTION|TASK|RUN",
            help="A result of infer, any array or OME-Zarr group, a task file, or a run folder.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="PNG of some slices, or MP4 or GIF of a flight."),
    ] = Path("overlay.png"),
    image: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Shown under it; of a result by default its input."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="[TARGET=]PATH", help="Label of a prediction; may be repeated."),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this target; may be repeated.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="What an array holds that does not say: binary, instances (classes too), "
            "regression, normals, vector."
        ),
    ] = None,
    foreground: Annotated[
        str | None, typer.Option(metavar="RULE", help='Of kind binary, as in ">= 128".')
    ] = None,
    channel_axis: Annotated[
        str | None,
        typer.Option(metavar="first|last", help="Of arrays of 4 axes that do not say it."),
    ] = None,
    axis: Annotated[str, typer.Option(metavar="z|y|x", help="Slices lie across this axis.")] = "z",
    at: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Slices at these voxels.")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="So many slices, evenly spaced.")
    ] = None,
    bbox: Annotated[
        str | None, typer.Option(metavar="Z:Z,Y:Y,X:X", help="Show this part, start:end.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=16, max=4096, help="Pixels of the longer edge of a panel, at most."),
    ] = None,
    fps: Annotated[int, typer.Option(min=1, max=60, help="Slices a second of a flight.")] = 12,
    volume: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which volume of a task.")
    ] = None,
    set_: Overrides = None,
    fold: FoldIndex = None,
    debug: Debug = False,
) -> None:
    """Draw slices with prediction and label over the image, or a film along an axis."""
    from vcmodels.geometry.symmetries import AXES
    from vcmodels.pictures.flight import require_writable_film, write_flight, write_slices

    console = Console()
    context.obj.begin()
    require_writable_film(output)
    if axis not in AXES:
        raise RefusedError("--axis", f'found "{axis}"', "give z, y or x")
    if at is not None and count is not None:
        raise RefusedError("--count", "is given, and so is --at", "leave one out")
    if kind is not None:
        _require_kind(kind)
    subject = _subject(
        source, image, label, target, kind, foreground, channel_axis, volume, set_, fold, console
    )
    if bbox is not None:
        subject = _cut(subject, bbox)
    ending = output.suffix.lower()
    view = _view(subject, AXES.index(axis), ending, size)
    chosen = _positions(view, at, count, ending)
    if ending == ".png":
        write_slices(output, subject, view, chosen)
    else:
        write_flight(output, subject, view, chosen, fps, console)
    slices = "1 slice" if len(chosen) == 1 else f"{len(chosen)} slices"
    console.say(f"wrote {output}: {slices} across {axis}")


def _require_kind(kind: str) -> None:
    from vcmodels.viewers.drawn import PLAIN_KINDS

    if kind not in PLAIN_KINDS:
        raise RefusedError("--kind", f'found "{kind}"', f"give one of {', '.join(PLAIN_KINDS)}")


def _subject(
    source: str,
    image: str | None,
    labels: Sequence[str] | None,
    targets: Sequence[str] | None,
    kind: str | None,
    foreground: str | None,
    channel_axis: str | None,
    volume: str | None,
    set_: list[str] | None,
    fold: int | None,
    console: Console,
) -> "Subject":
    """What a source has to draw.

    Raises:
        RefusedError: it is nothing that can be drawn, or an option is for another source.
    """
    from vcmodels.cli.view import is_task, read_channel_axis, refuse_options
    from vcmodels.viewers.contents import is_result
    from vcmodels.viewers.drawn import subject_of_array, subject_of_result, subject_of_task
    from vcmodels.volumes import expand_location

    if is_task(source):
        refuse_options("a task", image=image, label=labels, kind=kind, foreground=foreground)
        refuse_options("a task", channel_axis=channel_axis)
        task = load_one(Path(source), set_, console, fold)
        return subject_of_task(task, volume, targets or (), console)
    refuse_options("an array or a result", set=set_, volume=volume, fold=fold)
    location = expand_location(source)
    if is_result(location):
        refuse_options("a result", kind=kind, foreground=foreground, channel_axis=channel_axis)
        return subject_of_result(location, image, _by_name(labels), targets or (), console)
    refuse_options("an array", target=targets)
    if foreground is not None and kind != "binary":
        raise RefusedError("--foreground", "is for --kind binary", "leave it out, or give that")
    order = read_channel_axis(channel_axis)
    return subject_of_array(location, image, _by_name(labels), kind, foreground, console, order)


def _by_name(labels: Sequence[str] | None) -> dict[str | None, str]:
    """Labels by what stands before "=", None where nothing does.

    Raises:
        RefusedError: two are of one target.
    """
    found: dict[str | None, str] = {}
    for text in labels or ():
        named = re.fullmatch(r"(\w[\w-]*)=(.+)", text)
        name, place = (named[1], named[2]) if named else (None, text)
        if name in found:
            raise RefusedError("--label", f"{text} is a second one", "give one for each target")
        found[name] = place
    return found


def _cut(subject: "Subject", text: str) -> "Subject":
    """The part of a subject that is asked for.

    Raises:
        RefusedError: it reaches out of the volume, or the text names no box.
    """
    from dataclasses import replace

    from vcmodels.geometry.boxes import Box

    pairs = spans("--bbox", text)
    box = Box.between([start for start, _ in pairs], [end for _, end in pairs])
    if not Box((0, 0, 0), subject.extent).contains(box):
        found = f"{text} is not inside the volume, shape {subject.extent}"
        raise RefusedError("--bbox", found, "correct it")
    return replace(subject, box=box)


def _view(subject: "Subject", axis: int, ending: str, size: int | None) -> "View":
    from vcmodels.pictures.flight import LEAST_PIXELS, MOST_PIXELS
    from vcmodels.pictures.planes import View

    most = size or MOST_PIXELS[ending]
    return View.of(axis, subject.box, subject.spacing, most, min(LEAST_PIXELS[ending], most))


def _positions(view: "View", at: str | None, count: int | None, ending: str) -> list[int]:
    """Where slices lie.

    Raises:
        RefusedError: a position is not inside what is shown, or the text names none.
    """
    from vcmodels.pictures.flight import MOST_FRAMES, frame_count, positions

    if at is None:
        default = SLICES if ending == ".png" else frame_count(view, MOST_FRAMES[ending])
        return positions(view, count or default)
    parts = at.replace(" ", "").split(",")
    if not all(re.fullmatch(r"\d{1,9}", part) for part in parts):
        raise RefusedError("--at", f'found "{at}"', "give voxels, as in 10,20,30")
    low, length = view.box.origin[view.axis], view.box.shape[view.axis]
    for part in parts:
        if not low <= int(part) < low + length:
            found = f"{part} is not between {low} and {low + length - 1}"
            raise RefusedError("--at", found, "give voxels of what is shown")
    return sorted({int(part) for part in parts})
