"""Which patches train and which validate, so that no validation voxel is seen in training.

A volume is cut by a plane into two boxes with a guard band between them. Patches, and all that is
read around them, stay inside their box: nothing is shared by construction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vcmodels.config import TrainingParams
from vcmodels.data.task_volume import TaskVolume
from vcmodels.data.volumes import units_of
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box, Shape, triple
from vcmodels.geometry.symmetries import AXES
from vcmodels.models.plan import length_at_most
from vcmodels.patches.find import PatchList
from vcmodels.patches.split_from import grid_note, taken_regions
from vcmodels.reporting import Reporter, Silent
from vcmodels.runs.run import Run, Splits

WHOLE_VOLUMES_FROM = 4
"""From so many volumes on, those that are too short to be cut may be divided as wholes."""

KEPT_SHARE = 0.8
"""Of the share that is to be trained on: a guard band that leaves less becomes narrower."""

Regions = list[Box | None]
Cut = tuple[Box, Box]
"""What is trained on, and what is validated on."""


def cut_volumes(
    settings: TrainingParams,
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
        _divide_whole({n: len(o) for n, o in rows.items()}, volumes, settings, train, val)
        return
    patch, share = patches.patch_size, settings.tr_val_split
    guard = guard_width(settings.split_guard, patch)
    cuts = {
        n: best_cut(volumes[n].region, origins, patch, guard, share) for n, origins in rows.items()
    }
    short = [n for n, cut in cuts.items() if cut is None]
    if settings.split_guard is None:
        wide = {n: origins for n, origins in rows.items() if n not in short}
        cuts |= _closer_cuts(settings, volumes, wide, patch, reporter)
    stay_whole = len(rows) >= WHOLE_VOLUMES_FROM
    if short and not stay_whole and len(short) == len(cuts) and not any(val):
        _refuse_without_room(settings, volumes, rows, patch)
        cuts = _closer_cuts(settings, volumes, rows, patch, reporter)
        short = [n for n, cut in cuts.items() if cut is None]
        stay_whole = len(short) == len(cuts)
    if short and stay_whole:
        reporter.say(f"{len(short)} volumes are too short to be cut: whole volumes are divided")
        _divide_whole({n: len(o) for n, o in rows.items()}, volumes, settings, train, val)
        return
    for n, cut in cuts.items():
        train[n], val[n] = cut if cut is not None else (volumes[n].region, None)
    if short:
        names = ", ".join(volumes[n].name for n in short)
        reporter.say(f"too short to be cut, so only trained on: {names}")


def guard_width(width: int | None, patch: Shape) -> Shape:
    """Width of the guard band for a cut across each axis: a patch length when none is given."""
    return patch if width is None else (width, width, width)


def narrower_guards(patch: Shape) -> list[Shape]:
    """Guard bands to try where none is given and a patch length has no room, the widest first."""
    # Reads are clipped to their side: a narrower band flatters validation a little, and leaks nothing.
    return [triple(n // part for n in patch) for part in (2, 4)] + [(0, 0, 0)]


def require_room(settings: TrainingParams, volumes: Sequence[TaskVolume], patch: Shape) -> None:
    """Refuse, before a label is read, volumes that no list of patches could be divided in.

    Raises:
        TaskError: the only volume that is to be cut holds no two patches next to each other.
    """
    undecided = [volume for volume in volumes if volume.split is None]
    is_cut = settings.split_mode == "spatial" and settings.tr_val_split < 1
    is_cut = is_cut and not settings.folds and settings.split_from is None
    if not is_cut or len(undecided) != 1 or any(volume.split == "val" for volume in volumes):
        return
    (volume,) = undecided
    if all(n < 2 * p for n, p in zip(volume.region.shape, patch, strict=True)):
        raise _no_two_patches(volume, patch, 0)


def widest_guard(origins: Sequence[int] | np.ndarray, patch: int) -> int:
    """The widest band along an axis that leaves a patch on both sides; negative if all overlap."""
    return int(max(origins) - min(origins)) - patch


def _refuse_without_room(
    settings: TrainingParams,
    volumes: Sequence[TaskVolume],
    rows: Mapping[int, np.ndarray],
    patch: Shape,
) -> None:
    """Refuse volumes that cannot be cut with the guard band that the task gives, or without any.

    Raises:
        TaskError: the task gives a wider band than fits, or the only volume has no two patches that
            lie apart.
    """
    widest = max(widest_guard(o[:, axis], patch[axis]) for o in rows.values() for axis in range(3))
    first = volumes[min(rows)]
    if widest < 0 and len(rows) == 1:
        raise _no_two_patches(first, patch, len(rows[min(rows)]))
    if widest >= 0 and settings.split_guard is not None:
        raise _too_wide(first, settings.split_guard, widest)


def _closer_cuts(
    settings: TrainingParams,
    volumes: Sequence[TaskVolume],
    rows: Mapping[int, np.ndarray],
    patch: Shape,
    reporter: Reporter,
) -> dict[int, Cut | None]:
    """Cuts with the widest guard band that leaves enough to train on; None without two patches apart."""
    cuts: dict[int, Cut | None] = {}
    for n, origins in rows.items():
        region, share = volumes[n].region, settings.tr_val_split
        found = (
            best_cut(region, origins, patch, g, share) for g in (patch, *narrower_guards(patch))
        )
        tried = [cut for cut in found if cut is not None]
        enough = (cut for cut in tried if _kept(cut, origins, patch) >= KEPT_SHARE * share)
        most = max(tried, key=lambda cut: _kept(cut, origins, patch), default=None)
        cuts[n] = cut = next(enough, most)
        if cut is not None and cut != best_cut(region, origins, patch, patch, share):
            reporter.say(_closer(volumes[n], patch, *cut))
    return cuts


def _kept(cut: Cut, origins: np.ndarray, patch: Shape) -> float:
    """What is trained on, as a share of the length that patches cover across the cut."""
    train, val = cut
    axis = next(a for a in range(3) if train.end[a] != val.end[a])
    low, high = origins[:, axis].min(), origins[:, axis].max() + patch[axis]
    return (train.end[axis] - low) / (high - low)


def _closer(volume: TaskVolume, patch: Shape, train: Box, val: Box) -> str:
    """In words, which guard band a volume is cut with, and into what."""
    band = max(v - t for v, t in zip(val.origin, train.end, strict=True))
    return (
        f"{volume.name}: {_times(volume.region.shape)} voxels have no room for a guard band of a patch "
        f"({_times(patch)}): {_times(train.shape)} to train and {_times(val.shape)} to validate on, "
        f"{band} voxels apart"
    )


def _times(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def best_cut(
    region: Box, origins: np.ndarray, patch: Shape, guard: Shape, wanted: float
) -> Cut | None:
    """The cut across some axis whose share of training patches comes nearest to the wanted one.

    Among equals, the one that loses the fewest patches to the guard band, then the one that leaves the
    most voxels to train on. None when no cut leaves a patch on both sides.
    """
    best: tuple[float, int, float] | None = None
    boxes: Cut | None = None
    for axis in range(3):
        start = np.sort(origins[:, axis])
        end = start + patch[axis]
        # Behind a training patch, or as far as the guard band before a validation patch lets it:
        # what is between is trained on, too, as patches are shifted.
        cuts = np.unique(np.concatenate([end, start - guard[axis]]))
        trained = np.searchsorted(end, cuts, side="right")
        validated = len(start) - np.searchsorted(start, cuts + guard[axis], side="left")
        for cut, a, b in zip(cuts.tolist(), trained.tolist(), validated.tolist(), strict=True):
            if not a or not b:
                continue
            low, high = region.origin[axis], region.end[axis]
            score = (abs(a / (a + b) - wanted), len(start) - a - b, -(cut - low) / (high - low))
            if best is None or score < best:
                best = score
                boxes = region.cut(axis, low, cut), region.cut(axis, cut + guard[axis], high)
    return boxes


def _divide_whole(
    counts: Mapping[int, int],
    volumes: Sequence[TaskVolume],
    settings: TrainingParams,
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
    rng = np.random.Generator(np.random.Philox(key=[settings.seed, 2]))
    order = [units[n] for n in rng.permutation(len(units))]
    sums = np.cumsum([sum(counts[n] for n in unit) for unit in order]) / sum(counts.values())
    trained = int(np.argmin(np.abs(sums[: max(len(units) - 1, 1)] - settings.tr_val_split)))
    for position, unit in enumerate(order):
        side = train if position <= trained else val
        for n in unit:
            side[n] = volumes[n].region


def _too_wide(volume: TaskVolume, guard: int, widest: int) -> TaskError:
    shape = _times(volume.region.shape)
    found = f"{guard} leaves no patch on one side of volume {volume.name} ({shape} voxels)"
    return TaskError("tr_params.split_guard", found, f"give at most {widest}, or null")


def _no_two_patches(volume: TaskVolume, patch: Shape, count: int) -> TaskError:
    """What no guard band helps with: patches are too large, or too few places qualify."""
    shape, without = volume.region.shape, "tr_val_split 1 (no validation)"
    room = [n / p for n, p in zip(shape, patch, strict=True)]
    axis = room.index(max(room))
    found = f"volume {volume.name} ({_times(shape)} voxels) "
    if room[axis] < 2:
        found += (
            f"holds no two patches of {_times(patch)} next to each other, to train and validate on"
        )
        remedy = f"give {length_at_most(shape[axis] // 2)} along {AXES[axis]}, or {without}"
        return TaskError("tr_params.patch_size", found, remedy)
    found += f"has no two of its {count} patches apart, to train and to validate on"
    remedy = f"give a finer patch_stride, a smaller patch_size, lower thresholds, or {without}"
    return TaskError("tr_params.patch_size", found, remedy)


SCHEMA = 1


@dataclass(frozen=True)
class Split:
    """The two sides. A region is None where the volume has no part in that side."""

    train: np.ndarray
    """(n, 4) int64 rows of the patch list."""
    val: np.ndarray
    train_regions: Regions
    val_regions: Regions
    description: Mapping[str, Any]
    """What determined it, as JSON values: seed, mode, share, guard, digest of the patch list."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for the checkpoint and `splits.json`."""
        return {
            **self.description,
            "train_patches": len(self.train),
            "val_patches": len(self.val),
            "train_regions": [box and box.pairs for box in self.train_regions],
            "val_regions": [box and box.pairs for box in self.val_regions],
        }


