"""The commands on data: `init`, `patches`, `preview`, `derive`."""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vcmodels.cli.arguments import Debug, FoldIndex, Overrides, TaskFile, load, load_one
from vcmodels.cli.console import Console
from vcmodels.errors import RefusedError, VolumeError

if TYPE_CHECKING:
    from vcmodels.data.first_task import FirstVolume, Guess
    from vcmodels.patches.find import Candidates, PatchCriteria
    from vcmodels.volumes import Volume


SHARES = (0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_READING = "level, channel_axis, axes, channels, index or spacing, such as index.t=5"
RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


def patches(
    context: typer.Context,
    task: TaskFile,
    set_: Overrides = None,
    picture: Annotated[
        Path | None, typer.Option(help="PNG of where they lie; beside the cache when left out.")
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Read labels on this Dask cluster, as tcp://host:8786."
        ),
    ] = None,
    fold: FoldIndex = None,
    debug: Debug = False,
) -> None:
    """Find the patches to train on, show what other thresholds would give, write their cache."""
    from vcmodels.patches.cache import load_or_find_patches
    from vcmodels.patches.find import PatchCriteria, survey
    from vcmodels.patches.index_build import Indexer
    from vcmodels.patches.misfits import report_misfits, report_split
    from vcmodels.patches.resolve import resolve
    from vcmodels.pictures.patches import draw_patches
    from vcmodels.runs.run import Run
    from vcmodels.volumes.places import refuse_in_store

    console = Console()
    context.obj.begin()
    if picture is not None:
        refuse_in_store("--picture", picture)
    resolved = resolve(load_one(task, set_, console, fold), console)
    loaded, volumes = resolved.task, resolved.volumes
    criteria = PatchCriteria.of(loaded)
    indexer = Indexer.of(loaded, console, dask)
    is_begun = Run(loaded.run_dir, loaded.tr_params.model_name).last.exists()
    report_misfits(loaded, volumes, console, indexer=indexer, is_begun=is_begun)
    candidates = survey(volumes, criteria, indexer)
    for line in threshold_table(candidates, criteria):
        console.say(line)
    path = picture or loaded.cache_file.with_suffix(".png")
    try:
        draw_patches(candidates, criteria, path)
    except OSError as error:
        console.say(f"the picture is not kept: {path}: {error.strerror or error}")
    else:
        console.say(f"where they lie: {path}")
    found = load_or_find_patches(loaded, volumes, console, candidates)
    for number, one in enumerate(candidates):
        if one.density is not None:
            console.say(f"{one.volume.name}: labelled {_values(one)}")
        console.say(f"{one.volume.name}: {int((found.rows[:, 0] == number).sum())} patches")
    if not loaded.is_cross_validation:
        report_split(loaded, volumes, found, console)


def _values(one: "Candidates") -> str:
    """Which values the reference label holds."""
    if one.values is None:
        return "values are counted together: they are many, or no whole numbers"
    return "with " + ", ".join(map(str, one.values)) if one.values else "nowhere"


def threshold_table(candidates: "Sequence[Candidates]", criteria: "PatchCriteria") -> list[str]:
    """How many patches each pair of thresholds gives, those of the task marked; [] without labels."""
    import numpy as np

    found = [criteria.shares(c.density, c.grid) for c in candidates if c.density is not None]
    if not found:
        return []
    share, ratio = (np.concatenate(parts) for parts in zip(*found, strict=True))
    columns = sorted({*RATIOS, criteria.min_labeled_ratio})
    lines = [
        f"patches by thresholds, of {len(share)} that hold labels (* those of the task)",
        f"{'min_bbox_percent':>16}   min_labeled_ratio (of the {criteria.labeled_ratio_of})",
        " " * 16 + "".join(f"{value:>11g} " for value in columns),
    ]
    for row in sorted({*SHARES, criteria.min_bbox_percent}):
        counts = [int(((share >= row) & (ratio >= column)).sum()) for column in columns]
        marks = [
            "*" if (row, column) == (criteria.min_bbox_percent, criteria.min_labeled_ratio) else " "
            for column in columns
        ]
        cells = (f"{count:>11}{mark}" for count, mark in zip(counts, marks, strict=True))
        lines.append(f"{row:>16g}" + "".join(cells))
    return [line.rstrip() for line in lines]


def preview(
    context: typer.Context,
    task: TaskFile,
    set_: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the PNGs; <run folder>/preview when left out.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, max=100, help="Patches to show the whole list on.")
    ] = 3,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the draws; else the task's.")] = None,
    fold: FoldIndex = None,
    debug: Debug = False,
) -> None:
    """Draw patches and their labels before and after each transform of the task's augmentation."""
    from vcmodels.pictures.preview import write_preview

    console = Console()
    context.obj.begin()
    loaded = load_one(task, set_, console, fold)
    folder, written = write_preview(loaded, output, samples=samples, seed=seed, reporter=console)
    console.say(f"{len(written)} pictures in {folder}")


