import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from vcmodels.targets.binary import dilate


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), radius=st.integers(0, 12), share=st.floats(0.001, 0.1))
def test_a_dilated_mask_is_all_that_is_near(seed, radius, share):
    mask = np.random.default_rng(seed).random((6, 11, 17)) < share
    mask[3, 4, 5] = True
    before = mask.copy()
    np.testing.assert_array_equal(dilate(mask, radius), distance_transform_edt(~mask) <= radius)
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize(("radius", "voxels"), [(0, 1), (1, 7), (2, 33), (3, 123), (5, 515)])
def test_one_voxel_grows_to_a_ball(radius, voxels):
    mask = np.zeros((15, 13, 12), bool)
    mask[7, 6, 6] = True
    assert dilate(mask, radius).sum() == voxels


def test_an_empty_mask_stays_empty():
    assert not dilate(np.zeros((2, 3, 4), bool), 9).any()
