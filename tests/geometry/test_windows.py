import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcmodels.geometry.grid import FLOOR, axis_weights, patch_origins, raw_window


@given(extent=st.integers(1, 90), patch=st.integers(1, 20), data=st.data())
def test_weights_of_all_patches_sum_to_one_at_every_voxel(extent, patch, data):
    stride = data.draw(st.integers(1, patch))
    origins = patch_origins(extent, patch, stride)
    total = np.zeros(max(extent, patch))
    for origin, weights in zip(origins, axis_weights(origins, patch), strict=True):
        assert (weights > 0).all()
        total[origin : origin + patch] += weights
    np.testing.assert_allclose(total, 1, atol=3e-7 * patch / stride + 1e-7)


def test_a_voxel_under_one_patch_alone_has_weight_one_even_in_a_corner():
    weights = axis_weights((0, 6, 9), 8)
    assert (weights[0, :6] == 1).all()
    assert weights[2, -1] == 1


def test_the_middle_of_a_patch_counts_more_than_its_rim():
    window = raw_window(9)
    assert window.argmax() == 4
    assert window.min() >= FLOOR
    np.testing.assert_allclose(window, window[::-1])


@pytest.mark.parametrize("start", [0, 5])
def test_weights_depend_on_distances_alone(start):
    origins = [start + o for o in (0, 3, 6, 8)]
    np.testing.assert_array_equal(axis_weights(origins, 4), axis_weights((0, 3, 6, 8), 4))
