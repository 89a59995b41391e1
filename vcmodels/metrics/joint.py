"""How often stored codes and stored labels meet: all that figures of whole numbers depend on.

A block of a prediction in 8 bits and its label hold a few hundred different pairs. They are decoded
and measured once each, with their numbers in the place of `valid` (`Metric.takes_counts`).
"""

from functools import cache
from typing import NamedTuple

import numpy as np

PIECE = 1 << 18
"""Voxels that are counted at once: what lies between fits into the cache, and a float32 counts them."""
LANES = 8
"""Tables in turns. Neighbours mostly have the same code: increments of one place would wait for each
other (0.5 ns for each voxel instead of 1.3)."""
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

    Slices are those along the first axis. Several are counted at once, each with rows of its own in
    the table.

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
    codes, rows = np.ascontiguousarray(prediction).ravel(), len(values) + 1
    if valid is not None:
        ids = np.where(valid.ravel(), ids, ids.dtype.type(len(values)))
    area, together = max(label[:1].size, 1), MOST_ROWS // rows
    tables = np.zeros((len(label), rows, 256), np.int64)
    for start in range(0, len(label), together):
        piece = slice(start * area, (start + together) * area)
        slices = len(tables[start : start + together])
        first_rows = np.arange(slices, dtype=np.uint8)[:, None] * np.uint8(rows)
        moved = (ids[piece].reshape(slices, -1) + first_rows).ravel()
        table = _table(codes[piece], moved, slices * rows)
        tables[start : start + together] = table.reshape(slices, rows, 256)
    of_label, of_code = np.nonzero(tables[:, :-1].any(axis=0))
    counts = tables[:, of_label, of_code]
    return SliceCounts(of_code.astype(np.uint8), values[of_label], counts)


def _table(codes: np.ndarray, ids: np.ndarray, rows: int) -> np.ndarray:
    """(rows, 256) int64: how often each id meets each code, both uint8."""
    table = np.zeros((rows, 256), np.int64)
    for start in range(0, len(codes), PIECE):
        piece = slice(start, start + PIECE)
        table += _count_bytes(codes[piece], ids[piece], rows)
    return table


def _count_bytes(codes: np.ndarray, ids: np.ndarray, rows: int) -> np.ndarray:
    """`_table` of a piece."""
    import cv2  # not above: it takes 0.1 s, and no other command needs it

    # A row of an image for each voxel: interleaved, the two bytes are one number of 16 bits.
    pairs = cv2.merge([codes[None], (ids + _lanes(rows)[: len(ids)])[None]]).view(np.uint16)[..., 0]
    size = LANES * rows * 256
    found = cv2.calcHist([pairs], [0], None, [size], [0.0, float(size)])
    return found.reshape(LANES, rows, 256).sum(0, dtype=np.int64)


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


@cache
def _lanes(rows: int) -> np.ndarray:
    """(PIECE,) uint8: the first row of the table that each voxel is counted in."""
    return np.resize(np.arange(LANES, dtype=np.uint8) * np.uint8(rows), PIECE)
