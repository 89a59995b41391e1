import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from vcmodels.geometry.grid import FLOOR, PatchGrid, axis_weights, patch_origins, raw_window


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


def nnunet_steps(extent, patch, share):
    """`compute_steps_for_sliding_window` of nnU-Net, along one axis."""
    count = int(np.ceil((extent - patch) / (patch * share))) + 1
    step = (extent - patch) / (count - 1) if count > 1 else 0
    return [int(np.round(step * i)) for i in range(count)]


@pytest.mark.parametrize(("extent", "patch"), [(110, 64), (64, 64), (65, 64), (200, 48), (97, 8)])
def test_gaussian_patches_lie_where_those_of_nnunet_do(extent, patch):
    grid = PatchGrid.covering((extent, 9, 40), (patch, 10, 40), (0.5, 0.5, 0.5), "gaussian")
    assert list(grid.origins[0]) == nnunet_steps(extent, patch, 0.5)
    assert grid.origins[1:] == ((0,), (0,))


def test_gaussian_weights_are_those_of_nnunet():
    """Of a point that scipy filters; the sums over all patches are divided out."""
    shape, extent = (16, 24, 40), (30, 24, 90)
    point = np.zeros(shape)
    point[8, 12, 20] = 1
    window = gaussian_filter(point, [n / 8 for n in shape], mode="constant")
    window = np.maximum(window, window[window > 0].min())
    grid = PatchGrid.covering(extent, shape, (0.5, 0.5, 0.5), "gaussian")
    total = np.zeros(extent)
    places = [
        tuple(slice(o, o + n) for o, n in zip(corner, shape, strict=True))
        for corner in itertools.product(*grid.origins)
    ]
    for at in places:
        total[at] += window
    axes = [axis_weights(o, n, "gaussian") for o, n in zip(grid.origins, shape, strict=True)]
    for at, (z, y, x) in zip(places, itertools.product(*axes), strict=True):
        ours = z[:, None, None] * y[:, None] * x
        np.testing.assert_allclose(ours, window / total[at], atol=2e-4)