def load_or_split(
    run: Run,
    settings: TrainingParams,
    volumes: Sequence[TaskVolume],
    patches: PatchList,
    reporter: Reporter | None = None,
    *,
    changed: bool = False,
) -> Split:
    """The split that the run holds; made and saved when there is none.

    Where labels were `changed` knowingly, its regions stay, and the patches may be others.

    Raises:
        TaskError: what it holds is of other patches or settings, or is damaged; or a side would be
            empty.
        OSError: the file cannot be written.
    """
    if (saved := run.splits()) is not None:
        try:
            split = _checked(saved, settings, volumes, patches, changed=changed)
            if changed:
                run.write_splits(split.to_dict())
            return split
        except _OtherSplitError as error:
            path = run.splits_file
            remedy = f"use another ckpt_out_base, --restart, or delete {path}"
            raise TaskError(str(path), str(error), remedy) from error
    split = split_patches(settings, volumes, patches, reporter)
    run.write_splits(split.to_dict())
    return split


def split_patches(
    settings: TrainingParams,
    volumes: Sequence[TaskVolume],
    patches: PatchList,
    reporter: Reporter | None = None,
) -> Split:
    """Divide the patches as the volumes' own `split` and `tr_val_split` say.

    Raises:
        TaskError: no training or no validation patch would be left, or a training region shares
            voxels with a validation region.
    """
    reporter = reporter or Silent()
    if settings.split_from is not None:
        train, val = taken_regions(settings.split_from, volumes)
        reporter.say(f"volumes are divided as in {settings.split_from}")
        _refuse_overlap(volumes, train, val)
        split = _assemble(settings, volumes, patches, train, val)
        _refuse_empty(split, settings)
        return split
    train: Regions = [v.region if v.split == "train" else None for v in volumes]
    val: Regions = [v.region if v.split == "val" else None for v in volumes]
    undecided = [n for n, v in enumerate(volumes) if v.split is None]
    is_random = settings.split_mode == "random"
    if settings.tr_val_split == 1:
        for n in undecided:
            train[n] = volumes[n].region
    elif undecided and is_random:
        _refuse_groups([volumes[n] for n in undecided])
        for n in undecided:
            train[n] = val[n] = volumes[n].region
        reporter.say("random split: training and validation patches may share voxels")
    elif undecided:
        cut_volumes(settings, volumes, patches, undecided, train, val, reporter)
        _cut_twins_alike(volumes, undecided, train, val)
    if not is_random:
        _refuse_overlap(volumes, train, val)
    split = _assemble(settings, volumes, patches, train, val)
    _refuse_empty(split, settings)
    return split


