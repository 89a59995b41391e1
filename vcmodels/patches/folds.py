"""Cross-validation: k folds that divide whole volumes or groups, or each volume into k slabs.

Fold i is the validation side of run i. Folds by slab replace a volume by at most three: the slab of
this fold, and what is left of the volume before and behind it, a guard band away. Each is a box that
nothing reads across (see `split`), so that no voxel is on both sides; over the k runs, every voxel
is validated on once.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from vcmodels.config import TrainingParams
from vcmodels.config.train_params import FoldConfig
from vcmodels.data.task_volume import TaskVolume
from vcmodels.data.volumes import units_of
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box, Shape, triple
from vcmodels.geometry.symmetries import AXES
from vcmodels.patches.density import patch_grid
from vcmodels.patches.find import PatchCriteria
from vcmodels.patches.index_build import Indexer, Wanted
from vcmodels.patches.split import guard_width, narrower_guards
from vcmodels.reporting import Reporter


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
    for n in undecided:  # the same voxels are cut at the same places, whatever their labels
        twins = (m for m in undecided if volumes[m].is_twin(volumes[n]))
        labelled[n] = labelled[next(twins, n)]
    if by == "slab":
        parts: dict[int, list[list[TaskVolume]]] = {}
        for n in undecided:
            slabs = _slabs(volumes[n], labelled[n], folds.count, criteria)
            guard = _guard(
                volumes[n], slabs, settings.split_guard, criteria.patch, indexer.reporter
            )
            parts[n] = _parts(volumes[n], slabs, guard, criteria.patch)
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


@dataclass(frozen=True)
class _Slabs:
    """Where a volume is cut into slabs."""

    axis: int
    slabs: list[tuple[int, int]]
    shortest: int
    """Voxels of the shortest slab."""
    longest_side: int
    """Voxels of the longer part before or behind a slab, in the fold where it is shortest."""

    def hold(self, patch: Shape) -> bool:
        """Whether there is a patch in each slab, and before or behind it."""
        return min(self.shortest, self.longest_side) >= patch[self.axis]


def _slabs(volume: TaskVolume, profiles: Profiles, count: int, criteria: PatchCriteria) -> _Slabs:
    """The slabs of a volume, across the axis with the most room in the shortest.

    Raises:
        TaskError: they hold no patch.
    """
    found = {n: _held(volume.region, profiles, n, criteria) for n in range(count, 1, -1)}
    if (slabs := found[count]) is not None:
        return slabs
    at_most = max((n for n, slabs in found.items() if slabs is not None), default=0)
    shape, patch = (" x ".join(map(str, n)) for n in (volume.region.shape, criteria.patch))
    text = f"volume {volume.name} ({shape} voxels) cannot be cut into {count} slabs of a patch ({patch})"
    remedy = f"give at most {at_most}" if at_most else "lower patch_size, or give more volumes"
    raise TaskError("tr_params.folds.count", text, remedy)


def _held(region: Box, profiles: Profiles, count: int, criteria: PatchCriteria) -> _Slabs | None:
    """Slabs with a patch in each and next to it; None if there is no room for them."""
    for keeps_patch in (False, True):
        slabs = _across(region, profiles, count, criteria, keeps_patch=keeps_patch)
        if slabs.hold(criteria.patch):
            return slabs
    return None


def _across(
    region: Box,
    profiles: Profiles,
    count: int,
    criteria: PatchCriteria,
    *,
    keeps_patch: bool = False,
) -> _Slabs:
    """Slabs that hold about equally many labels, or, to keep a patch in each, less equally many."""
    patch, cell = criteria.patch, criteria.cell
    cuts = [_cuts(region.origin[a], region.end[a], profiles[a], cell[a], count) for a in range(3)]
    if keeps_patch:
        cuts = [_apart(places, patch[a], cell[a]) for a, places in enumerate(cuts)]
    room = [int(np.diff(cuts[a]).min()) / patch[a] for a in range(3)]
    axis = int(np.argmax(room))
    low, high = region.origin[axis], region.end[axis]
    slabs = list(pairwise(cuts[axis]))
    side = min(max(start - low, high - end) for start, end in slabs)
    return _Slabs(axis, slabs, min(end - start for start, end in slabs), side)


def _guard(
    volume: TaskVolume, slabs: _Slabs, given: int | None, patch: Shape, reporter: Reporter
) -> int:
    """The guard band next to the slabs: as given, or of a patch, or what fits of it.

    Raises:
        TaskError: the given one leaves no patch to train on in some fold.
    """
    axis, widest = slabs.axis, slabs.longest_side - patch[slabs.axis]
    if given is not None and given > widest:
        found = f"{given} leaves a fold of volume {volume.name} without a patch to train on"
        raise TaskError("tr_params.split_guard", found, f"give at most {widest}, or null")
    wanted = guard_width(given, patch)[axis]
    tried = (wanted, *(guard[axis] for guard in narrower_guards(patch)))
    guard = next(n for n in tried if n <= widest)
    if guard < wanted:
        reporter.say(
            f"{volume.name}: its slabs have no room for a guard band of a patch ({wanted} voxels "
            f"along {AXES[axis]}): {guard} voxels lie between training and validation"
        )
    return guard


def _parts(volume: TaskVolume, slabs: _Slabs, guard: int, patch: Shape) -> list[list[TaskVolume]]:
    """For each fold its slab, and what is trained on before and behind it."""
    region, axis = volume.region, slabs.axis
    low, high = region.origin[axis], region.end[axis]
    found: list[list[TaskVolume]] = []
    for start, end in slabs.slabs:
        sides = (low, start - guard), (end + guard, high)
        trained = [pair for pair in sides if pair[1] - pair[0] >= patch[axis]]
        parts = [replace(volume, region=region.cut(axis, start, end), split="val")]
        for number, (first, last) in enumerate(trained):
            box, name = region.cut(axis, first, last), f"{volume.name}#train{number}"
            parts.append(replace(volume, region=box, split="train", name=name))
        found.append(parts)
    return found


def _cuts(start: int, end: int, profile: np.ndarray, cell: int, count: int) -> list[int]:
    """Borders of slabs with about equally many labelled voxels: the nearest between layers of cells."""
    below = np.concatenate([[0], np.cumsum(profile)]) / max(profile.sum(), 1)
    inner = np.abs(below - np.arange(1, count)[:, None] / count).argmin(axis=1)
    zero = start // cell * cell
    return [start, *np.clip(zero + inner * cell, start, end).tolist(), end]


def _apart(cuts: Sequence[int], patch: int, cell: int) -> list[int]:
    """The borders of slabs moved to leave a patch in each, as far as there is room for that."""
    found = list(cuts)
    for k in range(1, len(found) - 1):
        found[k] = -(-max(found[k], found[k - 1] + patch) // cell) * cell
    for k in range(len(found) - 2, 0, -1):
        found[k] = max(min(found[k], found[k + 1] - patch) // cell * cell, found[0])
    return found
