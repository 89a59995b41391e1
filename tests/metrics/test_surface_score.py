import math
import random
from collections import defaultdict
from itertools import combinations, product

import cc3d
import numpy as np
import pytest
import surface_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.metrics import variation_of_information

from tests.metrics.blocks import figures, masks
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import blocks_of
from vcmodels.metrics.surface_score import (
    OctantJoin,
    SurfaceScore,
    measure_octants,
    octants,
    topology_score,
)

METRIC = SurfaceScore(compares=("masks", "classes"), is_default=False)


class Chains:
    """The cubical complex whose vertices are the voxels of a mask, over GF(2).

    A chain is a whole number with a bit for each cell of the grid; bit 0 is the empty cell, of which
    each vertex is bounded, so that homology is reduced.
    """

    def __init__(self, mask):
        self.shape = mask.shape
        spans = [
            (corner, axes)
            for count in range(4)
            for axes in combinations(range(3), count)
            for corner in np.ndindex(mask.shape)
            if all(self._is_in(p) and mask[p] for p in self._voxels(corner, axes))
        ]
        self.cells = [[s for s in spans if len(s[1]) == k] for k in range(4)]

    def _is_in(self, place):
        return all(p < n for p, n in zip(place, self.shape, strict=True))

    def _voxels(self, corner, axes):
        for steps in product((0, 1), repeat=len(axes)):
            moved = list(corner)
            for axis, step in zip(axes, steps, strict=True):
                moved[axis] += step
            yield tuple(moved)

    def bit(self, corner, axes):
        kind = sum(1 << a for a in axes)
        return 1 << (1 + int(np.ravel_multi_index(corner, self.shape)) * 8 + kind)

    def boundary(self, corner, axes):
        if not axes:
            return 1
        faces = 0
        for axis in axes:
            rest = tuple(a for a in axes if a != axis)
            for step in (0, 1):
                moved = tuple(c + step * (a == axis) for a, c in enumerate(corner))
                faces ^= self.bit(moved, rest)
        return faces

    def boundaries(self, k):
        """A set that spans the boundaries of dimension k."""
        return [self.boundary(*cell) for cell in (self.cells[k + 1] if k < 3 else [])]

    def cycles(self, k):
        """A basis of the cycles of dimension k, by elimination with a record of what was added."""
        pivots, found = {}, []
        for cell in self.cells[k]:
            image, chain = self.boundary(*cell), self.bit(*cell)
            while image and image.bit_length() in pivots:
                other, added = pivots[image.bit_length()]
                image, chain = image ^ other, chain ^ added
            if image:
                pivots[image.bit_length()] = image, chain
            else:
                found.append(chain)
        return found


def rank(chains):
    pivots = {}
    for chain in chains:
        while chain and chain.bit_length() in pivots:
            chain ^= pivots[chain.bit_length()]
        if chain:
            pivots[chain.bit_length()] = chain
    return len(pivots)


def features(mask, k):
    chains = Chains(mask)
    return len(chains.cycles(k)) - rank(chains.boundaries(k))


def common_features(predicted, labelled, k):
    """The dimension of what the homology of both masks has in common in that of their union."""
    filled = Chains(predicted | labelled).boundaries(k)
    p, t = (Chains(mask).cycles(k) for mask in (predicted, labelled))
    each = (rank([*filled, *cycles]) - rank(filled) for cycles in (p, t))
    return sum(each) - (rank([*filled, *p, *t]) - rank(filled))


def pair_of_masks(shape, seed):
    rng = np.random.default_rng(seed)
    share = rng.choice([0.25, 0.6, 0.85, 0.93])
    labelled = rng.random(shape) < share
    return np.where(rng.random(shape) < 0.1, rng.random(shape) < share, labelled), labelled


def found_counts(predicted, labelled, block, seed=0):
    pair, joins = masks(predicted, labelled), defaultdict(OctantJoin)
    blocks = list(blocks_of(pair.box, block))
    random.Random(seed).shuffle(blocks)
    for box in blocks:
        regions = (of[0] for of in pair.regions(box.grow((1, 1, 1))))
        for number, part in measure_octants(pair.box, box, *regions):
            joins[number].add(part)
    return sum(join.counts() for join in joins.values())


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 8)] * 3),
    block=st.tuples(*[st.integers(1, 6)] * 3),
    seed=st.integers(0, 10_000),
)
def test_counts_are_the_ranks_of_homology_in_octants_whatever_the_blocks(shape, block, seed):
    predicted, labelled = pair_of_masks(shape, seed)
    wanted = np.zeros((3, 3), int)
    for octant in octants(Box((0, 0, 0), shape)):
        p, t = predicted[octant.slices()], labelled[octant.slices()]
        for k in range(3) if octant.voxels else ():
            both = common_features(p, t, k)
            if k == 1:
                most = min(features(mask, 1) for mask in (p, t, p | t))
                assert both <= most
                both = most
            wanted[k] += [both, features(p, k), features(t, k)]
    np.testing.assert_array_equal(found_counts(predicted, labelled, block, seed), wanted)


def hollow(shape=(8, 9, 10), *cavities):
    mask = np.ones(shape, bool)
    for place in cavities:
        mask[place] = False
    return mask


