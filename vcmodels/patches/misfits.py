"""What the labels of a task cannot mean, reported from their indexes before the first step.

The label that finds the patches has its index anyway; of the others one is made of what is stored, or
of parts that are spread over it where that is much. Where indexes are kept, no label is read again.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from math import prod

import numpy as np

from vcmodels.config import Task
from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box, Shape, cut_block, triple
from vcmodels.patches.density import patch_grid
from vcmodels.patches.find import PatchCriteria, PatchList, candidate_grids
from vcmodels.patches.index import LONGEST_CELL, UNCOUNTED, LabelIndex
from vcmodels.patches.index_build import Indexer, Wanted
from vcmodels.patches.split import split_patches
from vcmodels.reporting import Reporter
from vcmodels.targets import AnyTarget
from vcmodels.targets.census import Census, Misfit

MOST_VOXELS = 2**29
"""Decoded of a label that is not indexed yet; of a larger one parts are looked at."""
MOST_UNITS = 2**12
"""Storage units of a label that are asked for one by one, where the store cannot be listed."""
MOST_PLACES = 64
"""Cells, or blocks, in which a value is looked for to name its place."""
MOST_CELLS = 2048
"""Of a brick, which are looked for in patches."""


@dataclass(frozen=True)
class CensusPlan:
    """From which indexes the labels of a task are known."""

    criteria: PatchCriteria
    indexer: Indexer
    reads_reference: bool
    """Whether the label that finds the patches is read whole, as that is needed in any case."""
    is_divided: bool
    """Whether the volumes are parts of others, as in a fold."""

    @classmethod
    def of(cls, task: Task, indexer: Indexer, reads_reference: bool) -> "CensusPlan":
        """The one for a task; what is not kept is not read whole twice."""
        is_kept = reads_reference and indexer.folder is not None
        is_divided = task.tr_params.folds is not None
        return cls(PatchCriteria.of(task), indexer, is_kept, is_divided)


@dataclass(frozen=True)
class LabelCensus:
    """What the label of one target in one volume holds."""

    volume: TaskVolume
    name: str
    """Key of the label in the volume: the target's name, or what it is derived from."""
    census: Census
    index: LabelIndex

    @property
    def key(self) -> str:
        """The dotted key of the label."""
        return f"{self.volume.key}.{self.name}"


def report_misfits(
    task: Task,
    volumes: Sequence[TaskVolume],
    reporter: Reporter,
    *,
    indexer: Indexer | None = None,
    reads_reference: bool = True,
    is_begun: bool = False,
) -> None:
    """Report what labels hold that cannot be, or is hardly meant.

    Args:
        task: with its patch size; the index that finds its patches serves here, too.
        volumes: all volumes of the task, or of a fold.
        reporter: gets a line for what may be meant.
        indexer: gives the indexes; None for the task's own, which keeps them.
        reads_reference: read the label that finds the patches whole, as finding them does.
        is_begun: a run has trained with these labels, and no key could be corrected: all are lines.

    Raises:
        TaskError: training would fail, or learn what nobody wants.
        ChunkError: a label chunk cannot be read.
    """
    plan = CensusPlan.of(task, indexer or Indexer.of(task, reporter), reads_reference)
    if plan.reads_reference:
        candidate_grids(volumes, plan.criteria)  # before hours of reading, is there the memory?
    targets = task.dataset_config.targets
    found = find_misfits(targets, task_censuses(targets, volumes, plan, reporter))
    fatal: list[TaskError] = []
    for key, misfit in found:
        error = TaskError(key, misfit.found, misfit.remedy)
        if misfit.is_fatal and not is_begun:
            fatal.append(error)
        else:
            reporter.say(f"note: {error}")
    if fatal:
        more = f" (and {len(fatal) - 1} more faults of labels)" if len(fatal) > 1 else ""
        first = fatal[0]
        raise TaskError(first.subject, f"{first.found}{more}", first.remedy)


TaskCensuses = dict[str, list[LabelCensus]]
"""By target, what its labels hold in all volumes, or those that it is derived from."""


def task_censuses(
    targets: Mapping[str, AnyTarget],
    volumes: Sequence[TaskVolume],
    plan: CensusPlan,
    reporter: Reporter,
) -> TaskCensuses:
    """What the labels of all targets hold; what several are derived from is looked at once.

    Args:
        targets: of the task, by name.
        volumes: all volumes of the task, or of a fold.
        plan: from which indexes.
        reporter: gets a line for a label that is too much to look at.

    Raises:
        ChunkError: a label chunk cannot be read.
    """
    known: dict[tuple[object, ...], list[LabelCensus]] = {}
    found: TaskCensuses = {}
    for name, target in targets.items():
        source = target.derive or name
        rules = source, target.ignored, target.foreground
        if rules not in known:
            known[rules] = list(label_censuses(name, target, volumes, plan))
            for volume in volumes:
                if source in volume.labels and not _is_cheap(volume, source):
                    reporter.say(
                        f"{volume.key}.{source}: too many chunks to look at before training"
                    )
        found[name] = known[rules]
    return found


