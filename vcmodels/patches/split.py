"""Which patches train and which validate, so that no validation voxel is seen in training.

A volume is cut by a plane into two boxes with a guard band between them. Patches, and all that is
read around them, stay inside their box: nothing is shared by construction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vcmodels.config import TrainingParams
from vcmodels.data.volumes import TaskVolume, units_of
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.patches.find import PatchList
from vcmodels.reporting import Reporter, Silent
from vcmodels.runs.run import Run, Splits

WHOLE_VOLUMES_FROM = 4
"""From so many volumes on, those that are too short to be cut may be divided as wholes."""

Regions = list[Box | None]


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
    if short and len(rows) >= WHOLE_VOLUMES_FROM:
        reporter.say(f"{len(short)} volumes are too short to be cut: whole volumes are divided")
        _divide_whole({n: len(o) for n, o in rows.items()}, volumes, settings, train, val)
        return
    if short and len(short) == len(cuts) and not any(val):
        key = "patch_size" if settings.split_guard is None else "split_guard"
        raise _too_short(f"tr_params.{key}", volumes[short[0]], guard)
    for n, cut in cuts.items():
        train[n], val[n] = cut if cut is not None else (volumes[n].region, None)
    if short:
        names = ", ".join(volumes[n].name for n in short)
        reporter.say(f"too short to be cut, so only trained on: {names}")


def guard_width(width: int | None, patch: Shape) -> Shape:
    """Width of the guard band for a cut across each axis: a patch length when none is given."""
    return patch if width is None else (width, width, width)


def best_cut(
    region: Box, origins: np.ndarray, patch: Shape, guard: Shape, wanted: float
) -> tuple[Box, Box] | None:
    """The cut across some axis whose share of training patches comes nearest to the wanted one.

    Among equals, the one that loses the fewest patches to the guard band. None when no cut leaves
    a patch on both sides.
    """
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
                low, high = region.origin[axis], region.end[axis]
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


def _too_short(key: str, volume: TaskVolume, guard: Shape) -> TaskError:
    found = (
        f"volume {volume.name} with region {volume.region.shape} cannot be cut into a training and "
        f"a validation part with a guard band of {guard} voxels between them"
    )
    remedy = (
        'set a smaller split_guard, a smaller patch_size, split_mode "random", or give volumes a '
        '"split" of their own'
    )
    return TaskError(key, found, remedy)


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
            "train_regions": [_box_to_json(box) for box in self.train_regions],
            "val_regions": [_box_to_json(box) for box in self.val_regions],
        }


def load_or_split(
    run: Run,
    settings: TrainingParams,
    volumes: Sequence[TaskVolume],
    patches: PatchList,
    reporter: Reporter | None = None,
) -> Split:
    """The split that the run holds; made and saved when there is none.

    Raises:
        TaskError: what it holds is of other patches or settings, or is damaged; or a side would be
            empty.
        OSError: the file cannot be written.
    """
    if (saved := run.splits()) is not None:
        try:
            return _checked(saved, settings, volumes, patches)
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
    if not is_random:
        _refuse_overlap(volumes, train, val)
    split = _assemble(settings, volumes, patches, train, val)
    _refuse_empty(split, settings.tr_val_split)
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
    is_val[order[: round(len(order) * settings.tr_val_split)]] = False
    description = _describe(settings, volumes, patches)
    return Split(rows[is_train & ~is_val], rows[is_val], train, val, description)


def _describe(
    settings: TrainingParams, volumes: Sequence[TaskVolume], patches: PatchList
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "seed": settings.seed,
        "split_mode": settings.split_mode,
        "tr_val_split": settings.tr_val_split,
        "split_guard": settings.split_guard,
        **({"folds": settings.folds.model_dump()} if settings.folds else {}),
        "volumes": [volume.name for volume in volumes],
        "split": [volume.split for volume in volumes],
        "patches": {"count": len(patches.rows), "sha256": patches.digest()},
    }


def _refuse_overlap(volumes: Sequence[TaskVolume], train: Regions, val: Regions) -> None:
    """Two entries may be parts of the same array: their parts must not share voxels."""
    places: dict[object, list[int]] = {}
    for n, volume in enumerate(volumes):
        for array in volume.inputs:  # other time points are other voxels, other channels are not
            places.setdefault((array.location, array.axes.fixed), []).append(n)
    for group in places.values():
        for a in group:
            for b in group:
                one, other = train[a], val[b]
                if one and other and one.intersect(other).voxels:
                    found = f"its training part shares voxels with the validation part of {volumes[b].name}"
                    raise TaskError(volumes[a].key, found, "give them a bbox each, without overlap")


def _refuse_groups(volumes: Sequence[TaskVolume]) -> None:
    """Patches that are drawn from all volumes leave no group on one side."""
    for volume in volumes:
        if volume.group is not None:
            found = f'is "random", and the patches of group {volume.group} would be on both sides'
            raise TaskError("tr_params.split_mode", found, 'use "spatial", or remove the group')


def _refuse_empty(split: Split, share: float) -> None:
    """Both sides need at least one patch; only `tr_val_split: 1` leaves out validation."""
    for side, rows in (("train", split.train), ("validate", split.val)):
        if not len(rows) and (side == "train" or share < 1):
            found = f"there is no patch left to {side} on"
            remedy = (
                'change tr_val_split (1: no validation), split_guard or the "split" of the volumes'
            )
            raise TaskError("tr_params.tr_val_split", found, remedy)


class _OtherSplitError(Exception):
    """Why a saved split cannot be used, in words for a person."""


def _checked(
    saved: Splits, settings: TrainingParams, volumes: Sequence[TaskVolume], patches: PatchList
) -> Split:
    """A saved split as it divides these patches.

    Raises:
        _OtherSplitError: it was made from others, or with other settings.
        TaskError: a side is empty.
    """
    document = saved.document
    for key, value in _describe(settings, volumes, patches).items():
        if document.get(key) != value:
            if key == "patches":
                found = f"made from another patch list ({document.get(key)}, now {value})"
                raise _OtherSplitError(found)
            raise _OtherSplitError(f"made with {key} {document.get(key)}, now {value}")
    train, val = list(saved.train_regions), list(saved.val_regions)
    split = _assemble(settings, volumes, patches, train, val)
    if split.to_dict() != document:
        raise _OtherSplitError("was changed by hand")
    _refuse_empty(split, settings.tr_val_split)
    return split


def _box_to_json(box: Box | None) -> list[list[int]] | None:
    return None if box is None else [list(pair) for pair in zip(box.origin, box.end, strict=True)]
