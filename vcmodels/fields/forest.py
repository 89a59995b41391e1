"""Forests of a graph of regions: what a watershed is once the basins are known.

See `watershed` for the order of edges. The forest of the graph, cut by markers or by depths, gives
the partition of the voxels: contracting what is connected in the forest takes nothing from it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vcmodels.fields.merging import merged_in_turn
from vcmodels.fields.union import Union
from vcmodels.fields.watershed import SEED


@dataclass(frozen=True)
class RegionEdges:
    """For each pair of regions that touch, the least of the edges between them."""

    first: np.ndarray
    """(n,) int64: the lower number of each pair; pairs are in order and differ."""
    second: np.ndarray
    """(n,) int64: the higher number."""
    upper: np.ndarray
    """(n,) int32: the larger height of the edge."""
    lower: np.ndarray
    """(n,) int32: the smaller height."""
    place: np.ndarray
    """(n,) int64: three times the number of the edge's lower voxel in the volume, plus its axis."""

    def __len__(self) -> int:
        return len(self.first)

    @classmethod
    def least(
        cls,
        first: np.ndarray,
        second: np.ndarray,
        upper: np.ndarray,
        lower: np.ndarray,
        place: np.ndarray,
    ) -> "RegionEdges":
        """Of any edges, (m,) each as the fields are, the least for each pair."""
        code = first * (second.max(initial=0) + 1) + second
        order = np.argsort(code, kind="stable")
        for values in (upper.astype(np.int64) << 32 | lower, place):
            order = order[_is_least(code[order], values[order])]
        return cls(first[order], second[order], upper[order], lower[order], place[order])

    @classmethod
    def between(cls, regions: np.ndarray, heights: np.ndarray, places: np.ndarray) -> "RegionEdges":
        """The edges of a block.

        Args:
            regions: (Z + 1, Y + 1, X + 1) int64: the block and the layer that follows it; 0 is none.
            heights: the same shape, int32.
            places: (Z, Y, X) int64: the numbers of the voxels in the volume.
        """
        found: list[tuple[np.ndarray, ...]] = []
        here = (slice(-1),) * 3
        for axis in range(3):
            next_ = tuple(slice(1, None) if a == axis else slice(-1) for a in range(3))
            a, b = regions[here], regions[next_]
            touches = (a != b) & (a != 0) & (b != 0)
            a, b = a[touches], b[touches]
            h, k = heights[here][touches], heights[next_][touches]
            place = 3 * places[touches] + axis
            found.append(
                (np.minimum(a, b), np.maximum(a, b), np.maximum(h, k), np.minimum(h, k), place)
            )
        return cls.least(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def forest(self, count: int) -> "RegionEdges":
        """The edges of the minimum spanning forest, the least first.

        Args:
            count: regions are numbered from 1 to this.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import minimum_spanning_tree

        order = np.lexsort((self.place, self.lower, self.upper))
        rank = np.empty(len(order), np.float64)
        rank[order] = np.arange(1, len(order) + 1)
        graph = coo_array((rank, (self.first, self.second)), (count + 1, count + 1)).tocsr()
        kept = order[np.sort(minimum_spanning_tree(graph).data).astype(np.int64) - 1]
        return RegionEdges(*(column[kept] for column in self.columns))

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        return self.first, self.second, self.upper, self.lower, self.place

    @classmethod
    def merged(cls, several: Iterable["RegionEdges"]) -> "RegionEdges":
        """The least of several, held twice at most."""
        none = np.empty(0, np.int64)
        nothing = cls(none, none, none.astype(np.int32), none.astype(np.int32), none)
        return merged_in_turn(nothing, several, cls._together)

    @classmethod
    def _together(cls, several: Sequence["RegionEdges"]) -> "RegionEdges":
        columns = zip(*(one.columns for one in several), strict=True)
        return cls.least(*map(np.concatenate, columns))


def _is_least(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(n,) bool: which values are the least of their group; groups lie together."""
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    if not len(starts):
        return np.ones(0, bool)
    least = np.minimum.reduceat(values, starts)
    return values == np.repeat(least, np.diff(starts, append=len(group)))


Joins = Callable[[int, int], bool]
"""Whether two trees are joined: by the height of the saddle between them and the higher of their two
minima."""


def by_depth(depth: int) -> Joins:
    """Trees that each hold one minimum of some depth, or the deepest of a component.

    A minimum is dropped where the saddle to a lower one is less than `depth` above it, which is its
    *dynamics* (Grimaud 1992, "A new measure of contrast: the dynamics"; Najman and Schmitt 1996).
    """
    return lambda saddle, minimum: saddle - minimum < depth


def by_seeds(saddle: int, minimum: int) -> bool:
    """Trees that each hold one seed: what is connected at the height `SEED`; or none."""
    return minimum > SEED or saddle == SEED


def cut(forest: RegionEdges, lowest: np.ndarray, joins: Joins) -> np.ndarray:
    """Trees of a forest, from all its edges that join, the least first.

    Args:
        forest: from `RegionEdges.forest`.
        lowest: (count + 1,) int: the height of the minimum of each region; `[0]` is of none.
        joins: which trees are joined.

    Returns:
        (count + 1,) int64: the region that has the minimum of the tree of each; `[0]` is 0.
    """
    trees, low = Union(len(lowest) - 1), lowest.tolist()
    steps = zip(forest.first.tolist(), forest.second.tolist(), forest.upper.tolist(), strict=True)
    for a, b, saddle in steps:
        deep, shallow = trees.find(a), trees.find(b)
        if low[deep] > low[shallow]:
            deep, shallow = shallow, deep
        if joins(saddle, low[shallow]):
            trees.join(deep, shallow)
    return trees.roots()
