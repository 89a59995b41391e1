"""Which patches are worth training on: those that hold enough labelled voxels."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import numpy as np

from vcmodels.config import Task
from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Shape, triple
from vcmodels.machine import machine_bytes
from vcmodels.patches.density import (
    CandidateGrid,
    PatchDensity,
    missed_voxels,
    patch_density,
    patch_grid,
)
from vcmodels.patches.index import LabelIndex, cell_shape
from vcmodels.patches.index_build import Indexer, Wanted
from vcmodels.patches.unlabelled import worth_seeing
from vcmodels.reporting import Reporter, Silent, list_some

BYTES_PER_CELL = 10
"""Plane sets, labelled voxels and those of one value."""
BYTES_PER_PATCH = 72
"""Number, labelled voxels and box, sorted; the share of each, and the row of the list."""


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
        """Those of a task; the stride is half a patch where it gives none."""
        config, patch = task.dataset_config, task.tr_params.patch_size
        return cls(
            patch,
            config.patch_stride or triple(max(n // 2, 1) for n in patch),
            config.min_bbox_percent,
            config.min_labeled_ratio,
            config.labeled_ratio_of,
        )

    @property
    def cell(self) -> Shape:
        """Voxels of a cell of the label indexes that answer for these patches."""
        return cell_shape(self.patch, self.stride)

    @property
    def takes_everything(self) -> bool:
        """Whether patches without labels qualify, too."""
        return self.min_bbox_percent <= 0 and self.min_labeled_ratio <= 0

    def shares(self, density: PatchDensity, grid: CandidateGrid) -> tuple[np.ndarray, np.ndarray]:
        """Per patch: the share that the labels' box fills, and the labelled ratio, both float64.

        A patch that reaches over a thin region counts with the voxels inside.
        """
        whole = grid.patch_voxels
        of = np.maximum(density.box, 1) if self.labeled_ratio_of == "box" else whole
        return density.box / whole, density.labelled / of


@dataclass(frozen=True)
class Candidates:
    """The candidate patches of one volume and what the reference label holds there."""

    volume: TaskVolume
    grid: CandidateGrid
    density: PatchDensity | None
    """Of the candidates that hold labels; None without a reference label."""
    values: list[int] | None
    """The labelled values that occur; None when they are counted together."""
    labelled: int = 0
    """Labelled voxels of the region, about: cells across its border count whole."""
    missed: int = 0
    """Those of them that lie in no patch that qualifies."""
    shown: np.ndarray | None = None
    """Of a volume without any labels, flat numbers of the candidates that show something."""

    def chosen(self, criteria: PatchCriteria) -> np.ndarray:
        """The origins (n, 3) int64 of the candidates that qualify, ascending."""
        places = self.qualifying(criteria)
        return self.grid.rows(np.arange(prod(self.grid.counts)) if places is None else places)

    def qualifying(self, criteria: PatchCriteria) -> np.ndarray | None:
        """Flat numbers of the places that meet the thresholds, ascending; None for all."""
        if self.shown is not None:
            return self.shown
        if self.density is None or criteria.takes_everything:
            return None
        share, ratio = criteria.shares(self.density, self.grid)
        enough = (share >= criteria.min_bbox_percent) & (ratio >= criteria.min_labeled_ratio)
        return self.density.places[enough]


def search_patches(
    task: Task, volumes: Sequence[TaskVolume], reporter: Reporter | None = None
) -> PatchList:
    """The patches of a task, found without a cache: `survey`, then `choose_patches`."""
    criteria, reporter = PatchCriteria.of(task), reporter or Silent()
    indexer = Indexer.of(task, reporter)
    candidates = survey(volumes, criteria, indexer)
    return choose_patches(candidates, criteria, indexer)


def survey(
    volumes: Sequence[TaskVolume],
    criteria: PatchCriteria,
    indexer: Indexer,
    *,
    stride: Shape | None = None,
) -> list[Candidates]:
    """All candidate patches of all volumes, before any threshold.

    Volumes without `ref_label` give every patch of their grid, those without any label the ones that
    show something. Of a label that is not in the index
    yet, each stored chunk is decoded once.

    Args:
        volumes: all volumes of the task.
        criteria: their patch and stride say where candidates are.
        indexer: gives the indexes of the reference labels.
        stride: step between candidates, a multiple of the cell; the one of the criteria when None.

    Raises:
        TaskError: the labels are more than this machine can index.
        ChunkError: a label chunk cannot be read.
    """
    cell = criteria.cell
    criteria = replace(criteria, stride=stride or criteria.stride)
    grids = candidate_grids(volumes, criteria, cell)
    labels = [
        Wanted(v.ref, grid.frame, v.region, cell, v.ref_ignored, v.ref_foreground)
        for v, grid in zip(volumes, grids, strict=True)
        if v.ref is not None
    ]
    chosen = criteria if stride is None else None
    with closing(indexer.indexes(labels)) as indexes:
        return [_candidates(v, g, indexes, chosen) for v, g in zip(volumes, grids, strict=True)]


def candidate_grids(
    volumes: Sequence[TaskVolume], criteria: PatchCriteria, cell: Shape | None = None
) -> list[CandidateGrid]:
    """Where the candidates of each volume lie, on cells of the criteria if no others are named.

    Raises:
        TaskError: the labels are more than this machine can index.
    """
    cell, patch, stride = cell or criteria.cell, criteria.patch, criteria.stride
    grids = [patch_grid(v.inputs[0].box, v.region, patch, stride, cell) for v in volumes]
    for volume, grid in zip(volumes, grids, strict=True):
        _refuse_too_large(volume, grid, cell, criteria)
    return grids


def _candidates(
    volume: TaskVolume,
    grid: CandidateGrid,
    indexes: Iterator[LabelIndex],
    criteria: PatchCriteria | None,
) -> Candidates:
    """One volume's, taking the next index when it has a reference label.

    With criteria, what those that meet them leave out is counted, and without labels is looked for
    what shows something.
    """
    if volume.ref is None:
        is_asked = criteria is not None and not volume.labels
        shown = worth_seeing(volume.inputs, grid) if is_asked else None
        return Candidates(volume, grid, None, None, shown=shown)
    index = next(indexes)
    found = Candidates(volume, grid, patch_density(index, grid), index.values)
    places = found.qualifying(criteria) if criteria is not None else None
    if places is None:
        return found
    labelled, missed = missed_voxels(index, grid, places)
    return replace(found, labelled=labelled, missed=missed)


def choose_patches(
    candidates: Sequence[Candidates], criteria: PatchCriteria, indexer: Indexer
) -> PatchList:
    """Those of the candidates that meet the thresholds; what they leave out is reported.

    Args:
        candidates: from `survey`.
        criteria: the same.
        indexer: looks whether another stride gives more, and reports.

    Raises:
        TaskError: not one does; names a stride that gives some, else the best one and the threshold
            that blocks it.
    """
    reporter = indexer.reporter
    found = [one.chosen(criteria) for one in candidates]
    rows = np.concatenate(
        [np.insert(origins, 0, number, axis=1) for number, origins in enumerate(found)]
    )
    if not len(rows):
        raise _nothing_qualifies(candidates, criteria, indexer)
    empty = [
        c.volume.name for c, origins in zip(candidates, found, strict=True) if not len(origins)
    ]
    if empty:
        shown = list_some(empty, 5)
        reporter.say(f"no patch qualifies in {len(empty)} of {len(candidates)} volumes: {shown}")
    if line := _left_out(candidates, criteria, indexer):
        reporter.say(line)
    return PatchList(criteria.patch, rows)


NOTABLE = 0.1
"""Share of the labelled voxels that is reported when no patch holds it."""
FEW_VOXELS = 1 << 27
"""Stored voxels of all labels that are read again to try another stride: a second or two."""
FEW_PATCHES = 1 << 20
"""Candidates that are looked at for it."""


@dataclass(frozen=True)
class Finer:
    """What another stride gives."""

    stride: Shape
    patches: int
    missed: float
    """Share of the labelled voxels that no patch holds."""

    def __str__(self) -> str:
        return f"patch_stride {list(self.stride)} gives {self.patches}"


def _left_out(
    candidates: Sequence[Candidates], criteria: PatchCriteria, indexer: Indexer
) -> str | None:
    """In words, the labelled voxels that no patch holds, and what helps; None if they are few."""
    missed = _missed(candidates)
    if missed < NOTABLE:
        return None
    tried = finer_strides([c.volume for c in candidates], criteria, indexer)
    better = next((finer for finer in tried if 2 * finer.missed <= missed), None)
    found = f"{missed:.0%} of the labelled voxels lie in no patch that qualifies"
    if better is None:
        return f"{found}; lower min_bbox_percent or min_labeled_ratio to train on them"
    return f"{found}; {better} patches, and leaves out {better.missed:.0%}"


def _missed(candidates: Sequence[Candidates]) -> float:
    return sum(c.missed for c in candidates) / max(sum(c.labelled for c in candidates), 1)


def finer_strides(
    volumes: Sequence[TaskVolume], criteria: PatchCriteria, indexer: Indexer
) -> Iterator[Finer]:
    """What a half, a quarter, ... of the stride gives, as far as that is found quickly."""
    volumes = [volume for volume in volumes if volume.labels]
    voxels = sum(_stored_voxels(v) for v in volumes)
    quiet, indexed = replace(indexer, reporter=Silent()), criteria.cell
    while max(criteria.stride) > 1:
        criteria = replace(criteria, stride=triple(max(n // 2, 1) for n in criteria.stride))
        cells = voxels // prod(criteria.cell)
        patches = sum(_near(v, criteria) for v in volumes)
        is_read = criteria.cell != indexed or indexer.folder is None
        if patches > FEW_PATCHES or (is_read and max(voxels, 8 * cells) > FEW_VOXELS):
            return
        found = survey(volumes, criteria, quiet)
        count = sum(len(one.chosen(criteria)) for one in found)
        yield Finer(criteria.stride, count, _missed(found))


def _near(volume: TaskVolume, criteria: PatchCriteria) -> int:
    """How many candidates, at most, reach what is stored of the reference label."""
    if volume.ref is None or volume.ref.listing is None:
        return prod(-(-n // s) for n, s in zip(volume.region.shape, criteria.stride, strict=True))
    unit, patch, stride = volume.ref.storage_unit, criteria.patch, criteria.stride
    each = prod(
        -(-(min(u, n) + p) // s)
        for u, n, p, s in zip(unit, volume.region.shape, patch, stride, strict=True)
    )
    return each * sum(1 for _ in volume.ref.stored_blocks(within=volume.region))


def are_few(volumes: Sequence[TaskVolume]) -> bool:
    """Whether the reference labels are read in a second or two."""
    return sum(map(_stored_voxels, volumes)) <= FEW_VOXELS


def _stored_voxels(volume: TaskVolume) -> int:
    """Voxels of the reference label that are read for an index."""
    ref = volume.ref
    if ref is None:
        return 0
    if ref.listing is None:
        return volume.region.voxels
    return sum(block.voxels for block in ref.stored_blocks(within=volume.region))


def _nothing_qualifies(
    candidates: Sequence[Candidates], criteria: PatchCriteria, indexer: Indexer
) -> TaskError:
    """What came nearest to qualifying, and which threshold or stride blocks it."""
    best: tuple[float, float, float, str] | None = None
    enough_box = False
    for one in candidates:
        if one.density is None or not len(one.density.places):
            continue
        share, ratio = criteria.shares(one.density, one.grid)
        enough_box |= bool((share >= criteria.min_bbox_percent).any())
        score = np.minimum(
            share / max(criteria.min_bbox_percent, 1e-9),
            ratio / max(criteria.min_labeled_ratio, 1e-9),
        )
        at = int(score.argmax())
        if best is None or score[at] > best[0]:
            origin = tuple(one.grid.rows(one.density.places[at : at + 1])[0].tolist())
            place = f"(z, y, x) = {origin} of {one.volume.name}"
            best = float(score[at]), float(share[at]), float(ratio[at]), place
    if best is None:
        found = "no patch qualifies: the reference labels hold no labelled voxel"
        remedy = "check ref_label, bbox and ignore_label"
        return TaskError("dataset_config.min_labeled_ratio", found, remedy)
    _, share, ratio, place = best
    blocking = "dataset_config.min_labeled_ratio"
    if not enough_box or share < criteria.min_bbox_percent:
        blocking = "dataset_config.min_bbox_percent"
    found = (
        f"no patch qualifies; the best, at {place}, has a labelled box of {share:.4g} of the patch "
        f"(wanted {criteria.min_bbox_percent:g}) and a labelled ratio of {ratio:.4g} "
        f"(wanted {criteria.min_labeled_ratio:g})"
    )
    tried = finer_strides([c.volume for c in candidates], criteria, indexer)
    if (better := next((finer for finer in tried if finer.patches), None)) is not None:
        return TaskError(blocking, found, f"lower it, or step less far: {better}")
    return TaskError(blocking, found, "lower it, or choose a smaller patch_size")


def _refuse_too_large(
    volume: TaskVolume, grid: CandidateGrid, cell: Shape, criteria: PatchCriteria
) -> None:
    """Memory goes with the cells and patches where something is stored.

    Raises:
        TaskError: they cannot be held.
    """
    region, ref = volume.region, volume.ref
    cells = prod(-(-n // c) for n, c in zip(region.shape, cell, strict=True))
    patches = prod(grid.counts)
    if ref is not None and ref.listing is not None and not criteria.takes_everything:
        units = sum(1 for _ in ref.stored_blocks(within=region))
        near = prod(
            -(-(u + p) // s)
            for u, p, s in zip(ref.storage_unit, grid.patch, criteria.stride, strict=True)
        )
        cells = min(
            cells, units * prod(-(-u // c) for u, c in zip(ref.storage_unit, cell, strict=True))
        )
        patches = min(patches, units * near)
    needed, there = BYTES_PER_CELL * cells + BYTES_PER_PATCH * patches, machine_bytes()
    if needed > there:
        found = (
            f"finding patches in {region.shape} voxels needs {needed / 2**30:,.0f} GiB, "
            f"the machine has {there / 2**30:,.0f} GiB"
        )
        raise TaskError(f"{volume.key}.bbox", found, "give the part that is labelled as bbox")
