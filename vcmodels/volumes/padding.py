"""Padding at the borders of a volume, as an index map: no voxel is read twice or from outside."""

from typing import Literal

import numpy as np

Pad = Literal["reflect", "edge", "zero"]


def source_indices(
    start: int, length: int, low: int, high: int, pad: Pad
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Where the values at `start ... start + length` come from, along one axis.

    The same as `numpy.pad` of the voxels `low ... high` by as much as needed, then cut.

    Args:
        start: first position wanted; may lie outside.
        length: number of positions.
        low: first position that exists.
        high: first position past those that exist; more than `low`.
        pad: what stands outside: the mirror image, the last voxel, or nothing (-1).

    Returns:
        (length,) int64 in [low, high), or low - 1 where "zero" stands outside.
    """
    assert high > low, "nothing to pad from"
    wanted = np.arange(start, start + length, dtype=np.int64)
    if pad == "edge":
        return np.clip(wanted, low, high - 1)
    if pad == "zero":
        return np.where((wanted >= low) & (wanted < high), wanted, low - 1)
    period = 2 * (high - low - 1)
    if period == 0:
        return np.full(length, low, dtype=np.int64)
    phase = (wanted - low) % period
    return low + np.minimum(phase, period - phase)
