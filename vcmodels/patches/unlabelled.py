"""Which patches of a volume without labels are worth looking at: those that show something.

Nothing says where the object is, so this is about what is certainly of no use: chunks that are not
stored, which a listing tells, and patches without contrast, such as air or the padding of a mosaic,
which a small cube in their middle tells.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod

import numpy as np

from vcmodels.geometry.boxes import Box, triple
from vcmodels.patches.density import CandidateGrid
from vcmodels.volumes import Volume

MOST = 4096
"""Patches of a volume: of more, as many are taken by chance. A shift moves each by half a stride."""
PROBE = 16
"""Voxels of the cube that is read of each, along each axis: at most 8 chunks."""
LEAST_CONTRAST = 0.1
"""Of the median of those that have any: the least deviation of a patch that shows something."""
READ_AT_ONCE = 8


def worth_seeing(inputs: Sequence[Volume], grid: CandidateGrid) -> np.ndarray:
    """Flat numbers (n,) int64, ascending, of the candidates of a grid that show something.

    Args:
        inputs: the arrays of the volume.
        grid: of its candidates.

    Raises:
        ChunkError: a chunk cannot be read.
    """
    places = np.flatnonzero(stored_places(inputs, grid))
    if len(places) > MOST:
        draw = np.random.Generator(np.random.Philox(key=[0, len(places)]))
        places = np.sort(draw.choice(places, MOST, replace=False))
    boxes = [_probe(triple(origin), grid) for origin in grid.rows(places).tolist()]
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:  # a server takes its time
        found = np.array(list(pool.map(partial(_contrast, inputs), boxes)), np.float64)
    shown = found[found > 0]
    least = LEAST_CONTRAST * np.median(shown) if len(shown) else np.inf
    return places[(found > 0) & (found >= least)].astype(np.int64)


def stored_places(inputs: Sequence[Volume], grid: CandidateGrid) -> np.ndarray:
    """(n,) bool per candidate of a grid: whether any stored chunk of any input touches it."""
    found = np.zeros(grid.counts, bool)
    for volume in inputs:
        for block in volume.stored_blocks(grid.region):
            found[_touched(block, grid)] = True
    return found.reshape(prod(grid.counts))


def _touched(block: Box, grid: CandidateGrid) -> tuple[slice, ...]:
    """Along each axis, the candidates that share voxels with a block."""
    axes = zip(grid.origins, grid.patch, block.origin, block.end, strict=True)
    return tuple(
        slice(
            int(np.searchsorted(origins, low - patch, side="right")),
            int(np.searchsorted(origins, high, side="left")),
        )
        for origins, patch, low, high in axes
    )


def _probe(origin: tuple[int, int, int], grid: CandidateGrid) -> Box:
    """A cube in the middle of a candidate, inside of the region."""
    patch = Box(origin, grid.patch).intersect(grid.region)
    size = triple(min(PROBE, n) for n in patch.shape)
    middle = triple(
        o + (n - s) // 2 for o, n, s in zip(patch.origin, patch.shape, size, strict=True)
    )
    return Box(middle, size)


def _contrast(inputs: Sequence[Volume], box: Box) -> float:
    """The largest standard deviation in a box of any channel; values that are not finite are left out."""
    deviations = [0.0]
    for volume in inputs:
        for channel in volume.read(box):
            values = channel[np.isfinite(channel)].astype(np.float64)
            deviations += [float(values.std())] if len(values) else []
    return max(deviations)
