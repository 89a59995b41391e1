import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import label as skimage_label

from vcmodels.fields.components import BlockComponents, ComponentJoin, label_components
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import blocks_of

RANKS = {6: 1, 18: 2, 26: 3}


def cut_anyhow(box, rng, least=1):
    """Boxes that cover a box, by cutting it at random: no grid."""
    axes = [a for a in range(3) if box.shape[a] >= 2 * least]
    if not axes or rng.random() < 0.15:
        return [box]
    axis = rng.choice(axes)
    at = box.origin[axis] + rng.randint(least, box.shape[axis] - least)
    halves = box.cut(axis, box.origin[axis], at), box.cut(axis, at, box.end[axis])
    return [piece for half in halves for piece in cut_anyhow(half, rng, least)]


def label_blockwise(mask, blocks, connectivity, corner=(0, 0, 0)):
    """The components of a mask whose first voxel is at `corner`, joined from blocks."""
    padded, join, placed = np.pad(mask, (0, 1)), ComponentJoin(), []
    for block in blocks:
        z, y, x = block.slices(Box(corner, mask.shape))
        grown = padded[z.start : z.stop + 1, y.start : y.stop + 1, x.start : x.stop + 1]
        found = BlockComponents.of(grown, connectivity)
        placed.append(((z, y, x), found.own, join.add(block.origin, block.shape, found.pack())))
    numbers, whole = join.numbers(), np.zeros(mask.shape, np.int64)
    for where, ids, offset in placed:
        whole[where] = numbers[np.where(ids, ids + offset, 0)]
    return whole, int(numbers.max())


def assert_same_partition(found, wanted):
    pairs = np.unique(np.stack([found.ravel(), wanted.ravel()]), axis=1)
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]
    np.testing.assert_array_equal(found == 0, wanted == 0)


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    block=st.tuples(*[st.integers(1, 5)] * 3),
    share=st.sampled_from([0.15, 0.3, 0.6, 0.9]),
    connectivity=st.sampled_from([6, 18, 26]),
    seed=st.integers(0, 1000),
)
def test_components_of_blocks_in_any_order_are_those_of_the_whole(
    shape, block, share, connectivity, seed
):
    mask = np.random.default_rng(seed).random(shape) < share
    blocks = list(blocks_of(Box((0, 0, 0), shape), block))
    random.Random(seed).shuffle(blocks)
    found, count = label_blockwise(mask, blocks, connectivity)
    wanted = skimage_label(mask, connectivity=RANKS[connectivity])
    assert_same_partition(found, wanted)
    assert count == wanted.max()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 11)] * 3),
    corner=st.tuples(*[st.integers(-7, 7)] * 3),
    connectivity=st.sampled_from([6, 18, 26]),
    seed=st.integers(0, 1000),
)
def test_the_blocks_need_not_be_a_grid(shape, corner, connectivity, seed):
    mask = np.random.default_rng(seed).random(shape) < 0.3
    blocks = cut_anyhow(Box(corner, shape), random.Random(seed))
    random.Random(seed + 1).shuffle(blocks)
    found, _ = label_blockwise(mask, blocks, connectivity, corner)
    assert_same_partition(found, skimage_label(mask, connectivity=RANKS[connectivity]))


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_a_diagonal_of_voxels_is_one_component_only_by_corners(connectivity):
    mask = np.zeros((7, 7, 7), bool)
    mask[np.arange(7), np.arange(7), np.arange(7)] = True
    blocks = blocks_of(Box((0, 0, 0), mask.shape), (1, 1, 1))
    assert label_blockwise(mask, blocks, connectivity)[1] == (1 if connectivity == 26 else 7)


def test_a_snake_through_all_blocks_is_one_component():
    mask = np.zeros((5, 9, 12), bool)
    mask[2, ::2] = True
    mask[2, 1::4, -1] = mask[2, 3::4, 0] = True
    blocks = blocks_of(Box((0, 0, 0), mask.shape), (2, 2, 3))
    assert label_blockwise(mask, blocks, 6)[1] == ndimage.label(mask)[1] == 1


def test_many_components_in_a_block_are_kept_apart():
    mask = np.zeros((9, 40, 40), bool)
    mask[::2, ::2, ::2] = True  # more than 256, and than a byte holds
    blocks = list(blocks_of(Box((0, 0, 0), mask.shape), (9, 40, 24)))
    assert label_blockwise(mask, blocks, 6)[1] == 5 * 20 * 20


def test_an_empty_mask_and_an_empty_block_have_no_component():
    nothing = BlockComponents.of(np.zeros((1, 1, 1), bool), 26)
    join = ComponentJoin()
    assert join.add((0, 0, 0), (0, 0, 0), nothing.pack()) == 0
    assert join.numbers().tolist() == [0]
    assert label_components(np.zeros((2, 3, 4), bool), 6)[1] == 0


def test_the_packed_faces_of_a_smooth_block_are_small():
    field = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(65, 65, 65)), 4)
    packed = BlockComponents.of(field > 0, 6).pack()
    assert 100 < packed["faces"].nbytes < 6 * 64 * 64 / 4