def rows_inside(rows: np.ndarray, patch: Shape, regions: Sequence[Box | None]) -> np.ndarray:
    """Which rows lie wholly in the region of their volume: (n,) bool.

    A patch that is longer than its region along an axis (it is padded) must start with it.
    """
    inside = np.zeros(len(rows), bool)
    for number, region in enumerate(regions):
        mine = rows[:, 0] == number
        if region is not None and mine.any():
            low, shape = np.array(region.origin), np.array(region.shape)
            offset = rows[mine, 1:] - low
            room = np.maximum(shape - np.array(patch), 0)
            inside[mine] = ((offset >= 0) & (offset <= room)).all(axis=1)
    return inside


def _assemble(
    settings: TrainingParams,
    volumes: Sequence[TaskVolume],
    patches: PatchList,
    train: Regions,
    val: Regions,
) -> Split:
    """The rows of both sides, given the regions."""
    rows = patches.rows
    is_train = rows_inside(rows, patches.patch_size, train)
    is_val = rows_inside(rows, patches.patch_size, val)
    shared = np.flatnonzero(is_train & is_val)  # only a random split has any
    rng = np.random.Generator(np.random.Philox(key=[settings.seed, 1]))
    order = rng.permutation(shared)
    trained = round(len(order) * settings.tr_val_split)
    if len(order) > 1 and settings.tr_val_split < 1:  # of few, each side gets one
        has_train, has_val = (is_train & ~is_val).any(), (is_val & ~is_train).any()
        trained = min(max(trained, 1 - has_train), len(order) - 1 + has_val)
    is_val[order[:trained]] = False
    description = _describe(settings, volumes, patches)
    return Split(rows[is_train & ~is_val], rows[is_val], train, val, description)


