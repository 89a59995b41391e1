"""How often stored codes and stored labels meet: all that figures of whole numbers depend on.

A block of a prediction in 8 bits and its label hold a few hundred different pairs. They are decoded
and measured once each, with their numbers in the place of `valid` (`Metric.takes_counts`).
"""

from math import prod
from typing import NamedTuple

import numpy as np

PIECE = 1 << 18
"""Voxels that are counted at once: what lies between fits into the cache, and a float32 counts them."""
LANES = 8
"""Slices in turns, each with a table of its own. Neighbours in a slice mostly have the same code:
increments of one place would wait for each other (1.6 ns for each voxel instead of 0.7)."""
MOST_ROWS = 256 // LANES
"""Labels that 8 tables in 16 bits have room for."""
MOST_SPAN = 1 << 16
"""Between the least and the largest label; ids of more are of instances."""
SAMPLE = 4096
STRANGER = 255
"""Stands for a label that is not among those that are expected."""


class SliceCounts(NamedTuple):
    """The pairs that occur in a block, and in each of its slices."""

    codes: np.ndarray
    """(n,) uint8."""
    labels: np.ndarray
    """(n,) of the type of the label."""
    counts: np.ndarray
    """(slices, n) int64: how many voxels of each slice have both."""


def slice_counts(
    prediction: np.ndarray, label: np.ndarray, valid: np.ndarray | None = None
) -> SliceCounts | None:
    """How often each code of a prediction meets each value of its label, in each slice.

    Slices are those along the first axis.

    Args:
        prediction: uint8.
        label: whole numbers or bool, of the same shape.
        valid: bool, of the same shape: which voxels count; all when None.

    Returns:
        The pairs in ascending order of label and code; None where that is no way to count: the
        prediction is of another type, or the label has more than 31 values.
    """
    if prediction.dtype != np.uint8 or label.dtype.kind not in "iub":
        return None
    found = _numbered(np.ascontiguousarray(label).ravel())
    if found is None:
        return None
    values, ids = found
    slices, area, kinds = len(label), prod(label.shape[1:]), len(values)
    if valid is not None:
        ids = np.where(valid.ravel(), ids, ids.dtype.type(kinds))
    codes, ids = (flat.reshape(slices, area) for flat in (np.ascontiguousarray(prediction), ids))
    tables = np.zeros((slices, kinds + (valid is not None), 256), np.int64)
    for start in range(0, slices, LANES):
        lanes = slice(start, start + LANES)
        for at in range(0, area, PIECE // LANES):
            piece = lanes, slice(at, at + PIECE // LANES)
            tables[lanes] += _tables(codes[piece], ids[piece], tables.shape[1])
    every = tables[:, :kinds].reshape(slices, kinds * 256)
    places = np.flatnonzero(every.sum(axis=0))
    counts = every.take(places, axis=1)
    return SliceCounts((places % 256).astype(np.uint8), values[places // 256], counts)


def _tables(codes: np.ndarray, ids: np.ndarray, rows: int) -> np.ndarray:
    """(lanes, rows, 256) int64: how often each id meets each code in each lane; both (lanes, n) uint8."""
    import cv2  # not above: it takes 0.1 s, and no other command needs it

    lanes = len(codes)
    first_rows = np.arange(lanes, dtype=np.uint8)[:, None] * np.uint8(rows)
    # Interleaved, a code and its row are one number of 16 bits. Turned, those of all lanes alternate.
    pairs = cv2.merge([codes, ids + first_rows]).view(np.uint16)[..., 0]
    size = lanes * rows * 256
    found = cv2.calcHist(
        [cv2.transpose(pairs).reshape(1, -1)], [0], None, [size], [0.0, float(size)]
    )
    return found.reshape(lanes, rows, 256).astype(np.int64)


def _numbered(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The values of a label, some of which may be absent, and each voxel's number among them.

    (m,) of the type of the label, and (n,) uint8; None for more than 31 values.
    """
    if not labels.size:
        return labels, np.zeros(0, np.uint8)
    low, high = int(labels.min()), int(labels.max())
    if low >= 0 and high < MOST_ROWS - 1:
        return np.arange(high + 1).astype(labels.dtype), labels.astype(np.uint8, copy=False)
    if high - low >= MOST_SPAN:
        return None
    first = 0 if labels.dtype == np.uint8 else low
    places = labels if labels.dtype == np.uint8 else labels.astype(np.int64) - low
    # Mostly a few thousand voxels show all values; counting them all takes 10 times as long.
    present = np.unique(places[:: 1 + len(places) // SAMPLE])
    if len(present) >= MOST_ROWS:
        return None
    numbers = _positions(places, present, high - first + 1)
    if numbers.max() == STRANGER:
        present = np.bincount(places).nonzero()[0]
        if len(present) >= MOST_ROWS:
            return None
        numbers = _positions(places, present, high - first + 1)
    return (present + first).astype(labels.dtype), numbers


def _positions(places: np.ndarray, present: np.ndarray, span: int) -> np.ndarray:
    """Where in `present` each place is, as uint8; STRANGER where it is not, or beyond."""
    table = np.full(max(span, 256), STRANGER, np.uint8)
    table[present] = np.arange(len(present))
    if places.dtype == np.uint8:
        import cv2

        return cv2.LUT(places[None], table)[0]
    return table[places]
