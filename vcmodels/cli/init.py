"""The command `init`: a first task file from a volume and its labels."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vcmodels.cli.arguments import Debug
from vcmodels.cli.console import Console
from vcmodels.errors import RefusedError, VolumeError

if TYPE_CHECKING:
    from vcmodels.data.first_task import Guess
    from vcmodels.volumes import Volume


def init(
    context: typer.Context,
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="The image.")],
    labels: Annotated[
        list[str], typer.Argument(metavar="LABEL...", help="Its labels, as PATH or NAME=PATH.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The task file to write.")] = Path(
        "task.json"
    ),
    debug: Debug = False,
) -> None:
    """Write a first task file: what each label is follows from its values, and is said."""
    from vcmodels.config import parse_task
    from vcmodels.data.first_task import first_task, guess_targets
    from vcmodels.devices import choose_device
    from vcmodels.volumes.places import write_atomic

    console = Console()
    context.obj.begin()
    if output.exists():
        raise RefusedError(str(output), "is there already", "choose another --output")
    named = _by_name(labels)
    guesses = {label.key: guess_targets(label.key, label) for label in _open_all(volume, named)}
    for guess in guesses.values():
        for line in _said(guess):
            console.say(line)
    is_small = choose_device("auto", "device").type == "cpu"
    if is_small:
        console.say(
            "no GPU: a small patch_size and model_config; leave them out where there is one"
        )
    name = "first" if output.stem == "task" else output.stem
    task = first_task(name, volume, named, list(guesses.values()), is_small=is_small)
    parse_task(task, str(output))
    write_atomic(output, _text(task).encode())
    console.say(f"wrote {output}; next: vcmodels check {output}, then vcmodels train {output}")


def _said(guess: "Guess") -> Iterator[str]:
    """What a label is taken for, why, and what to change if that is wrong."""
    for target, block in guess.targets.items():
        source = f", derived from {block['derive']}" if "derive" in block else ""
        yield f"{target}: {block['kind']}{source}, as {guess.reason}"
    yield from (f"  {hint}" for hint in guess.hints)


def _open_all(image: str, labels: Mapping[str, str]) -> "Iterator[Volume]":
    """Open the labels; the key of each is its name.

    Raises:
        VolumeError: one, or the image, cannot be opened, or their extents differ.
    """
    from vcmodels.volumes import expand_location, open_volume

    extent = open_volume(expand_location(image), key="VOLUME", channels="any").extent
    for name, location in labels.items():
        label = open_volume(expand_location(location), key=name, channels="any")
        if label.extent != extent:
            found = f"{location} has extent {label.extent}, the image {extent}"
            raise VolumeError(name, found, "give a label on the voxels of the image")
        yield label


def _by_name(labels: Sequence[str]) -> dict[str, str]:
    """Locations by name.

    Raises:
        RefusedError: two have one name, or one has none that a target can have.
    """
    named: dict[str, str] = {}
    for given in labels:
        name, location = _named(given)
        if name in named:
            raise RefusedError(given, f'is a second label "{name}"', "name them, as in NAME=PATH")
        named[name] = location
    return named


def _named(label: str) -> tuple[str, str]:
    """Name and location from NAME=PATH, or from a path alone: the name of its array.

    Raises:
        RefusedError: the name is none that a target can have.
    """
    from vcmodels.config.values import check_target_name

    name, _, location = label.rpartition("=") if re.match(r"[^/:]+=", label) else ("", "", label)
    if not name:
        parts = [re.sub(r"\.(ome\.)?zarr$", "", part) for part in location.rstrip("/").split("/")]
        name = next((part for part in reversed(parts) if not part.isdecimal()), "label")
    try:
        return check_target_name(name), location
    except ValueError as error:
        raise RefusedError(label, str(error), "name it, as in NAME=PATH") from error


def _text(task: dict[str, object]) -> str:
    """JSON as people write it: numbers of a list in one line."""
    text = json.dumps(task, indent=4)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n"
