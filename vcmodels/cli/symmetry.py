"""The command `symmetry`."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from vcmodels.cli.arguments import Debug, FoldIndex, Overrides, TaskFile, load_one
from vcmodels.cli.console import Console, Errors, narrow_table, write_table

if TYPE_CHECKING:
    from vcmodels.patches.resolve import Resolved
    from vcmodels.symmetry.findings import SymmetryFindings


def symmetry(
    context: typer.Context,
    task: TaskFile,
    set_: Overrides = None,
    fold: FoldIndex = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    debug: Debug = False,
) -> None:
    """Find which mirrors and turns leave images and labels alike, and say what follows from it."""
    from vcmodels.patches.cache import load_or_find_patches
    from vcmodels.patches.resolve import resolve
    from vcmodels.patches.split import split_patches
    from vcmodels.symmetry.follow import findings_of, refuse_turned_pairs

    console = Errors() if as_json else Console()
    context.obj.begin()
    resolved = resolve(load_one(task, set_, console, fold), console)
    refuse_turned_pairs(resolved.task, resolved.volumes)
    patches = load_or_find_patches(resolved.task, resolved.volumes, console)
    split = split_patches(resolved.task.tr_params, resolved.volumes, patches, console)
    found = findings_of(resolved, split.train, split.train_regions, reads_stored=False)
    if as_json:
        Console().write(json.dumps(found.to_dict(), indent=2, allow_nan=False) + "\n")
        return
    table = narrow_table("", "holds", "why")
    for name, verdict in found.shown():
        table.add_row(name, "yes" if verdict.holds else "no", verdict.reason)
    write_table(table, console)
    for line in _said(found, resolved):
        console.say(line)


def _said(found: "SymmetryFindings", resolved: "Resolved") -> Iterator[str]:
    """What was looked at, what holds, and what that means for the task."""
    from vcmodels.config.load import has_own_augment
    from vcmodels.symmetry.follow import notes, suited

    task, spacings = resolved.task, [volume.spacing for volume in resolved.volumes]
    size = " x ".join(map(str, found.window))
    yield f"looked at {found.windows} windows of up to {size} voxels in {found.volumes} volumes"
    yield f"hold: {found.summary}"
    for name, sign in found.signs.items():
        yield f"{name}, sign: {sign.found}"
    if has_own_augment(task):
        yield "augment: as the task gives it"
    else:
        kept = [a for a in suited(task.augment, found.group, spacings) if hasattr(a, "moves")]
        listed = "; ".join(f"{a.name} {_listed(a)}" for a in kept)
        yield f"augment: the default list, with {listed or 'no flip and no quarter_turn'}"
    flips = ", ".join(found.mirrors)
    yield f'tta "auto": {f"flips {flips}" if flips else "no views"}'
    yield from notes(task, found, spacings)


def _listed(exact: object) -> str:
    """The axes or planes of a flip or a turn."""
    from vcmodels.augment.geometric import Flip, QuarterTurn

    if isinstance(exact, QuarterTurn):
        return ", ".join("".join(plane) for plane in exact.planes)
    assert isinstance(exact, Flip)
    return ", ".join(exact.axes)