def test_cavities_match_where_they_share_a_voxel_of_both():
    here, there = np.s_[1:2, 1:3, 1:2], np.s_[2:3, 3:4, 3:4]
    near = np.s_[1:2, 2:4, 1:2]  # overlaps `here` by one voxel
    assert found_counts(hollow((8, 9, 10), here), hollow((8, 9, 10), near), (3, 3, 3))[
        2
    ].tolist() == [1, 1, 1]
    assert found_counts(hollow((8, 9, 10), here), hollow((8, 9, 10), there), (3, 3, 3))[
        2
    ].tolist() == [0, 1, 1]
    two = hollow((8, 9, 10), here, there)
    assert found_counts(two, two, (3, 3, 3))[2].tolist() == [2, 2, 2]


def test_pieces_match_where_the_union_joins_them():
    labelled = np.zeros((8, 9, 12), bool)
    labelled[1, 1, :2] = labelled[1, 3, :2] = labelled[3, 1, :2] = True
    predicted = labelled.copy()
    predicted[3, 1, :2] = False  # one is missed
    predicted[3, 3, 4] = True  # and one is too many
    assert found_counts(predicted, labelled, (2, 3, 4))[0].tolist() == [1, 2, 2]
    predicted[1, 2, 0] = True  # two are one
    assert found_counts(predicted, labelled, (2, 3, 4))[0].tolist() == [0, 1, 2]


def test_the_octants_of_an_odd_box_are_longer_first():
    boxes = octants(Box((-1, 0, 4), (5, 2, 1)))
    assert [box.shape for box in boxes if box.voxels] == [
        (3, 1, 1),
        (3, 1, 1),
        (2, 1, 1),
        (2, 1, 1),
    ]
    assert boxes[0].origin == (-1, 0, 4)


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ([[1, 2, 2], [3, 4, 6], [0, 1, 1]], 0.34 * 0.5 + 0.33 * 0.6),
        ([[1, 1, 1], [0, 2, 0], [0, 0, 0]], (0.34 + 0.33 * 0.5 / 2.5) / 0.67),
        ([[0, 0, 3], [0, 0, 0], [0, 0, 0]], 0),
        ([[0, 0, 0], [0, 0, 0], [0, 0, 0]], 1),
    ],
)
def test_the_topology_term_by_hand(counts, wanted):
    assert topology_score(np.array(counts)) == pytest.approx(wanted)


def sheets(seed, shape=(17, 18, 22)):
    rng = np.random.default_rng(seed)
    bend = ndimage.gaussian_filter(rng.normal(size=shape[1:]), 3) * 12
    height = np.arange(shape[0])[:, None, None] - bend
    labelled = (height % 7) < 2
    holes = ndimage.gaussian_filter(rng.normal(size=shape), 1.5) > 0.09
    return np.roll(labelled, 1, axis=0) & ~holes, labelled


# `surface-distance` imports from names that SciPy will drop.
@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")
@pytest.mark.parametrize("side", [1.0, 7.91])
@pytest.mark.parametrize("seed", [0, 1])
def test_dice_and_voi_are_those_of_the_packages_that_the_host_uses(seed, side):
    predicted, labelled = sheets(seed)
    pair = masks(predicted, labelled)
    pair.spacing = (side, side, side)
    found = figures(METRIC, pair, (5, 7, 9))
    distances = surface_distance.compute_surface_distances(labelled, predicted, (1, 1, 1))
    dice = surface_distance.compute_surface_dice_at_tolerance(distances, 2.0)
    assert found["surface_score_dice"] == pytest.approx([dice], abs=1e-9)
    ids = [cc3d.connected_components(mask, connectivity=26) for mask in (labelled, predicted)]
    either = predicted | labelled
    voi = variation_of_information(*(one[either] for one in ids)).sum()
    assert found["surface_score_voi"] == pytest.approx([1 / (1 + 0.3 * voi)], abs=1e-9)
    topology = topology_score(found_counts(predicted, labelled, (99, 99, 99)))
    assert found["surface_score_topology"] == [topology]
    total = 0.3 * topology + 0.35 * dice + 0.35 / (1 + 0.3 * voi)
    assert found["surface_score"] == pytest.approx([total])
    assert 0.2 < total < 0.95


def test_the_score_does_not_depend_on_the_blocks():
    pair = masks(*sheets(2, (12, 11, 13)))
    whole = figures(METRIC, pair, (99, 99, 99))
    for seed, block in enumerate([(4, 5, 6), (12, 3, 8)]):
        found = figures(METRIC, pair, block, seed)
        assert found == {name: pytest.approx(value, abs=1e-12) for name, value in whole.items()}


def test_empty_masks():
    _, labelled = sheets(0)
    nothing = np.zeros_like(labelled)
    found = figures(METRIC, masks(nothing, nothing), (9, 9, 9))
    assert all(math.isnan(value) for (value,) in found.values())
    found = figures(METRIC, masks(nothing, labelled), (9, 9, 9))
    assert found["surface_score_dice"] == [0]
    assert 0 < found["surface_score"][0] < 0.35
    perfect = figures(METRIC, masks(labelled, labelled), (9, 9, 9))
    assert all(value == pytest.approx([1]) for value in perfect.values())


def test_each_mask_has_its_own_score():
    first, second = (sheets(seed, (9, 10, 11)) for seed in (0, 1))
    pair = masks(*(np.stack(side) for side in zip(first, second, strict=True)))
    found = figures(METRIC, pair, (6, 7, 8))["surface_score"]
    alone = [figures(METRIC, masks(*each), (6, 7, 8))["surface_score"] for each in (first, second)]
    assert found == pytest.approx([value for (value,) in alone])