def find_misfits(
    targets: Mapping[str, AnyTarget], censuses: TaskCensuses
) -> list[tuple[str, Misfit]]:
    """What is wrong with the labels of a task, each with its key, and once."""
    found: dict[tuple[str, Misfit], None] = {}  # whatever is derived from a label
    for name, labels in censuses.items():
        found |= dict.fromkeys(_misfits(name, targets[name], labels))
    return list(found)


def _misfits(
    name: str, target: AnyTarget, labels: Sequence[LabelCensus]
) -> Iterator[tuple[str, Misfit]]:
    """What is wrong with the labels of a target, each with its key; with each, then with all."""
    is_wrong = False
    for label in labels:
        for misfit in target.misfits(label.census):
            placed = _placed(label, misfit)
            if placed is not None:
                is_wrong |= placed.is_fatal
                yield label.key, placed
    classes = [target.classes_of(label.census) for label in labels]
    if is_wrong or not labels or not all(label.census.is_whole for label in labels):
        return
    known = [counts for counts in classes if counts is not None]
    if len(known) == len(classes):
        voxels = {key: sum(counts[key] for counts in known) for key in known[0]}
        for misfit in target.class_misfits(voxels, [label.census for label in labels]):
            yield f"dataset_config.targets.{name}", misfit


def _placed(label: LabelCensus, misfit: Misfit) -> Misfit | None:
    """The same with volume and place; None where the value is not in the region that is used."""
    where = f"volume {label.volume.name}"
    if misfit.value is None:
        return Misfit(f"{where} {misfit.found}", misfit.remedy, misfit.is_fatal)
    place, is_all = find_value(label, misfit.value)
    if place is None and is_all:
        return None
    at = "" if place is None else f", at (z, y, x) = {place}"
    return Misfit(f"{where} {misfit.found}{at}".replace("\n", " "), misfit.remedy, misfit.is_fatal)


def label_censuses(
    name: str,
    target: AnyTarget,
    volumes: Sequence[TaskVolume],
    plan: CensusPlan,
) -> Iterator[LabelCensus]:
    """What the labels of a target hold, or those that it is derived from, in all volumes."""
    source = target.derive or name
    having = [volume for volume in volumes if source in volume.labels and _is_cheap(volume, source)]
    labels = [_wanted(volume, source, target, plan) for volume in having]
    with closing(plan.indexer.indexes(labels)) as indexes:
        for volume, wanted, index in zip(having, labels, indexes, strict=True):
            yield LabelCensus(volume, source, census_of(wanted, index, target), index)