def _describe(
    settings: TrainingParams, volumes: Sequence[TaskVolume], patches: PatchList
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "seed": settings.seed,
        "split_mode": "spatial" if settings.split_from else settings.split_mode,
        "tr_val_split": settings.tr_val_split,
        "split_guard": settings.split_guard,
        **({"split_from": settings.split_from} if settings.split_from else {}),
        **({"folds": settings.folds.model_dump()} if settings.folds else {}),
        "volumes": [volume.name for volume in volumes],
        "split": [volume.split for volume in volumes],
        "grids": [grid_note(volume) for volume in volumes],
        "patches": {"count": len(patches.rows), "sha256": patches.digest()},
    }


def refuse_shared(volumes: Sequence[TaskVolume]) -> None:
    """Refuse volumes whose own `split` puts the same voxels on both sides.

    Raises:
        TaskError: naming two of them.
    """
    train: Regions = [v.region if v.split == "train" else None for v in volumes]
    val: Regions = [v.region if v.split == "val" else None for v in volumes]
    _refuse_overlap(volumes, train, val)


def refuse_tested(volumes: Sequence[TaskVolume], tested: Sequence[TaskVolume]) -> None:
    """Refuse volumes kept for testing that show voxels of others, or that leave no others.

    Raises:
        TaskError: naming two of them.
    """
    if not volumes:
        remedy = 'give volumes to train on, or another "split" to some of these'
        raise TaskError("dataset_config.volume_paths", 'all are "split": "test"', remedy)
    scans: dict[int, list[TaskVolume]] = {}
    for volume in volumes:
        scans.setdefault(volume.scan, []).append(volume)
    for test in tested:
        for other in scans.get(test.scan, ()):
            if test.meets(test.region, other, other.region):
                found = f"shares voxels with {test.name}, which is for testing"
                raise _overlap(other, test, found)


