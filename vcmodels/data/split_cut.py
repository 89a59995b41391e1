"""Cutting volumes into a training and a validation part, with a guard band between them."""

from collections.abc import Mapping, Sequence

import numpy as np

from vcmodels.config import Task
from vcmodels.data.groups import units_of
from vcmodels.data.patches import PatchList
from vcmodels.data.volumes import TaskVolume
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.reporting import Reporter

WHOLE_VOLUMES_FROM = 4
"""From so many volumes on, those that are too short to be cut may be divided as wholes."""

Regions = list[Box | None]


def cut_volumes(
    task: Task,
    volumes: Sequence[TaskVolume],
    patches: PatchList,
    undecided: Sequence[int],
    train: Regions,
    val: Regions,
    reporter: Reporter,
) -> None:
    """Give each undecided volume its regions; volumes without patches get none."""
    rows = {n: patches.rows[patches.rows[:, 0] == n, 1:] for n in undecided}
    rows = {n: origins for n, origins in rows.items() if len(origins)}
    if any(volumes[n].group is not None for n in undecided):
        reporter.say("volumes of a group stay on one side: whole volumes are divided")
        _divide_whole({n: len(o) for n, o in rows.items()}, volumes, task, train, val)
        return
    guard = guard_width(task, patches.patch_size)
    cuts = {
        n: best_cut(volumes[n].region, origins, patches.patch_size, guard, task)
        for n, origins in rows.items()
    }
    short = [n for n, cut in cuts.items() if cut is None]
    if short and len(rows) >= WHOLE_VOLUMES_FROM:
        reporter.say(f"{len(short)} volumes are too short to be cut: whole volumes are divided")
        _divide_whole({n: len(origins) for n, origins in rows.items()}, volumes, task, train, val)
        return
    if short and len(short) == len(cuts) and not any(val):
        raise _too_short(task, volumes[short[0]], guard)
    for n, cut in cuts.items():
        train[n], val[n] = cut if cut is not None else (volumes[n].region, None)
    if short:
        names = ", ".join(volumes[n].name for n in short)
        reporter.say(f"too short to be cut, so only trained on: {names}")


def guard_width(task: Task, patch: Shape) -> Shape:
    """Width of the guard band for a cut across each axis."""
    width = task.tr_params.split_guard
    return patch if width is None else (width, width, width)


def best_cut(
    region: Box, origins: np.ndarray, patch: Shape, guard: Shape, task: Task
) -> tuple[Box, Box] | None:
    """The cut across some axis whose share of training patches comes nearest to the wanted one.

    Among equals, the one that loses the fewest patches to the guard band. None when no cut leaves
    a patch on both sides.
    """
    wanted = task.tr_params.tr_val_split
    best: tuple[float, int] | None = None
    boxes: tuple[Box, Box] | None = None
    for axis in range(3):
        start = np.sort(origins[:, axis])
        end = start + patch[axis]
        # A cut behind the last training patch is as good for training and loses no more patches.
        cuts = np.unique(end)
        trained = np.searchsorted(end, cuts, side="right")
        validated = len(start) - np.searchsorted(start, cuts + guard[axis], side="left")
        for cut, a, b in zip(cuts.tolist(), trained.tolist(), validated.tolist(), strict=True):
            if not a or not b:
                continue
            score = (abs(a / (a + b) - wanted), len(start) - a - b)
            if best is None or score < best:
                best, boxes = score, _two_sides(region, axis, cut, cut + guard[axis])
    return boxes


def _two_sides(region: Box, axis: int, first_end: int, second_start: int) -> tuple[Box, Box]:
    end, start = list(region.end), list(region.origin)
    end[axis], start[axis] = first_end, second_start
    return Box.between(region.origin, end), Box.between(start, region.end)


def _divide_whole(
    counts: Mapping[int, int],
    volumes: Sequence[TaskVolume],
    task: Task,
    train: Regions,
    val: Regions,
) -> None:
    """Shuffle volumes or groups and train on the first ones, up to the wanted share of patches.

    Raises:
        TaskError: all are of one group.
    """
    units = units_of(volumes, sorted(counts))
    if len(units) == 1 and not any(val):
        found = f"the only one with patches, {volumes[units[0][0]].group}, cannot be divided"
        raise TaskError(
            f"{volumes[units[0][0]].key}.group", found, "give another, or tr_val_split 1"
        )
    rng = np.random.Generator(np.random.Philox(key=[task.tr_params.seed, 2]))
    order = [units[n] for n in rng.permutation(len(units))]
    sums = np.cumsum([sum(counts[n] for n in unit) for unit in order]) / sum(counts.values())
    trained = int(np.argmin(np.abs(sums[: max(len(units) - 1, 1)] - task.tr_params.tr_val_split)))
    for position, unit in enumerate(order):
        side = train if position <= trained else val
        for n in unit:
            side[n] = volumes[n].region


def _too_short(task: Task, volume: TaskVolume, guard: Shape) -> TaskError:
    found = (
        f"volume {volume.name} with region {volume.region.shape} cannot be cut into a training and "
        f"a validation part with a guard band of {guard} voxels between them"
    )
    remedy = (
        'set a smaller split_guard, a smaller patch_size, split_mode "random", or give volumes a '
        '"split" of their own'
    )
    key = "patch_size" if task.tr_params.split_guard is None else "split_guard"
    return TaskError(f"tr_params.{key}", found, remedy)
