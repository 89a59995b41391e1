"""How many voxels each class of a label has, for losses that weigh rare classes up."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from vcmodels.data.label_index import cut_block
from vcmodels.data.volumes import TaskVolume
from vcmodels.geometry.boxes import Box
from vcmodels.targets import MulticlassTarget
from vcmodels.volumes import Volume


def count_classes(
    volumes: Sequence[TaskVolume],
    regions: Sequence[Box | None],
    name: str,
    target: MulticlassTarget,
) -> np.ndarray:
    """Voxels of each class over the training regions; those that do not count are left out.

    Args:
        volumes: all volumes of the task; those without this label add nothing.
        regions: per volume, the part to count; None for nothing.
        name: of the target, which is its label's name in the volumes.
        target: says which stored values are which class, and which are ignored.

    Returns:
        (C,) int64.

    Raises:
        LabelError: a stored value that is no class and is not ignored.
        ChunkError: a label chunk cannot be read.
    """
    total = Counter[float]()
    for volume, region in zip(volumes, regions, strict=True):
        if region is not None and name in volume.labels:
            total.update(count_values(volume.labels[name], region))
    values = np.array(list(total))
    if (values == values.astype(np.int64)).all():
        values = values.astype(np.int64)
    counts = np.array([total[value] for value in total], np.int64)
    index, valid = target.read_label(values.reshape(1, 1, 1, -1))
    classes, counted = index.ravel().astype(np.int64), valid.ravel()
    found = np.zeros(target.channels, np.int64)
    np.add.at(found, classes[counted], counts[counted])
    return found


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
