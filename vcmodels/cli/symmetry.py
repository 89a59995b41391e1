"""The command `symmetry`."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vcmodels.cli.arguments import Debug, FoldIndex, Overrides, TaskFile, load_one
from vcmodels.cli.console import Console, Errors, narrow_table, write_table

if TYPE_CHECKING:
    from vcmodels.augment import AnyAugmentation
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
        moves = "; ".join(_moves(suited(task.augmentations, found.group, spacings)))
        yield f"augment: the default list, with {moves or 'no flip and no quarter_turn'}"
    flips = ", ".join(found.mirrors)
    yield f'tta "auto": {f"flips {flips}" if flips else "no views"}'
    yield from notes(task, found, spacings)


def _moves(augmentations: "Sequence[AnyAugmentation]") -> Iterator[str]:
    """The flips and turns in a list, with their axes and planes."""
    from vcmodels.augment.geometric import Flip, QuarterTurn

    for one in augmentations:
        if isinstance(one, Flip):
            yield f"{one.name} {', '.join(one.axes)}"
        elif isinstance(one, QuarterTurn):
            yield f"{one.name} {', '.join(a + b for a, b in one.planes)}"
