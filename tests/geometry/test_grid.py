import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import (
    BoxSet,
    PatchGrid,
    aligned,
    column_edges,
    columns,
    live_patches,
    slabs,
    tiles,
)

shapes = st.tuples(*[st.integers(1, 30)] * 3)
patches = st.tuples(*[st.integers(1, 9)] * 3)
overlaps = st.tuples(*[st.floats(0, 0.9)] * 3)


@st.composite
def grids_and_boxes(draw):
    grid = PatchGrid.covering(draw(shapes), draw(patches), draw(overlaps))
    start = [draw(st.integers(0, n - 1)) for n in grid.extent]
    end = [draw(st.integers(s + 1, n)) for s, n in zip(start, grid.extent, strict=True)]
    return grid, Box.between(start, end)


def all_indices(grid):
    return itertools.product(*map(range, grid.shape))


@given(grids_and_boxes())
def test_steps_are_those_between_neighbours(case):
    grid, _ = case
    for axis, (origins, patch) in enumerate(zip(grid.origins, grid.patch, strict=True)):
        spans = [set(range(o, o + patch)) for o in origins]
        shared = [len(a & b) for a, b in itertools.pairwise(spans)]
        steps = [b - a for a, b in itertools.pairwise(origins)]
        assert grid.most_shared(axis) == max(shared, default=0)
        assert grid.longest_step(axis) == (max(steps) if steps else patch)


@given(grids_and_boxes())
def test_touching_finds_exactly_the_patches_that_share_a_voxel(case):
    grid, box = case
    found = set(itertools.product(*grid.touching(box)))
    expected = {
        i for i in all_indices(grid) if Box(grid.origin(i), grid.patch).intersect(box).voxels
    }
    assert found == expected


@given(grids_and_boxes())
def test_the_hull_is_what_those_patches_read(case):
    grid, box = case
    boxes = [Box(grid.origin(i), grid.patch) for i in itertools.product(*grid.touching(box))]
    ends = np.minimum(np.max([b.end for b in boxes], axis=0), grid.extent)
    assert grid.hull(box) == Box.between(
        np.min([b.origin for b in boxes], axis=0).tolist(), ends.tolist()
    )


@given(grids_and_boxes(), st.data())
def test_live_patches_are_those_that_touch_a_wanted_box(case, data):
    grid, box = case
    cut = data.draw(st.tuples(*[st.integers(1, 6)] * 3))
    wanted = BoxSet.of(
        Box(o, cut).intersect(box)
        for o in itertools.product(
            *(range(0, n, 2 * c) for n, c in zip(grid.extent, cut, strict=True))
        )
    )
    ranges = grid.touching(box)
    live = live_patches(grid, ranges, wanted)
    for place, index in zip(np.ndindex(live.shape), itertools.product(*ranges), strict=True):
        patch = Box(grid.origin(index), grid.patch)
        assert live[place] == any(patch.intersect(w).voxels for w in wanted)


@pytest.mark.parametrize("overlap", [(0, 0, 1.0), (-0.1, 0, 0)])
def test_an_overlap_outside_its_range_is_refused(overlap):
    with pytest.raises(ValueError, match="overlap must lie in"):
        PatchGrid.covering((9, 9, 9), (4, 4, 4), overlap)


@given(grids_and_boxes(), st.tuples(*[st.integers(1, 8)] * 3), st.data())
def test_columns_of_whole_blocks_cover_the_region_once(case, block, data):
    grid, region = case
    span = aligned(region, block, grid.extent)
    assert span.contains(region)
    budget = data.draw(st.integers(1, 400))
    edges = column_edges(grid, region, block, lambda y, x: y * x, budget)
    assert edges[0] * edges[1] <= max(budget, block[1] * block[2])
    count = np.zeros(grid.extent, int)
    for column in columns(span, edges):
        assert all(o % b == 0 for o, b in zip(column.origin, block, strict=True))
        for slab in slabs(column, block[0]):
            assert slab.origin[0] // block[0] == (slab.end[0] - 1) // block[0]
            count[slab.slices()] += 1
    np.testing.assert_array_equal(count[span.slices()], 1)
    assert count.sum() == span.voxels


def test_a_volume_that_fits_is_one_column_and_predicts_nothing_twice():
    grid = PatchGrid.covering((50, 200, 300), (16, 16, 16), (0.25,) * 3)
    region = Box((0, 0, 0), grid.extent)
    assert column_edges(grid, region, (16, 32, 32), lambda y, x: y * x, 10**6) == (224, 320)
    y, x = column_edges(grid, region, (16, 32, 32), lambda y, x: y * x, 35_000)
    assert y * x <= 35_000


def test_boxes_are_clipped_and_empty_ones_dropped():
    boxes = BoxSet.of(
        [Box((4, 0, 0), (4, 5, 6)), Box((0, 0, 0), (4, 5, 6)), Box((1, 1, 1), (0, 2, 2))]
    )
    assert len(boxes) == 2
    assert list(boxes.within(Box((3, 2, 1), (2, 9, 2)))) == [
        Box((3, 2, 1), (1, 3, 2)),
        Box((4, 2, 1), (1, 3, 2)),
    ]
    assert len(boxes.within(Box((9, 0, 0), (1, 1, 1)))) == 0


@given(grids_and_boxes(), st.tuples(*[st.integers(1, 8)] * 3))
def test_tiles_cover_a_box_once_and_each_lies_in_one_tile_of_the_grid(case, shape):
    _, box = case
    count = np.zeros(box.end, int)
    for part, whole in zip(tiles(box, shape), tiles(box, shape, whole=True), strict=True):
        count[part.slices()] += 1
        assert whole.contains(part)
        assert whole.shape == shape
        assert all(o % n == 0 for o, n in zip(whole.origin, shape, strict=True))
    assert (count[box.slices()] == 1).all()
    assert count.sum() == box.voxels
