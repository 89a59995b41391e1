"""A shape costs nothing: memory and time go with what is stored."""

import time
import tracemalloc

import numpy as np
import pytest

from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import BoxSet, PatchGrid
from vcmodels.inference.units import UnitPlan, _clusters

SIDE = 100_000
CHUNK = (16, 16, 16)


@pytest.fixture(scope="module")
def grid():
    return PatchGrid.covering((SIDE, SIDE, SIDE), (16, 16, 16), (0.25,) * 3)


@pytest.mark.parametrize("done", [[], [Box((49_984, 48_000, 48_000), (16, 32, 48))]])
def test_the_units_of_one_stored_chunk_in_10_to_the_15_voxels(grid, done):
    stored = Box((49_984, 48_000, 48_000), (64, 32, 48))
    whole = Box((0, 0, 0), grid.extent)
    plan = UnitPlan(grid, whole, CHUNK, BoxSet.of([stored]), (7680, 5264))
    tracemalloc.start()
    begun = time.process_time()
    try:
        units = list(plan.units(done))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert time.process_time() - begun < 2
    left = {(z, y, x) for u in units for z, y, x in blocks(u.box)}
    assert left == set(blocks(stored)) - {b for one in done for b in blocks(one)}


def blocks(box):
    spans = [range(o // n, -(-e // n)) for o, e, n in zip(box.origin, box.end, CHUNK, strict=True)]
    return [(z, y, x) for z in spans[0] for y in spans[1] for x in spans[2]]


def test_clusters_hold_all_that_is_left_and_no_gap_runs_across_one():
    rng = np.random.default_rng(0)
    for gaps in ((0, 0, 0), (1, 2, 0)):
        left = rng.random((9, 10, 11)) < 0.02
        seen = np.zeros(left.shape, int)
        for low, high in _clusters(left, gaps):
            part = tuple(map(slice, low, high))
            seen[part] += 1
            for axis, gap in enumerate(gaps):
                used = np.unique(left[part].nonzero()[axis])
                assert (np.diff(used) <= gap + 1).all()
                assert used[0] == 0
                assert used[-1] == high[axis] - low[axis] - 1
        assert (seen[left] == 1).all()