def _cut_twins_alike(
    volumes: Sequence[TaskVolume], undecided: Sequence[int], train: Regions, val: Regions
) -> None:
    """Cut volumes of the very same voxels at the same place, whatever their labels."""
    cut = [n for n in undecided if train[n] and val[n]]
    for n in undecided:
        twin = next((m for m in cut if volumes[m].is_twin(volumes[n])), n)
        if train[n] or val[n]:
            train[n], val[n] = train[twin], val[twin]


def _refuse_overlap(volumes: Sequence[TaskVolume], train: Regions, val: Regions) -> None:
    """Two entries may be of the same voxels: those that train must not validate."""
    scans: dict[int, list[int]] = {}
    for n, volume in enumerate(volumes):
        scans.setdefault(volume.scan, []).append(n)
    for scan in scans.values():
        for a in scan:
            for b in scan:
                one, other = train[a], val[b]
                if one and other and volumes[a].meets(one, volumes[b], other):
                    found = "its training part shares voxels with the validation part of "
                    raise _overlap(volumes[a], volumes[b], found + volumes[b].name)


def _overlap(one: TaskVolume, other: TaskVolume, found: str) -> TaskError:
    if one.inputs[0].location != (there := other.inputs[0].location):
        found += f" ({there} holds the same)"
    remedy = 'leave one out, give both one "split" or "group", or each a bbox, without overlap'
    return TaskError(one.key, found, remedy)


def _refuse_groups(volumes: Sequence[TaskVolume]) -> None:
    """Patches that are drawn from all volumes leave no group on one side."""
    for volume in volumes:
        if volume.group is not None:
            found = f'is "random", and the patches of group {volume.group} would be on both sides'
            raise TaskError("tr_params.split_mode", found, 'use "spatial", or remove the group')


def _refuse_empty(split: Split, settings: TrainingParams) -> None:
    """Both sides need at least one patch; only `tr_val_split: 1` leaves out validation."""
    share, more = settings.tr_val_split, "a finer patch_stride or lower thresholds"
    for side, rows in (("train", split.train), ("validate", split.val)):
        if len(rows) or (side == "validate" and share == 1):
            continue
        found = f"there is no patch left to {side} on"
        if settings.folds is not None:
            remedy = f"give {more}, or fewer folds"
            raise TaskError("tr_params.folds", found, remedy)
        other = "tr_val_split 1 (no validation)" if side == "validate" else "another tr_val_split"
        fixed = "train" if side == "train" else "val"
        remedy = f'give {more}, {other}, or a volume with "split": "{fixed}"'
        raise TaskError("tr_params.tr_val_split", found, remedy)


class _OtherSplitError(Exception):
    """Why a saved split cannot be used, in words for a person."""


def _checked(
    saved: Splits,
    settings: TrainingParams,
    volumes: Sequence[TaskVolume],
    patches: PatchList,
    *,
    changed: bool = False,
) -> Split:
    """A saved split as it divides these patches, which may be others if labels were `changed`.

    Raises:
        _OtherSplitError: it was made from others, or with other settings.
        TaskError: a side is empty.
    """
    description = _describe(settings, volumes, patches)
    document = {"grids": description["grids"], **saved.document}  # earlier ones lack them
    for key, value in description.items():
        if document.get(key) != value and not (changed and key == "patches"):
            if key == "patches":
                found = f"made from another patch list ({document.get(key)}, now {value})"
                raise _OtherSplitError(found)
            if key == "grids":
                raise _OtherSplitError("made on other grids of the volumes")
            raise _OtherSplitError(f"made with {key} {document.get(key)}, now {value}")
    train, val = list(saved.train_regions), list(saved.val_regions)
    split = _assemble(settings, volumes, patches, train, val)
    if split.to_dict() != document and not changed:
        raise _OtherSplitError("was changed by hand")
    _refuse_empty(split, settings)
    return split
