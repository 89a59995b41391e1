"""Watersheds by Kruskal's algorithm on voxels, slow and obvious, and by basins in one block."""

from collections import defaultdict

import numpy as np

from vcmodels.fields.forest import RegionEdges, cut
from vcmodels.fields.watershed import NOTHING, SEED, BlockBasins


def voxel_edges(heights):
    """(larger height, smaller height, lower voxel, axis, other voxel), in order."""
    numbers = np.arange(heights.size).reshape(heights.shape)
    found = []
    for axis in range(3):
        here, beyond = (
            tuple(s if a == axis else slice(None) for a in range(3))
            for s in (slice(None, -1), slice(1, None))
        )
        rows = zip(
            heights[here].flat, heights[beyond].flat, numbers[here].flat, numbers[beyond].flat,
            strict=True,
        )  # fmt: skip
        found += [
            (max(h, k), min(h, k), int(u), axis, int(v))
            for h, k, u, v in rows
            if NOTHING not in (h, k)
        ]
    return sorted(found)


def kruskal(heights, joins):
    """(Z, Y, X): a number for each tree; 0 where there is nothing."""
    low, tree = heights.reshape(-1).tolist(), list(range(heights.size))
    members = defaultdict(list, {n: [n] for n in tree})
    for saddle, _, u, _, v in voxel_edges(heights):
        a, b = tree[u], tree[v]
        if a == b:
            continue
        a, b = (a, b) if low[a] <= low[b] else (b, a)
        if joins(saddle, low[b]):
            for n in members[b]:
                tree[n] = a
            members[a] += members.pop(b)
    return np.where(heights == NOTHING, 0, np.array(tree).reshape(heights.shape) + 1)


def watershed(heights, joins):
    """The same by basins and the graph of them."""
    found = BlockBasins.of(np.pad(heights, 1, constant_values=NOTHING))
    layered = ((0, 1),) * 3
    edges = RegionEdges.between(
        np.pad(found.pieces.astype(np.int64), layered),
        np.pad(heights, layered),
        np.arange(heights.size).reshape(heights.shape),
    )
    lowest = np.concatenate([[NOTHING], found.lowest])
    trees = cut(edges.forest(len(found.lowest)), lowest, joins)
    return trees[found.pieces]


def in_order(ids):
    """The same partition, numbered by first voxels; 0 stays."""
    distinct, first, back = np.unique(ids, return_index=True, return_inverse=True)
    numbers = np.zeros(len(distinct), np.uint64)
    order = [n for n in np.argsort(first) if distinct[n] != 0]
    numbers[order] = np.arange(1, len(order) + 1)
    return numbers[back].reshape(ids.shape)


def same_partition(found, expected):
    np.testing.assert_array_equal(in_order(found), in_order(expected))


def without_unseeded(trees, heights):
    """Trees without a seed become 0."""
    seeded = np.unique(trees[heights == SEED])
    return np.where(np.isin(trees, seeded), trees, 0)
