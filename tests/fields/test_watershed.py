"""The forest of basins against Kruskal's algorithm on voxels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from tests.forests import kruskal, same_partition, watershed
from vcmodels.fields.forest import by_depth, by_seeds
from vcmodels.fields.watershed import NOTHING, SEED, BlockBasins

SHAPE = (7, 9, 8)


def landscape(seed, levels, empty=0.0):
    rng = np.random.default_rng(seed)
    heights = rng.integers(1, 1 + levels, SHAPE).astype(np.int32)
    heights[rng.random(SHAPE) < empty] = NOTHING
    return heights


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    levels=st.sampled_from([1, 2, 6, 1000]),
    depth=st.sampled_from([1, 2, 40, 400]),
    empty=st.sampled_from([0.0, 0.3]),
)
def test_trees_by_depth_are_those_of_kruskal_on_voxels(seed, levels, depth, empty):
    heights = landscape(seed, levels, empty)
    same_partition(watershed(heights, by_depth(depth)), kruskal(heights, by_depth(depth)))


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([1, 3, 1000]))
def test_trees_of_seeds_are_those_of_kruskal_on_voxels(seed, levels):
    heights = landscape(seed, levels, 0.2)
    is_seed = np.random.default_rng(seed + 1).random(SHAPE) < 0.03
    heights[is_seed & (heights != NOTHING)] = SEED
    same_partition(watershed(heights, by_seeds), kruskal(heights, by_seeds))


def test_a_smooth_landscape_is_parted_as_scikit_image_does():
    from skimage.segmentation import watershed as flooded

    shape = (24, 30, 27)
    rng = np.random.default_rng(3)
    field = gaussian_filter(rng.normal(size=shape), 3)
    ranks = np.argsort(np.argsort(field.reshape(-1))).reshape(shape) + 1
    heights = ranks.astype(np.int32)
    markers = np.zeros(shape, np.int32)
    places = rng.permutation(heights.size)[:12]
    markers.reshape(-1)[places] = np.arange(1, 13)
    heights.reshape(-1)[places] = SEED
    expected = flooded(heights, markers, connectivity=1)
    ids = watershed(heights, by_seeds)
    of_seed = np.zeros(ids.max() + 1, np.int32)
    of_seed[ids.reshape(-1)[places]] = np.arange(1, 13)
    assert np.mean(of_seed[ids] == expected) > 0.99


def test_a_basin_has_one_minimum_and_every_step_goes_down():
    heights = landscape(0, 50)
    found = BlockBasins.of(np.pad(heights, 1, constant_values=NOTHING))
    assert not len(found.exits)
    for number, low in enumerate(found.lowest, 1):
        assert heights[found.pieces == number].min() == low


@pytest.mark.parametrize("at", [(0, 4, 4), (8, 4, 4), (4, 4, 9)])
def test_what_ends_out_of_the_block_is_an_exit(at):
    heights = np.full((9, 9, 10), 5, np.int32)
    heights[at] = 1
    found = BlockBasins.of(heights)
    assert np.ravel_multi_index(at, heights.shape) in found.ends
