"""What is measured of objects: sums, least and most over their voxels, which add over blocks.

All sums are of integers, so that they do not depend on blocks or their order. A block is gone through
in runs: voxels next to each other along x that have one id (and one class). There are far fewer runs
than voxels, and sums over a run are closed formulas.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vcmodels.geometry.boxes import Box
from vcmodels.metrics.base import BlockPart

STEPS = 65535
"""Into how many a probability is divided: those stored in 8 and 16 bits are met exactly."""
FEW = 1 << 18
"""Rows that are held before they are joined, 30 MB."""
NO_VALUE = np.iinfo(np.int64).min
ADDED = ("voxels", "moments", "codes", "counted")
"""Of the fields of rows, those that add."""


def block_rows(
    ids: np.ndarray, box: Box, codes: np.ndarray | None = None, classes: np.ndarray | None = None
) -> BlockPart:
    """What there is of each object in a block.

    Args:
        ids: (Z, Y, X) of any integer dtype; 0 and below is no object.
        box: of the block.
        codes: (Z, Y, X) int64 of at most 33 bits; `NO_VALUE` where there is none.
        classes: (Z, Y, X) integers.

    Returns:
        A row for each object, by id: `ids` (n,) uint64; `voxels` (n,) int64; `moments` (n, 3) int64,
        the sums of z, y and x in the volume; `low` and `high` (n, 3) int64, the bounding box, the end
        not included. With codes their sum `codes` and over how many voxels, `counted`, (n,) int64.
        With classes a row for each object and class: `class_ids`, `class_values`, `class_voxels`.
    """
    starts = _starts(ids, *(() if classes is None else (classes,)))
    lengths = np.diff(starts, append=ids.size)
    is_object = ids.reshape(-1)[starts] > 0
    sums = {} if codes is None else _run_sums(codes.reshape(-1), starts)
    starts, lengths = starts[is_object], lengths[is_object]
    z, y, x = (
        at + o for at, o in zip(np.unravel_index(starts, ids.shape), box.origin, strict=True)
    )
    rows: BlockPart = {
        "ids": ids.reshape(-1)[starts].astype(np.uint64),
        "voxels": lengths,
        # The sum of x, x + 1, ... over a run.
        "moments": np.stack([z * lengths, y * lengths, (2 * x + lengths - 1) * lengths // 2], 1),
        "low": np.stack([z, y, x], 1),
        "high": np.stack([z + 1, y + 1, x + lengths], 1),
        **{name: values[is_object] for name, values in sums.items()},
    }
    if classes is None:
        return _grouped(rows)
    return {**_grouped(rows), **_class_rows(rows, classes.reshape(-1)[starts])}


def joined_rows(parts: Iterable[Mapping[str, np.ndarray]]) -> BlockPart:
    """The rows of a volume from those of its blocks; in any order, the same, and held twice at most."""
    held: Sequence[Mapping[str, np.ndarray]] = ()
    waiting: list[Mapping[str, np.ndarray]] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += 1 + _length(part)  # a block without objects takes memory as well
        if count > max(sum(map(_length, held)), FEW):
            held, waiting, count = [_together([*held, *waiting])], [], 0
    return _together([*held, *waiting])


def _length(rows: Mapping[str, np.ndarray]) -> int:
    return len(rows["ids"]) + len(rows.get("class_ids", ()))


def _together(parts: Sequence[Mapping[str, np.ndarray]]) -> BlockPart:
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    pairs = {name: rows.pop(name) for name in list(rows) if name.startswith("class_")}
    if pairs:
        pairs = _by_class(pairs["class_ids"], pairs["class_values"], pairs["class_voxels"])
    return {**_grouped(rows), **pairs}


def majority(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """The class that most voxels of each object have, the smallest of several: (n,) int64."""
    ids, values, voxels = (rows[f"class_{name}"] for name in ("ids", "values", "voxels"))
    order = np.lexsort((values, -voxels, ids))
    _, first = np.unique(ids[order], return_index=True)
    return values[order][first]


def probability_codes(values: np.ndarray) -> np.ndarray:
    """Probabilities as whole numbers of steps, int64; `NO_VALUE` for NaN.

    Raises:
        ValueError: one is outside of 0 to 1.
    """
    known = values[~np.isnan(values)]
    if known.size and not (known.min() >= 0 and known.max() <= 1):
        raise ValueError(f"values from {known.min():g} to {known.max():g}")
    codes = np.rint(np.nan_to_num(values.astype(np.float64)) * STEPS).astype(np.int64)
    return np.where(np.isnan(values), NO_VALUE, codes)


def _starts(*arrays: np.ndarray) -> np.ndarray:
    """Where runs begin, in arrays of one shape that were laid flat: (r,) int64."""
    is_start = np.zeros(arrays[0].shape, bool)
    is_start[..., :1] = True
    for array in arrays:
        is_start[..., 1:] |= array[..., 1:] != array[..., :-1]
    return np.flatnonzero(is_start)


def _run_sums(codes: np.ndarray, starts: np.ndarray) -> dict[str, np.ndarray]:
    if not len(starts):
        return {name: np.empty(0, np.int64) for name in ("codes", "counted")}
    known = codes != NO_VALUE
    return {
        "codes": np.add.reduceat(np.where(known, codes, 0), starts),
        "counted": np.add.reduceat(known, starts, dtype=np.int64),
    }


def _grouped(rows: Mapping[str, np.ndarray]) -> BlockPart:
    """One row for each id, in order."""
    order = np.argsort(rows["ids"], kind="stable")
    ids, first = np.unique(rows["ids"][order], return_index=True)
    found: BlockPart = {"ids": ids}
    for name, values in rows.items():
        if name == "ids":
            continue
        join = np.add if name in ADDED else np.minimum if name == "low" else np.maximum
        found[name] = join.reduceat(values[order], first, axis=0) if len(first) else values
    return found


def _class_rows(rows: Mapping[str, np.ndarray], classes: np.ndarray) -> BlockPart:
    return _by_class(rows["ids"], classes.astype(np.int64), rows["voxels"])


def _by_class(ids: np.ndarray, values: np.ndarray, voxels: np.ndarray) -> BlockPart:
    """One row for each id and class, in order."""
    order = np.lexsort((values, ids))
    ids, values, voxels = ids[order], values[order], voxels[order]
    first = np.flatnonzero(
        np.concatenate([[True], (ids[1:] != ids[:-1]) | (values[1:] != values[:-1])])[: len(ids)]
    )
    sums = np.add.reduceat(voxels, first) if len(first) else voxels
    return {"class_ids": ids[first], "class_values": values[first], "class_voxels": sums}
