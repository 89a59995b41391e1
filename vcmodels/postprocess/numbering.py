"""The ids of objects: by their first voxels, so that blocks and their order do not show."""

import numpy as np

from vcmodels.geometry.boxes import Box

NOWHERE = np.iinfo(np.int64).max
"""The place of the first voxel of what has none."""


def first_voxels(ids: np.ndarray, count: int, box: Box, within: Box) -> np.ndarray:
    """Where each object of a block begins.

    Args:
        ids: (Z, Y, X) integers from 0 to `count`; 0 is no object.
        count: how many objects there may be.
        box: of the block.
        within: the volume that is walked through, x fastest and z slowest.

    Returns:
        (count,) int64: for 1 .. count the number of the first voxel in `within`; `NOWHERE` for
        those without a voxel.
    """
    firsts = np.full(count + 1, NOWHERE, np.int64)
    flat = ids.reshape(-1)
    starts = run_starts(flat)
    # From the last to the first, so that the first voxel of each is written last.
    backwards = starts[::-1]
    firsts[flat[backwards]] = backwards
    found = firsts[1:]
    is_there = found != NOWHERE
    z, y, x = np.unravel_index(found[is_there], ids.shape)
    oz, oy, ox = (o - w for o, w in zip(box.origin, within.origin, strict=True))
    found[is_there] = ((z + oz) * within.shape[1] + y + oy) * within.shape[2] + x + ox
    return found


def run_starts(flat: np.ndarray) -> np.ndarray:
    """(r,) int64: where runs of equal values begin in (n,) values; far fewer than there are voxels."""
    if not flat.size:
        return np.zeros(0, np.int64)
    return np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])


def voxel_counts(ids: np.ndarray, count: int) -> np.ndarray:
    """(count,) int64: how many of some ids, (Z, Y, X) from 0 to `count`, are 1, 2, ..."""
    flat = ids.reshape(-1)
    starts = run_starts(flat)
    lengths = np.diff(starts, append=flat.size)
    return np.bincount(flat[starts], lengths, count + 1)[1:].astype(np.int64)


def numbered(objects: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """Ids from 1 on, in the order of first voxels.

    Args:
        objects: (n,) int64: of each piece, the object it belongs to; 0 is none.
        firsts: (n,) int64: where each piece begins, as from `first_voxels`.

    Returns:
        (n,) uint64: the id of each piece; 0 for those of no object.
    """
    first = np.full(int(objects.max(initial=0)) + 1, NOWHERE, np.int64)
    np.minimum.at(first, objects, firsts)
    first[0] = NOWHERE
    ids = np.zeros(len(first), np.uint64)
    order = np.argsort(first, kind="stable")
    there = order[first[order] != NOWHERE]
    ids[there] = np.arange(1, len(there) + 1, dtype=np.uint64)
    return ids[objects]
