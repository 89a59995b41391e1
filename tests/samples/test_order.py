import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcmodels.geometry.boxes import Box
from vcmodels.samples.order import DrawOrder, FreeJitter, Stream, generator


def test_each_cycle_is_another_permutation():
    order = DrawOrder(3, np.full(50, 0.3))
    cycles = [[order.row(c * 50 + i) for i in range(50)] for c in range(3)]
    assert all(sorted(cycle) == list(range(50)) for cycle in cycles)
    assert len({tuple(cycle) for cycle in cycles}) == 3


@given(weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_rows_come_floor_or_ceil_of_their_share_in_each_cycle(weights, seed):
    order = DrawOrder(seed, np.array(weights))
    n, shares = len(weights), np.array(weights) / sum(weights) * len(weights)
    for cycle in range(2):
        found = Counter(order.row(cycle * n + i) for i in range(n))
        for row, share in enumerate(shares):
            assert np.floor(share - 1e-6) <= found[row] <= np.ceil(share + 1e-6)


@pytest.mark.parametrize("weights", [np.ones(9), np.arange(1.0, 10.0)], ids=["equal", "unequal"])
def test_order_depends_on_seed_and_draw_alone(weights):
    order = DrawOrder(1, weights)
    draws = [40, 3, 17, 4, 41, 0]
    wanted = [order.row(d) for d in draws]
    other = pickle.loads(pickle.dumps(DrawOrder(1, weights)))
    assert [other.row(d) for d in reversed(draws)] == wanted[::-1]
    assert [DrawOrder(2, weights).row(d) for d in range(60)] != [order.row(d) for d in range(60)]


def test_streams_and_draws_are_independent():
    found = {generator(s, n, t).integers(2**60) for s in range(3) for n in range(3) for t in Stream}
    assert len(found) == 36


@given(seed=st.integers(0, 500))
def test_jitter_stays_in_reach_and_region(seed):
    region = Box((3, 4, 5), (20, 9, 6))
    box = Box((4, 4, 5), (8, 8, 8))  # longer than the region along x
    moved = FreeJitter((4, 4, 4)).moved(0, box, region, np.random.default_rng(seed))
    assert moved.shape == box.shape
    assert moved.origin[2] == 5
    assert abs(moved.origin[0] - 4) <= 4
    assert region.contains(moved.intersect(Box((0, 0, 0), (99, 99, 11))))


def test_jitter_reaches_the_last_voxels():
    region, box = Box((0, 0, 0), (30, 8, 8)), Box((20, 0, 0), (8, 8, 8))
    jitter, random = FreeJitter((4, 4, 4)), [generator(0, n, Stream.JITTER) for n in range(200)]
    ends = {jitter.moved(0, box, region, rng).end[0] for rng in random}
    assert max(ends) == 30
    assert min(ends) == 24
