"""How many voxels each class of a label has, for losses that weigh rare classes up."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np

from vcmodels.data.task_volume import TaskVolume
from vcmodels.geometry.boxes import Box, cut_block
from vcmodels.patches.index import LONGEST_CELL
from vcmodels.patches.index_build import Indexer, Wanted
from vcmodels.targets import MulticlassTarget
from vcmodels.volumes import Volume

CELL = (LONGEST_CELL, LONGEST_CELL, LONGEST_CELL)


def count_classes(
    volumes: Sequence[TaskVolume],
    regions: Sequence[Box | None],
    name: str,
    target: MulticlassTarget,
    indexer: Indexer | None = None,
) -> np.ndarray:
    """Voxels of each class over the training regions; those that do not count are left out.

    With an indexer, the label index answers for all whole cells and only the rims of the regions
    are read; it is the index that finds the patches, when those are of the same label.

    Args:
        volumes: all volumes of the task; those without this label add nothing.
        regions: per volume, the part to count; None for nothing.
        name: of the target, which is its label's name in the volumes.
        target: says which stored values are which class, and which are ignored.
        indexer: gives label indexes; when None, all voxels are read.

    Returns:
        (C,) int64.

    Raises:
        LabelError: a stored value that is no class and is not ignored.
        ChunkError: a label chunk cannot be read.
    """
    total = Counter[float]()
    for volume, region in zip(volumes, regions, strict=True):
        if region is not None and name in volume.labels:
            label = volume.labels[name]
            if indexer is None:
                total.update(count_values(label, region))
            else:
                total.update(_count_indexed(label, region, target, indexer))
    values = np.array(list(total))
    if (values == values.astype(np.int64)).all():
        values = values.astype(np.int64)
    counts = np.array([total[value] for value in total], np.int64)
    index, valid = target.read_label(values.reshape(1, 1, 1, -1))
    classes, counted = index.ravel().astype(np.int64), valid.ravel()
    found = np.zeros(target.channels, np.int64)
    np.add.at(found, classes[counted], counts[counted])
    return found


def _count_indexed(
    label: Volume, region: Box, target: MulticlassTarget, indexer: Indexer
) -> Counter[float]:
    """As `count_values`: whole cells from the index, the rim from the voxels."""
    if (
        label.fill_value in target.ignored
    ):  # to the index, what is not stored and what is 0 are the same
        return count_values(label, region)
    wanted = Wanted(label, label.box, region, CELL, target.ignored)
    with closing(indexer.indexes([wanted])) as indexes:
        index = next(indexes)
    if index.values is None:
        return count_values(label, region)
    cells = index.plan.cells(region)
    inner = index.plan.voxels(cells)
    for axis in range(3):  # leave out the layers of cells that the region cuts
        low = cells.origin[axis] + (inner.origin[axis] < region.origin[axis])
        high = cells.end[axis] - (inner.end[axis] > region.end[axis])
        cells = cells.cut(axis, low, high)
    core = index.plan.voxels(cells)
    found = Counter[float](index.totals(cells))
    found[0.0] += core.voxels - found.total()
    for rim in _around(core, region):
        found.update(count_values(label, rim))
    return found


def _around(core: Box, region: Box) -> Iterator[Box]:
    """What of a region lies outside of a box in it, in at most six boxes; all of it if empty."""
    if not core.voxels:
        yield region
        return
    rest = region
    for axis in range(3):
        low, high = core.origin[axis], core.end[axis]
        before = rest.cut(axis, rest.origin[axis], low)
        behind = rest.cut(axis, high, rest.end[axis])
        yield from (rim for rim in (before, behind) if rim.voxels)
        rest = rest.cut(axis, low, high)


def count_values(volume: Volume, region: Box) -> Counter[float]:
    """Voxels of each stored value in a region; NaN is left out. Absent chunks are not read."""
    found = Counter[float]()
    seen = 0
    for block in volume.stored_blocks(within=region):
        for part in cut_block(block, volume.chunks):
            box = part.intersect(region)
            if box.voxels:
                stored = volume.read(box)
                if stored.dtype.kind == "f":
                    stored = stored[~np.isnan(stored)]
                values, counts = np.unique(stored, return_counts=True)
                found.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
                seen += box.voxels
    if seen < region.voxels:
        found[volume.fill_value] += region.voxels - seen
    return found