def _is_cheap(volume: TaskVolume, name: str) -> bool:
    """Whether what is stored of a label is few, or known without a question for each chunk."""
    label = volume.labels[name]
    units = prod(-(-n // u) for n, u in zip(volume.region.shape, label.storage_unit, strict=True))
    is_listed = label.listing is not None and label.fill_value == 0
    return is_listed or units <= MOST_UNITS or label is volume.ref


def _wanted(volume: TaskVolume, source: str, target: AnyTarget, plan: CensusPlan) -> Wanted:
    """The index that finds the patches, if it is one of this label; else one of large cells."""
    label, region, criteria = volume.labels[source], volume.region, plan.criteria
    rules = target.ignored, target.annotated
    # Figures are of whole bricks: those of a part need an index of its own.
    has_figures = label.channels > 1 or label.dtype.kind == "f"
    is_part = has_figures and region != label.box and not plan.is_divided
    finds_patches = label is volume.ref and rules == (volume.ref_ignored, volume.ref_foreground)
    if is_part or not finds_patches:
        frame = region if is_part else label.box
        return Wanted(label, frame, region, triple([LONGEST_CELL] * 3), *rules, MOST_VOXELS)
    grid = patch_grid(label.box, region, criteria.patch, criteria.stride, criteria.cell)
    most = None if plan.reads_reference else MOST_VOXELS
    return Wanted(label, grid.frame, region, criteria.cell, *rules, most)


def census_of(wanted: Wanted, index: LabelIndex, target: AnyTarget) -> Census:
    """What a label holds in the cells that a region touches, by its index."""
    label, cells = wanted.label, index.plan.cells(wanted.within)
    box, counts, figures = index.plan.voxels(cells), index.totals(cells), index.figures
    together = counts.pop(UNCOUNTED, 0)
    seen = _voxels_in(index.units, label.storage_unit, box)
    nonzero = sum(counts.values()) + figures.voxels + figures.ignored
    counts[0] = counts.get(0, 0) + max(seen - nonzero - figures.unknown, 0)
    if index.is_whole and float(label.fill_value).is_integer():
        fill = int(label.fill_value)
        counts[fill] = counts.get(fill, 0) + box.voxels - seen
    return Census(
        label.dtype,
        label.channels,
        {value: count for value, count in counts.items() if count},
        together,
        figures,
        index.is_whole,
        knows_foreground=wanted.foreground is not None and target.comparison == wanted.foreground,
    )


def _voxels_in(units: np.ndarray, unit: Shape, region: Box) -> int:
    """How many voxels of a region lie in storage units (n, 3)."""
    low = units * unit
    high = np.minimum(low + unit, region.end)
    lengths = np.maximum(high - np.maximum(low, region.origin), 0)
    return int(lengths.prod(axis=1).sum())


def find_value(label: LabelCensus, value: float) -> tuple[Shape | None, bool]:
    """Where a value is stored, the first place that is met, and whether all places were looked at."""
    array, region = label.volume.labels[label.name], label.volume.region
    cells = _cells_with(label.index, int(value), region) if value == int(value) else []
    blocks = array.stored_blocks(within=region)
    parts = (part for block in blocks for part in cut_block(block, array.chunks))
    boxes = cells or list(islice(parts, MOST_PLACES + 1))
    for box in boxes[:MOST_PLACES]:
        inside = box.intersect(region)
        places = np.argwhere((array.read(inside) == value).all(axis=0)) if inside.voxels else []
        if len(places):
            z, y, x = (places[0] + inside.origin).tolist()
            return (z, y, x), False
    # Cells at the border of a region hold voxels outside of it, too; those inside come first.
    return None, value != 0 and (bool(cells) or len(boxes) <= MOST_PLACES)


def _cells_with(index: LabelIndex, value: int, region: Box) -> list[Box]:
    """Some cells that hold a value, those that lie inside of the region first; [] if uncounted."""
    plan, found = index.plan, list[Box]()
    for cells in index.bricks.values():
        if value not in cells.counts:
            continue
        places = np.argwhere(cells.counts[value]) + cells.box.origin
        low = places * plan.cell + plan.region.origin
        high = np.minimum(low + plan.cell, plan.region.end)
        touching = ((low < region.end) & (high > region.origin)).all(axis=1)
        inside = touching & ((low >= region.origin) & (high <= region.end)).all(axis=1)
        chosen = np.flatnonzero(inside if inside.any() else touching)[:MOST_PLACES]
        boxes = [Box.between(low[n].tolist(), high[n].tolist()) for n in chosen]
        if inside.any():
            return boxes
        found += boxes
    return found


def report_split(
    task: Task, volumes: Sequence[TaskVolume], patches: PatchList, reporter: Reporter
) -> None:
    """Report what a new training with these patches would: no split, or classes that are not learnt."""
    try:
        split = split_patches(task.tr_params, volumes, patches)
    except TaskError as error:
        reporter.say(f"note: {error}")
    else:
        report_unlearnt(task, volumes, split.train, reporter)


def report_unlearnt(
    task: Task,
    volumes: Sequence[TaskVolume],
    rows: np.ndarray,
    reporter: Reporter,
    indexer: Indexer | None = None,
) -> None:
    """Report the classes that no training patch holds, though labels do.

    Args:
        task: with its patch size.
        volumes: all volumes of the task, or of a fold.
        rows: (n, 4) training patches: volume number, z, y, x.
        reporter: gets a line for each target with such classes.
        indexer: as for `report_misfits`.
    """
    plan = CensusPlan.of(task, indexer or Indexer.of(task, reporter), reads_reference=True)
    criteria = plan.criteria
    # As far as a patch is shifted at random.
    reach = np.array(criteria.stride) // 2 if task.tr_params.patch_jitter else np.zeros(3, int)
    for name, target in task.dataset_config.targets.items():
        if target.derive is not None:
            continue
        held: dict[str, int] = {}
        learnt: set[str] = set()
        numbers = {volume.name: number for number, volume in enumerate(volumes)}
        for label in label_censuses(name, target, volumes, plan):
            number = numbers[label.volume.name]
            origins = rows[rows[:, 0] == number, 1:]
            patches = origins - reach, origins + reach + criteria.patch
            for value, count in label.census.counts.items():
                found = target.class_of(value) if value else None
                if found is not None:
                    held[found] = held.get(found, 0) + count
                    if found not in learnt and _touches(label.index, value, patches):
                        learnt.add(found)
        lost = [f"{key} ({count:,} voxels)" for key, count in held.items() if key not in learnt]
        if lost:
            found = f"no training patch holds {', '.join(lost)}, which is not learnt"
            remedy = 'change tr_val_split, the "split" of the volumes, or the thresholds of patches'
            reporter.say(f"note: dataset_config.targets.{name}: {found}; {remedy}")


def _touches(index: LabelIndex, value: int, patches: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether a cell with a value lies in a box: those of (n, 3) low and high corners."""
    low, high = patches
    start, cell = np.array(index.plan.region.origin), np.array(index.plan.cell)
    for cells in index.bricks.values():
        if value in cells.counts:
            places = np.argwhere(cells.counts[value]) + cells.box.origin
            steps = max(len(places) // MOST_CELLS, 1)
            for place in (start + places[::steps] * cell).tolist():
                if ((place < high) & (place + cell > low)).all(axis=1).any():
                    return True
    return False
