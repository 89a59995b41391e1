"""Watersheds of integer landscapes, as forests of least edges; blocks do not show.

Voxels are the nodes of a graph, neighbours by a face its edges. An edge (u, v) between heights has
the key (the larger height, the smaller height, the lower voxel, the axis), so that no two are alike
and the minimum spanning forest is one. Cut into trees that each hold one marker it is the watershed
of the landscape (Cousty et al. 2009, "Watershed cuts: minimum spanning forests and the drop of water
principle", IEEE TPAMI 31(8)).

Of the edges of one voxel, the least leads to its lowest neighbour. A voxel that has a neighbour as
low as itself or lower follows that edge, which belongs to the forest whatever the markers; the trees
of all these steps are *basins*, each with one minimum. What is left is the forest of the graph of
basins, which has a node for each of them and the least edge for each pair.
"""

from dataclasses import dataclass

import numpy as np

NOTHING = np.iinfo(np.int32).max
"""The height of what is not part of the landscape: no edge leads there."""
SEED = 0
"""The height of seeds, below all else."""


@dataclass(frozen=True)
class BlockBasins:
    """The basins of a block; those that go on in other blocks are cut into pieces."""

    pieces: np.ndarray
    """(Z, Y, X) uint32: the piece of each voxel, from 1 on; 0 is no part of the landscape."""
    lowest: np.ndarray
    """(n,) int32: for piece 1 .. n the height of the voxel at which its steps end."""
    exits: np.ndarray
    """(k,) uint32: the pieces whose steps end at a voxel out of the block."""
    ends: np.ndarray
    """(k,) int64: that voxel, as its number in the block grown by one voxel on each side."""

    @classmethod
    def of(cls, heights: np.ndarray) -> "BlockBasins":
        """The basins of a block.

        Args:
            heights: (Z + 2, Y + 2, X + 2) int32, 0 or more: the block and one voxel on each side,
                `NOTHING` where there is no landscape.
        """
        after = _followed(_lower_neighbours(heights))
        is_end = np.zeros(heights.size, bool)
        inside = (slice(1, -1),) * 3
        own = after.reshape(heights.shape)[inside]
        there = heights[inside] != NOTHING
        is_end[own[there]] = True
        ends = np.flatnonzero(is_end)
        numbers = np.zeros(heights.size, np.uint32)
        numbers[ends] = np.arange(1, len(ends) + 1, dtype=np.uint32)
        is_out = _is_margin(ends, heights.shape)
        return cls(
            pieces=np.where(there, numbers[own], np.uint32(0)),
            lowest=heights.reshape(-1)[ends],
            exits=numbers[ends[is_out]],
            ends=ends[is_out],
        )


def _lower_neighbours(heights: np.ndarray) -> np.ndarray:
    """Where each voxel steps to: flat numbers; itself in the margin and where nothing is as low."""
    _, height, width = heights.shape
    strides = (height * width, width, 1)
    inside = heights[1:-1, 1:-1, 1:-1]
    lowest = inside.copy()
    steps = np.zeros(inside.shape, np.int32)
    # Of edges between equal heights the one with the lower voxel comes first, then by the axis.
    for side in (-1, 1):
        for axis in range(3):
            there = [slice(1, -1)] * 3
            there[axis] = slice(1 + side, heights.shape[axis] - 1 + side)
            beyond = heights[tuple(there)]
            is_lower = (beyond < lowest) | ((beyond == lowest) & (steps == 0))
            np.copyto(lowest, beyond, where=is_lower)
            np.copyto(steps, np.int32(side * strides[axis]), where=is_lower)
    steps[inside == NOTHING] = 0
    after = np.arange(heights.size, dtype=np.int32)
    after.reshape(heights.shape)[1:-1, 1:-1, 1:-1] += steps
    return after


def _followed(after: np.ndarray) -> np.ndarray:
    """Where the steps of each voxel end: those of a pair that step to each other, at the first."""
    here = np.arange(len(after), dtype=after.dtype)
    back = after[after]
    after = np.where((back == here) & (here < after), here, after)
    while True:
        further = after[after]
        if np.array_equal(further, after):
            return after
        after = further


def _is_margin(numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    places = np.unravel_index(numbers, shape)
    at_edge = [(at == 0) | (at == n - 1) for at, n in zip(places, shape, strict=True)]
    return np.logical_or.reduce(at_edge)
