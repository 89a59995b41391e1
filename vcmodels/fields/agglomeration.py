"""Regions that are joined by what is said of the pairs of voxels between them.

What is known of two regions is the sum and the number of the values of their pairs, both whole
numbers: they add up to the same in any order, so that blocks do not show.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np

from vcmodels.fields.merging import merged_in_turn
from vcmodels.fields.union import Union

FULL = 65535
"""What stands for a value of 1."""


@dataclass(frozen=True)
class PairSums:
    """For each pair of regions the sum and the number of what was measured between them."""

    first: np.ndarray
    """(n,) int64: the lower number of each pair; pairs are in order and differ."""
    second: np.ndarray
    """(n,) int64: the higher number."""
    total: np.ndarray
    """(n,) int64: sums of values from 0 to `FULL`."""
    count: np.ndarray
    """(n,) int64, 1 or more."""

    def __len__(self) -> int:
        return len(self.first)

    @classmethod
    def nothing(cls) -> "PairSums":
        return cls(*np.empty((4, 0), np.int64))

    @classmethod
    def added(
        cls, first: np.ndarray, second: np.ndarray, total: np.ndarray, count: np.ndarray
    ) -> "PairSums":
        """From (m,) int64 each: pairs in any order and either direction, as often as they come."""
        from scipy.sparse import coo_array

        low, high = np.minimum(first, second), np.maximum(first, second)
        names, numbers = np.unique(np.concatenate([low, high]), return_inverse=True)
        at, shape = (numbers[: len(low)], numbers[len(low) :]), (len(names),) * 2
        totals = coo_array((total, at), shape).tocsr()  # adds what has the same place
        counts = coo_array((count, at), shape).tocsr()
        rows = np.repeat(np.arange(len(names)), np.diff(counts.indptr))
        totals.sort_indices()
        counts.sort_indices()
        return cls(names[rows], names[counts.indices], totals.data, counts.data)

    @classmethod
    def between(cls, one: np.ndarray, other: np.ndarray, values: np.ndarray) -> "PairSums":
        """Of pairs of voxels: their regions and values, (Z, Y, X) int64 each; region 0 is none."""
        differs = (one != other) & (one != 0) & (other != 0)
        values = values[differs]
        return cls.added(one[differs], other[differs], values, np.ones_like(values))

    @classmethod
    def merged(cls, several: Iterable["PairSums"]) -> "PairSums":
        """The sums of several, held twice at most."""
        return merged_in_turn(cls.nothing(), several, cls._together)

    @classmethod
    def _together(cls, several: Sequence["PairSums"]) -> "PairSums":
        columns = zip(*((p.first, p.second, p.total, p.count) for p in several), strict=True)
        return cls.added(*map(np.concatenate, columns))

    def means(self) -> np.ndarray:
        """(n,) float64 from 0 to 1."""
        return self.total / (self.count * FULL)


def join_by_mean(pairs: PairSums, regions: int, threshold: float) -> np.ndarray:
    """Join the two regions of the largest mean, again and again, while it is at least `threshold`.

    The mean is over all pairs of voxels between two objects: average linkage on a graph, as
    `waterz` has it with `OneMinus<MeanAffinity>` (Funke et al. 2019, IEEE TPAMI 41(7)). Which of two
    equal means comes first depends on the numbers of the regions alone.

    Args:
        pairs: between regions 1 .. `regions`.
        regions: how many there are.
        threshold: from 0 to 1.

    Returns:
        (regions + 1,) int64: the lowest region of the object of each region; `[0]` is 0.
    """
    objects = Union(regions)
    _join_best(pairs, objects, lambda a, b, mean: mean >= threshold)
    return objects.lowest()


def join_small(pairs: PairSums, objects: np.ndarray, voxels: np.ndarray, least: int) -> np.ndarray:
    """Join objects that are too small to the neighbour of the largest mean, that of all pairs first.

    One without a neighbour stays.

    Args:
        pairs: between regions 1 .. n.
        objects: (n + 1,) int64: the region that stands for the object of each; `[0]` is 0.
        voxels: (n + 1,) int64: the size of each region; `[0]` is of no object.
        least: smaller objects are joined.

    Returns:
        (n + 1,) int64: the lowest region of the object of each region; `[0]` is 0.
    """
    sizes = np.zeros(len(objects), np.int64)
    np.add.at(sizes, objects, voxels)
    size, merged = sizes.tolist(), Union(len(objects) - 1)

    def is_small(a: int, b: int, mean: float) -> bool:
        del mean
        return size[a] < least or size[b] < least

    def add(kept: int, gone: int) -> None:
        size[kept] += size[gone]

    first, second = objects[pairs.first], objects[pairs.second]
    differ = first != second
    columns = (first, second, pairs.total, pairs.count)
    _join_best(PairSums.added(*(c[differ] for c in columns)), merged, is_small, add)
    joined = merged.roots()[objects]
    low = np.full(len(objects), len(objects), np.int64)
    np.minimum.at(low, joined, np.arange(len(objects)))
    return low[joined]


def _nothing(kept: int, gone: int) -> None:
    del kept, gone


def _join_best(
    pairs: PairSums,
    objects: Union,
    may_join: Callable[[int, int, float], bool],
    on_join: Callable[[int, int], None] = _nothing,
) -> None:
    """Join the two objects of the largest mean that may be joined, again and again.

    Args:
        pairs: between objects.
        objects: each one by itself; what is joined afterwards.
        may_join: by two objects and the mean between them; what it refuses it goes on refusing.
        on_join: gets the object that stays and the one that goes.
    """
    around = _neighbours(pairs, len(objects) - 1)
    queue = [
        (-total / (count * FULL), a, b)
        for a, known in enumerate(around)
        for b, (total, count) in known.items()
        if a < b and may_join(a, b, total / (count * FULL))
    ]
    heapify(queue)
    while queue:
        score, a, b = heappop(queue)
        total, count = around[a].get(b, (0, 1))
        is_old = b not in around[a] or -total / (count * FULL) != score
        if is_old or not may_join(a, b, -score):
            continue
        kept, gone = (a, b) if len(around[a]) >= len(around[b]) else (b, a)
        objects.join(kept, gone)
        on_join(kept, gone)
        for other in _absorb(around, kept, gone):
            total, count = around[kept][other]
            mean, (low, high) = total / (count * FULL), sorted((kept, other))
            if may_join(low, high, mean):
                heappush(queue, (-mean, low, high))


def _neighbours(pairs: PairSums, regions: int) -> list[dict[int, tuple[int, int]]]:
    """Of each region the sums and numbers of those that it touches."""
    around: list[dict[int, tuple[int, int]]] = [{} for _ in range(regions + 1)]
    columns = (pairs.first, pairs.second, pairs.total, pairs.count)
    for a, b, total, count in zip(*(column.tolist() for column in columns), strict=True):
        around[a][b] = around[b][a] = (total, count)
    return around


def _absorb(around: list[dict[int, tuple[int, int]]], kept: int, gone: int) -> list[int]:
    """Give the pairs of one object to another; returns those whose sums with it have changed."""
    del around[kept][gone], around[gone][kept]
    for other, (total, count) in around[gone].items():
        before = around[kept].get(other, (0, 0))
        around[kept][other] = around[other][kept] = (before[0] + total, before[1] + count)
        del around[other][gone]
    changed, around[gone] = list(around[gone]), {}
    return changed


def join_by_mutex(near: PairSums, far: PairSums, regions: int, bias: float) -> np.ndarray:
    """Mutex watershed of a graph: the strongest opinions first, those against last for ever.

    A mean of `near` attracts by itself, one of `far` repels by `bias` minus itself; in the order of
    their strength two objects are joined unless that is forbidden, or are forbidden to be joined
    (Wolf et al. 2018, "The mutex watershed", ECCV; arXiv:1904.12654). Which of two equal strengths
    comes first depends on the numbers of the regions alone.

    Args:
        near: between regions 1 .. `regions` that touch.
        far: between regions that are some offset apart.
        regions: how many there are.
        bias: from 0 to 2.

    Returns:
        (regions + 1,) int64: the lowest region of the object of each region; `[0]` is 0.
    """
    from mwatershed import cluster

    attraction, repulsion = near.means(), bias - far.means()
    repels = repulsion > 0
    first = np.concatenate([near.first, far.first[repels]])
    second = np.concatenate([near.second, far.second[repels]])
    attracts = np.arange(len(first)) < len(near)
    strength = np.concatenate([attraction, repulsion[repels]])
    order = np.lexsort((attracts, second, first, -strength))
    columns = (column[order].tolist() for column in (attracts, first, second))
    objects = Union(regions)
    for region, other in cluster(list(zip(*columns, strict=True))):
        objects.join(other, region)
    return objects.lowest()
