import math

import gudhi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import euler_number

from tests.metrics.blocks import figures, masks, measured
from vcmodels.metrics.topology import TopologyMetric

METRICS = {c: TopologyMetric(compares=("masks", "classes"), connectivity=c) for c in (6, 26)}
SHAPES = st.tuples(*[st.integers(1, 8)] * 3)
BLOCKS = st.tuples(*[st.integers(1, 5)] * 3)


def betti_by_gudhi(mask, connectivity):
    """The features that are born with the mask and outlive it, of a cubical complex."""
    values = np.where(mask, 0.0, 1.0)
    if connectivity == 26:
        bars = gudhi.CubicalComplex(top_dimensional_cells=values).persistence()
    else:
        bars = gudhi.CubicalComplex(vertices=values).persistence()
    return [sum(k == dim and birth == 0 for k, (birth, _) in bars) for dim in range(3)]


def found_betti(mask, connectivity, block, seed=0):
    joined = measured(METRICS[connectivity], masks(mask, ~mask), block, seed)
    return joined["predicted0"].tolist()


@settings(max_examples=100, deadline=None)
@given(
    shape=SHAPES,
    block=BLOCKS,
    share=st.sampled_from([0.1, 0.3, 0.6, 0.9]),
    connectivity=st.sampled_from([6, 26]),
    seed=st.integers(0, 10_000),
)
def test_betti_numbers_of_any_blocks_are_those_of_a_cubical_complex(
    shape, block, share, connectivity, seed
):
    mask = np.random.default_rng(seed).random(shape) < share
    found = found_betti(mask, connectivity, block, seed)
    assert found == betti_by_gudhi(mask, connectivity)


@pytest.mark.parametrize("connectivity", [6, 26])
def test_the_euler_characteristic_is_that_of_scikit_image(connectivity):
    field = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(30, 27, 33)), 1.2)
    mask = field > 0.1
    b0, b1, b2 = found_betti(mask, connectivity, (8, 9, 10))
    rank = {6: 1, 26: 3}[connectivity]
    assert b0 - b1 + b2 == euler_number(mask, connectivity=rank)
    assert min(b0, b1) > 5


def ring(shape=(9, 10, 11)):
    mask = np.zeros(shape, bool)
    mask[4, 2:8, 2:9] = True
    mask[4, 4:6, 4:7] = False
    return mask


def shell(shape=(9, 10, 11)):
    mask = np.zeros(shape, bool)
    mask[2:7, 2:7, 2:7] = True
    mask[3:6, 3:6, 3:6] = False
    return mask


@pytest.mark.parametrize("block", [(99, 99, 99), (4, 4, 4), (1, 2, 3)])
def test_known_shapes(block):
    assert found_betti(ring(), 26, block) == [1, 1, 0]
    assert found_betti(shell(), 26, block) == [1, 0, 1]
    two = shell()
    two[0, 0, 0] = True
    assert found_betti(two, 26, block) == [2, 0, 1]
    open_shell = shell()
    open_shell[2, 4, 4] = False
    assert found_betti(open_shell, 26, block) == [1, 0, 0]
    found = figures(METRICS[26], masks(ring(), shell()), block)
    assert {name: value for name, (value,) in found.items()} == {
        "betti_error": 2,
        "betti_0_error": 0,
        "betti_1_error": 1,
        "betti_2_error": 1,
    }


def test_a_cavity_is_closed_by_corners_only_with_26():
    leaky = shell()
    leaky[2, 2, 2:7] = False  # an edge of the shell: the inside touches the outside by an edge
    assert found_betti(leaky, 26, (3, 3, 3))[2] == 1
    assert found_betti(leaky, 6, (3, 3, 3))[2] == 0


def test_what_is_hollow_at_the_end_of_the_box_is_no_cavity():
    mask = np.ones((4, 5, 6), bool)
    mask[1:3, 1:4, 1:5] = False
    assert found_betti(mask, 26, (3, 3, 3)) == [1, 0, 1]
    for place in ((0, 2, 2), (-1, 2, 2), (2, 0, 2), (2, -1, 2), (2, 2, 0), (2, 2, -1)):
        pierced = mask.copy()
        pierced[place] = False
        assert found_betti(pierced, 26, (3, 3, 3)) == [1, 0, 0]


def test_each_mask_has_its_own_numbers_and_voxels_that_do_not_count_are_background():
    predicted, labelled = np.stack([ring(), shell()]), np.stack([shell(), shell()])
    valid = np.ones((9, 10, 11), bool)
    pair = masks(predicted, labelled, valid, corner=(-3, 5, 2))
    found = figures(METRICS[26], pair, (4, 3, 5))
    assert found["betti_1_error"] == [1, 0]
    assert found["betti_2_error"] == [1, 0]
    curves = METRICS[26].curves(measured(METRICS[26], pair, (4, 3, 5)))
    assert curves["Betti numbers, predicted, 1"].y == (1, 1, 0)
    assert curves["Betti numbers, labelled, 2"].y == (1, 0, 1)
    valid[4, 4:6, 2:9] = False  # cuts the ring in two, and the shell open
    found = figures(METRICS[26], masks(predicted, labelled, valid), (4, 3, 5))
    assert found["betti_0_error"] == [1, 0]
    assert found["betti_2_error"] == [0, 0]


def test_two_empty_regions_have_no_error_and_an_empty_one_has_that_of_the_other():
    nothing = np.zeros((4, 5, 6), bool)
    found = figures(METRICS[26], masks(nothing, nothing), (2, 2, 2))
    assert all(math.isnan(value) for (value,) in found.values())
    found = figures(METRICS[26], masks(np.zeros_like(shell()), shell()), (4, 4, 4))
    assert found["betti_error"] == [2]


def test_a_single_slice_has_tunnels_and_no_cavities():
    flat = ring()[4:5]
    assert found_betti(flat, 26, (1, 3, 4)) == [1, 1, 0]
