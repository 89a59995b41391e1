"""The commands on a task's data: `patches`, `preview`, `derive`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vcmodels.cli.arguments import Debug, FoldIndex, Overrides, TaskFile, load, load_one
from vcmodels.cli.console import Console

if TYPE_CHECKING:
    from vcmodels.patches.find import Candidates, PatchCriteria


SHARES = (0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
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
    from vcmodels.patches.resolve import resolve
    from vcmodels.pictures.patches import draw_patches

    console = Console()
    context.obj.begin()
    resolved = resolve(load_one(task, set_, console, fold), console)
    loaded, volumes = resolved.task, resolved.volumes
    criteria = PatchCriteria.of(loaded)
    candidates = survey(volumes, criteria, Indexer.of(loaded, console, dask))
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


def _values(one: "Candidates") -> str:
    """Which values the reference label holds."""
    if one.values is None:
        return "values are counted together: they are many, or no whole numbers"
    return "with " + ", ".join(map(str, one.values)) if one.values else "nowhere"


def threshold_table(candidates: "Sequence[Candidates]", criteria: "PatchCriteria") -> list[str]:
    """How many patches each pair of thresholds gives, those of the task marked; [] without labels."""
    import numpy as np

    shares = [np.zeros(0)]
    ratios = [np.zeros(0)]
    for one in candidates:
        if one.density is not None:
            share, ratio = criteria.shares(one.density, one.grid)
            shares.append(share)
            ratios.append(ratio)
    share, ratio = np.concatenate(shares), np.concatenate(ratios)
    if len(shares) == 1:
        return []
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
