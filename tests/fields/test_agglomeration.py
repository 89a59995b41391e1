"""Agglomeration against waterz, mwatershed and the obvious."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.forests import in_order, same_partition
from vcmodels.fields.agglomeration import (
    FULL,
    PairSums,
    join_by_mean,
    join_by_mutex,
    join_small,
)

SHAPE = (6, 9, 8)


def blocks_of_voxels():
    """(Z, Y, X) int64: regions of 2 x 3 x 2 voxels."""
    z, y, x = np.indices(SHAPE) // np.array([2, 3, 2]).reshape(3, 1, 1, 1)
    return (z * 3 + y) * 4 + x + 1


def near_sums(regions, affinities):
    """Of affinities to the voxel before, along each axis."""
    sums = []
    for axis, values in enumerate(affinities):
        here, before = (
            tuple(s if a == axis else slice(None) for a in range(3))
            for s in (slice(1, None), slice(None, -1))
        )
        whole = np.rint(values * FULL).astype(np.int64)
        sums.append(PairSums.between(regions[here], regions[before], whole[here]))
    return PairSums.merged(sums)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 40), cuts=st.integers(1, 4))
def test_sums_are_those_of_a_dictionary_however_they_are_merged(seed, count, cuts):
    rng = np.random.default_rng(seed)
    pairs = rng.integers(1, 7, (2, count))
    pairs = pairs[:, pairs[0] != pairs[1]]
    values = rng.integers(0, FULL + 1, pairs.shape[1])
    expected: dict = {}
    for (a, b), value in zip(np.sort(pairs, 0).T.tolist(), values.tolist(), strict=True):
        total, n = expected.get((a, b), (0, 0))
        expected[a, b] = (total + value, n + 1)
    parts = zip(
        *(np.array_split(column, cuts) for column in (*pairs, values, np.ones_like(values))),
        strict=True,
    )
    found = PairSums.merged(PairSums.added(*part) for part in parts)
    columns = (found.first, found.second, found.total, found.count)
    rows = [tuple(row) for row in np.stack(columns, 1).tolist()]
    assert rows == [(*key, *expected[key]) for key in sorted(expected)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", [0.5, 0.55, 0.6])
def test_mean_joins_what_waterz_joins(seed, threshold, capfd):
    import waterz

    rng = np.random.default_rng(seed)
    regions = blocks_of_voxels()
    affinities = rng.random((3, *SHAPE)).astype(np.float32)
    # Apart from each other, as means of few pairs are not: no two of one height.
    affinities = 0.5 * affinities + 0.5 * rng.random((3, 3, 3, 4)).repeat(2, 1).repeat(3, 2).repeat(
        2, 3
    ).astype(np.float32)
    affinities = np.rint(affinities * FULL).astype(np.float32) / FULL
    objects = join_by_mean(near_sums(regions, affinities), int(regions.max()), threshold)
    expected = next(
        waterz.agglomerate(
            affinities,
            [1 - threshold],
            fragments=regions.astype(np.uint64),
            scoring_function="OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>",
        )
    )
    capfd.readouterr()
    assert 1 < len(np.unique(expected)) < regions.max()
    same_partition(objects[regions], expected)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), bias=st.floats(0.5, 1.5))
def test_mutex_is_that_of_a_plain_loop(seed, bias):
    rng = np.random.default_rng(seed)
    count = 9

    def some(density):
        first, second = np.triu_indices(count, 1)
        kept = rng.random(len(first)) < density
        n = rng.integers(1, 9, kept.sum())
        return PairSums(first[kept] + 1, second[kept] + 1, rng.integers(0, n * FULL + 1), n)

    near, far = some(0.4), some(0.6)
    edges = [(m, True, a, b) for m, a, b in zip(near.means(), near.first, near.second, strict=True)]
    edges += [
        (bias - m, False, a, b)
        for m, a, b in zip(far.means(), far.first, far.second, strict=True)
        if bias > m
    ]
    objects, forbidden = list(range(count + 1)), set()
    for _, attracts, a, b in sorted(edges, key=lambda e: -e[0]):
        a, b = objects[a], objects[b]
        pairs = {(objects[u], objects[v]) for u, v in forbidden}
        if a == b or (a, b) in pairs or (b, a) in pairs:
            continue
        if attracts:
            objects = [a if n == b else n for n in objects]
        else:
            forbidden.add((a, b))
    found = join_by_mutex(near, far, count, bias)
    np.testing.assert_array_equal(in_order(found), in_order(np.array(objects)))


def test_small_objects_join_the_neighbour_of_the_largest_mean():
    pairs = PairSums.added(
        np.array([1, 2, 3]), np.array([2, 3, 4]), np.array([10, 30, 20]), np.array([1, 2, 1])
    )
    voxels = np.array([0, 9, 2, 9, 1, 1])
    joined = join_small(pairs, np.arange(6), voxels, 3)
    # 4 goes to 3; 2 likes 3 (15) better than 1 (10); 5 touches nothing.
    assert joined.tolist() == [0, 1, 2, 2, 2, 5]
    assert join_small(pairs, np.arange(6), voxels, 1).tolist() == list(range(6))
