"""Cross-validation: k folds that divide whole volumes or groups, or each volume into k slabs.

Fold i is the validation side of run i. Folds by slab replace a volume by at most three: the slab of
this fold, and what is left of the volume before and behind it, a guard band away. Each is a box that
nothing reads across (see `split`), so that no voxel is on both sides; over the k runs, every voxel
is validated on once.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np

from vcmodels.config import TrainingParams
from vcmodels.config.train_params import FoldConfig
from vcmodels.data.volumes import TaskVolume, units_of
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Shape, triple
from vcmodels.patches.density import patch_grid
from vcmodels.patches.find import PatchCriteria
from vcmodels.patches.index_build import Indexer, Wanted
from vcmodels.patches.split import guard_width


def shuffled(items: Sequence[int], seed: int) -> list[int]:
    """The items in an order that depends only on the seed."""
    return np.random.Generator(np.random.Philox(key=[seed, 3])).permutation(items).tolist()


Profiles = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Per axis, labelled voxels of each layer of cells of a region."""


def all_folds(
    settings: TrainingParams,
    volumes: Sequence[TaskVolume],
    criteria: PatchCriteria,
    indexer: Indexer,
) -> list[list[TaskVolume]]:
    """The volumes of each fold, each with its `split`; [] without `folds`.

    A function of the volumes, their labels, the seed and the folds. Volumes with a `split` of their
    own stay as they are. A slab that is validated on keeps the name of its volume.

    Args:
        settings: `folds`, `seed` and `split_guard` are read.
        volumes: all volumes of the task.
        criteria: of the patches that are to be found in them.
        indexer: gives the label indexes by which the folds are balanced.

    Raises:
        TaskError: there are not enough volumes or groups, or a volume is too short for its slabs.
    """
    folds = settings.folds
    if folds is None:
        return []
    undecided = [n for n, volume in enumerate(volumes) if volume.split is None]
    if not undecided:
        return [list(volumes)] * folds.count
    by = how_divided(folds, [volumes[n] for n in undecided])
    profiles = labelled_profiles([volumes[n] for n in undecided], criteria, indexer)
    labelled = dict(zip(undecided, profiles, strict=True))
    if by == "slab":
        guard = guard_width(settings.split_guard, criteria.patch)
        parts = {
            n: _slabs(volumes[n], labelled[n], folds.count, criteria, guard) for n in undecided
        }
        return [
            [part for n, v in enumerate(volumes) for part in (parts[n][i] if n in parts else [v])]
            for i in range(folds.count)
        ]
    units = units_of(volumes, undecided)
    sizes = {u: sum(round(labelled[n][0].sum()) for n in unit) for u, unit in enumerate(units)}
    fold_of = divide(sizes, folds.count, settings.seed)
    of_volume = {n: fold_of[u] for u, unit in enumerate(units) for n in unit}
    return [
        [
            replace(v, split="val" if of_volume[n] == i else "train") if n in of_volume else v
            for n, v in enumerate(volumes)
        ]
        for i in range(folds.count)
    ]


def how_divided(
    folds: FoldConfig, undecided: Sequence[TaskVolume]
) -> Literal["volume", "group", "slab"]:
    """As `folds.by` says; when it is left out whole volumes or groups, if there are enough.

    Raises:
        TaskError: there are not enough, or slabs would divide a group.
    """
    units = len(units_of(undecided, range(len(undecided))))
    grouped = [volume for volume in undecided if volume.group is not None]
    by = folds.by or ("volume" if units >= folds.count or grouped else "slab")
    if by == "slab" and grouped:
        found = f'is "slab", which would put group {grouped[0].group} on both sides'
        raise TaskError("tr_params.folds.by", found, 'use "group", or remove the group')
    if by == "group" and len(grouped) < len(undecided):
        lacking = next(volume for volume in undecided if volume.group is None)
        raise TaskError(f"{lacking.key}.group", 'is not set, and folds.by is "group"', "give one")
    if by != "slab" and units < folds.count:
        what = f"{units} groups" if grouped else f"{units} volumes"
        found = f"{what} cannot be divided into {folds.count} folds"
        remedy = "lower it" if grouped else 'lower it, or set "by": "slab"'
        raise TaskError("tr_params.folds.count", found, remedy)
    return by


