"""Which patches are worth training on: those that hold enough labelled voxels."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from vcmodels.config import Task
from vcmodels.data.label_index import build_index, cell_shape
from vcmodels.data.patch_density import PatchDensity, PatchGrid, patch_density, patch_grid
from vcmodels.data.volumes import TaskVolume
from vcmodels.devices import machine_bytes
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.reporting import Reporter, Silent

BYTES_PER_CELL = 24
"""Counts and planes, and their sums in int64 beside the running ones."""
BYTES_PER_PATCH = 24
"""Labelled voxels, box, and the share of each in float64 one after the other."""


@dataclass(frozen=True)
class PatchList:
    """The patches of a task."""

    patch_size: Shape
    rows: np.ndarray
    """(n, 4) int64, ascending: volume number, then the patch's origin z, y, x in that volume."""

    def digest(self) -> str:
        """A sha256 of the rows; equal lists have equal ones on every machine."""
        return hashlib.sha256(self.rows.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class PatchCriteria:
    """What makes a patch worth training on, from the task."""

    patch: Shape
    stride: Shape
    min_bbox_percent: float
    """Least share of the patch that the bounding box of its labelled voxels fills."""
    min_labeled_ratio: float
    """Least share of labelled voxels in that box, or in the patch."""
    labeled_ratio_of: Literal["box", "patch"] = "box"

    @classmethod
    def of(cls, task: Task) -> "PatchCriteria":
        config, patch = task.dataset_config, task.tr_params.patch_size
        return cls(
            patch,
            patch_stride(task),
            config.min_bbox_percent,
            config.min_labeled_ratio,
            config.labeled_ratio_of,
        )

    def shares(self, density: PatchDensity, grid: PatchGrid) -> tuple[np.ndarray, np.ndarray]:
        """Per patch: the share that the labels' box fills, and the labelled ratio, both float64.

        A patch that reaches over a thin region counts with the voxels inside.
        """
        whole = grid.patch_voxels
        of = np.maximum(density.box, 1) if self.labeled_ratio_of == "box" else whole
        return density.box / whole, density.labelled / of


def patch_stride(task: Task) -> Shape:
    """The step between candidate patches: the task's, or half a patch."""
    if task.dataset_config.patch_stride is not None:
        return task.dataset_config.patch_stride
    z, y, x = (max(n // 2, 1) for n in task.tr_params.patch_size)
    return z, y, x


def find_patches(
    task: Task, volumes: Sequence[TaskVolume], reporter: Reporter | None = None
) -> PatchList:
    """Find the patches of all volumes; each stored block of a reference label is decoded once.

    Volumes without `ref_label` give every patch of their grid.

    Raises:
        TaskError: not one patch qualifies; names the best one and the threshold that blocks it.
        ChunkError: a label chunk cannot be read.
    """
    reporter = reporter or Silent()
    criteria = PatchCriteria.of(task)
    cell = cell_shape(criteria.patch, criteria.stride)
    found: list[np.ndarray] = []
    best = _Best(criteria)
    voxels = [_stored_voxels(volume) for volume in volumes]
    with reporter.bar("finding patches", sum(voxels)) as advance:
        for number, volume in enumerate(volumes):
            _refuse_too_large(volume, criteria.stride, cell)
            grid = patch_grid(volume.region, criteria.patch, criteria.stride, cell)
            chosen = np.ones([len(o) for o in grid.origins], bool)
            if volume.ref is not None:
                ignore = ignored_values(task, volume)
                index = build_index(
                    volume.ref, volume.region, cell, ignore, advance=lambda n: advance(n, "")
                )
                share, ratio = criteria.shares(patch_density(index, grid), grid)
                best.see(volume, grid, share, ratio)
                chosen = (share >= criteria.min_bbox_percent) & (
                    ratio >= criteria.min_labeled_ratio
                )
            found.append(_rows(number, grid, chosen))
    rows = np.concatenate(found)
    if not len(rows):
        raise best.nothing_qualifies()
    empty = [v.name for v, r in zip(volumes, found, strict=True) if not len(r)]
    if empty:
        shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        reporter.say(f"no patch qualifies in {len(empty)} of {len(volumes)} volumes: {shown}")
    return PatchList(criteria.patch, rows)


def ignored_values(task: Task, volume: TaskVolume) -> tuple[int, ...]:
    """The stored values of the reference label that count as unlabelled, besides 0."""
    if volume.ref_target is None:
        return ()
    ignore = task.dataset_config.targets[volume.ref_target].ignore_label
    if ignore is None:
        return ()
    return (ignore,) if isinstance(ignore, int) else tuple(ignore)


class _Best:
    """Remembers what came nearest to qualifying, for the message when nothing does."""

    def __init__(self, criteria: PatchCriteria) -> None:
        self.criteria = criteria
        self.score = -1.0
        self.place = "nowhere"
        self.share = self.ratio = 0.0
        self.enough_box = self.enough_ratio = 0

    def see(
        self, volume: TaskVolume, grid: PatchGrid, share: np.ndarray, ratio: np.ndarray
    ) -> None:
        wanted = self.criteria
        self.enough_box += int((share >= wanted.min_bbox_percent).sum())
        self.enough_ratio += int((ratio >= wanted.min_labeled_ratio).sum())
        score = np.minimum(
            share / max(wanted.min_bbox_percent, 1e-9), ratio / max(wanted.min_labeled_ratio, 1e-9)
        )
        at = np.unravel_index(int(score.argmax()), score.shape)
        if score[at] > self.score:
            origin = [
                int(o[i] + r) for o, i, r in zip(grid.origins, at, grid.region.origin, strict=True)
            ]
            self.score, self.share, self.ratio = (
                float(score[at]),
                float(share[at]),
                float(ratio[at]),
            )
            self.place = f"(z, y, x) = {tuple(origin)} of {volume.name}"

    def nothing_qualifies(self) -> TaskError:
        wanted = self.criteria
        if self.ratio == 0:
            found = "no patch qualifies: the reference labels hold no labelled voxel"
            return TaskError(
                "dataset_config.min_labeled_ratio", found, "check ref_label, bbox and ignore_label"
            )
        blocking = "dataset_config.min_labeled_ratio"
        if not self.enough_box or self.share < wanted.min_bbox_percent:
            blocking = "dataset_config.min_bbox_percent"
        found = (
            f"no patch qualifies; the best, at {self.place}, has a labelled box of "
            f"{self.share:.4g} of the patch (wanted {wanted.min_bbox_percent:g}) and a labelled "
            f"ratio of {self.ratio:.4g} (wanted {wanted.min_labeled_ratio:g})"
        )
        return TaskError(blocking, found, "lower it, or choose a smaller patch_size")


def _refuse_too_large(volume: TaskVolume, stride: Shape, cell: Shape) -> None:
    """The index is dense in cells: a volume of 10^18 voxels, even an empty one, has too many.

    Raises:
        TaskError: cells and candidate patches cannot be held in memory.
    """
    cells, patches = (
        prod(-(-n // u) for n, u in zip(volume.region.shape, step, strict=True))
        for step in (cell, stride)
    )
    needed, there = BYTES_PER_CELL * cells + BYTES_PER_PATCH * patches, machine_bytes()
    if needed > there:
        found = (
            f"finding patches in {volume.region.shape} voxels needs {needed / 2**30:,.0f} GiB, "
            f"the machine has {there / 2**30:,.0f} GiB"
        )
        raise TaskError(f"{volume.key}.bbox", found, "give the part that is labelled as bbox")


def _rows(number: int, grid: PatchGrid, chosen: np.ndarray) -> np.ndarray:
    origins = grid.rows(chosen)
    return np.concatenate([np.full((len(origins), 1), number, np.int64), origins], axis=1)


def _stored_voxels(volume: TaskVolume) -> int:
    """How much there is to stream, for the progress bar."""
    if volume.ref is None:
        return 0
    blocks: Sequence[Box] = list(volume.ref.stored_blocks(within=volume.region))
    return sum(block.intersect(volume.region).voxels for block in blocks)