def derive(
    context: typer.Context,
    task: TaskFile,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A target with derive.")],
    output: Annotated[str, typer.Option(metavar="OUT.zarr", help="The store to write.")],
    volume: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which volume, if there are several.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what derive has written there before.")
    ] = False,
    set_: Overrides = None,
    debug: Debug = False,
) -> None:
    """Write the derived label of a target for a whole volume, as training sees it."""
    from vcmodels import derivation

    console = Console()
    context.obj.begin()
    loaded = load(task, set_, console)
    derivation.derive(loaded, target, output, volume=volume, overwrite=overwrite, reporter=console)


def init(
    context: typer.Context,
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="The image.")],
    labels: Annotated[
        list[str], typer.Argument(metavar="LABEL...", help="Its labels, as PATH or NAME=PATH.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The task file to write.")] = Path(
        "task.json"
    ),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help=f"How the arrays are read: {_READING}."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a first task file: what each label is follows from its values, and is said."""
    from vcmodels.config import parse_task
    from vcmodels.data.first_task import FirstVolume, first_task, guess_targets, small_patch
    from vcmodels.data.volumes import metadata_notes
    from vcmodels.devices import choose_device
    from vcmodels.volumes.places import refuse_in_store, write_atomic

    console = Console()
    context.obj.begin()
    refuse_in_store("--output", output)
    if output.exists():
        raise RefusedError(str(output), "is there already", "choose another --output")
    first = FirstVolume(volume, _by_name(labels), _reading_keys(set_ or []))
    image, opened = _open(first, console)
    for note in metadata_notes(image):
        console.say(note)
    guesses = {label.key: guess_targets(label.key, label) for label in opened}
    for guess in guesses.values():
        for line in _said(guess):
            console.say(line)
    patch = None
    if choose_device("auto", "device").type == "cpu":
        patch = small_patch(image.extent, image.spacing)
        console.say(
            "no GPU: a small patch_size and model_config, and a rate for short runs; "
            "leave them out where there is one"
        )
    name, keys = _model_name(output.stem), first.input_keys(image)
    task = first_task(name, first, list(guesses.values()), patch=patch, input_keys=keys)
    parse_task(task, str(output))
    write_atomic(output, _text(task).encode())
    path = shlex.quote(str(output))
    console.say(f"wrote {output}; next: vcmodels check {path}, then vcmodels train {path}")


def _model_name(stem: str) -> str:
    """The name of the model of a task file: its own, or "first" where that says nothing or is no name."""
    from vcmodels.config.values import check_name, check_new_name

    try:
        check_new_name(check_name(stem))
    except ValueError:
        return "first"
    return "first" if stem == "task" else stem


def _said(guess: "Guess") -> Iterator[str]:
    """What a label is taken for, why, and what to change if that is wrong."""
    for target, block in guess.targets.items():
        source = f", derived from {block['derive']}" if "derive" in block else ""
        yield f"{target}: {block['kind']}{source}, as {guess.reason}"
    yield from (f"  {hint}" for hint in guess.hints)


def _open(first: "FirstVolume", console: Console) -> "tuple[Volume, list[Volume]]":
    """The image and the labels; a key that a message names is given by `--set` here."""
    try:
        return first.open(console)
    except VolumeError as error:
        key = re.search(r'"(\w+)": (\{"(\w+)": )?"?(\w+)', error.remedy)
        if key is None:
            raise
        name = f"{key[1]}.{key[3]}" if key[2] else key[1]
        remedy = f"{error.remedy} (here: --set {name}={key[4]})"
        raise VolumeError(error.subject, error.found, remedy) from error


def _reading_keys(lines: Sequence[str]) -> dict[str, Any]:
    """The keys of a volume in lines KEY=VALUE.

    Raises:
        RefusedError: one is no key that says how arrays are read.
    """
    from vcmodels.config.read import apply_overrides
    from vcmodels.data.first_task import READING_KEYS

    keys: dict[str, Any] = {}
    apply_overrides(keys, lines)
    keys.pop("overrides", None)
    for key in keys:
        if key not in READING_KEYS:
            found = f"{key} says nothing of how arrays are read"
            raise RefusedError(
                "--set", found, f"give {', '.join(READING_KEYS)}; write others into the task"
            )
    return keys


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
    from vcmodels.formats import file_stem
    from vcmodels.volumes.location import split_inside

    name, _, location = label.rpartition("=") if re.match(r"[^/:]+=", label) else ("", "", label)
    if not name:
        _, inside = split_inside(location)
        name = inside.rpartition("/")[2] or file_stem(location)
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