def divide(sizes: Mapping[int, int], count: int, seed: int) -> dict[int, int]:
    """A fold for each volume or group: the largest first, each to the fold that holds least so far.

    Args:
        sizes: labelled voxels of each; those of equal size are shuffled.
        count: of folds; each gets one when there are enough.
        seed: of the shuffle.
    """
    order = sorted(shuffled(sorted(sizes), seed), key=lambda n: -sizes[n])
    held = [(0, 0)] * count  # labelled voxels, volumes
    fold_of: dict[int, int] = {}
    for n in order:
        fold = min(range(count), key=lambda i: held[i])
        fold_of[n] = fold
        held[fold] = held[fold][0] + sizes[n], held[fold][1] + 1
    return fold_of


def labelled_profiles(
    volumes: Sequence[TaskVolume], criteria: PatchCriteria, indexer: Indexer
) -> list[Profiles]:
    """Of each volume, from the index that finds its patches; without `ref_label`, of all voxels."""
    cell = criteria.cell
    labels = [
        Wanted(
            v.ref,
            patch_grid(v.ref.box, v.region, criteria.patch, criteria.stride, cell).frame,
            v.region,
            cell,
            v.ref_ignored,
            v.ref_foreground,
        )
        for v in volumes
        if v.ref is not None
    ]
    found: list[Profiles] = []
    with closing(indexer.indexes(labels)) as indexes:
        for volume in volumes:
            if volume.ref is None:
                layers = [-(-n // c) for n, c in zip(volume.region.shape, cell, strict=True)]
                found.append(triple(np.full(n, volume.region.voxels / n) for n in layers))
            else:
                index = next(indexes)
                found.append(index.profiles(index.plan.cells(volume.region)))
    return found


def _slabs(
    volume: TaskVolume, profiles: Profiles, count: int, criteria: PatchCriteria, guards: Shape
) -> list[list[TaskVolume]]:
    """For each of `count` folds its slab, and what is trained on before and behind it."""
    region, patch, cell = volume.region, criteria.patch, criteria.cell
    cuts = [_cuts(region.origin[a], region.end[a], profiles[a], cell[a], count) for a in range(3)]
    room = [int(np.diff(cuts[a]).min()) / patch[a] for a in range(3)]
    axis = int(np.argmax(room))
    low, high = region.origin[axis], region.end[axis]
    found: list[list[TaskVolume]] = []
    for start, end in pairwise(cuts[axis]):
        before, behind = (low, start - guards[axis]), (end + guards[axis], high)
        trained = [pair for pair in (before, behind) if pair[1] - pair[0] >= patch[axis]]
        if room[axis] < 1 or not trained:
            raise _too_short(volume, count, guards)
        parts = [replace(volume, region=region.cut(axis, start, end), split="val")]
        for number, (first, last) in enumerate(trained):
            box, name = region.cut(axis, first, last), f"{volume.name}#train{number}"
            parts.append(replace(volume, region=box, split="train", name=name))
        found.append(parts)
    return found


def _too_short(volume: TaskVolume, count: int, guards: Shape) -> TaskError:
    found = (
        f"volume {volume.name} with region {volume.region.shape} cannot be cut into {count} "
        f"slabs of at least a patch with a guard band of {guards} voxels"
    )
    remedy = "lower it, patch_size or split_guard, or give more volumes"
    return TaskError("tr_params.folds.count", found, remedy)


def _cuts(start: int, end: int, profile: np.ndarray, cell: int, count: int) -> list[int]:
    """Borders of slabs with about equally many labelled voxels: the nearest between layers of cells."""
    below = np.concatenate([[0], np.cumsum(profile)]) / max(profile.sum(), 1)
    inner = np.abs(below - np.arange(1, count)[:, None] / count).argmin(axis=1)
    zero = start // cell * cell
    return [start, *np.clip(zero + inner * cell, start, end).tolist(), end]
