import math

import numpy as np
import pytest
from scipy import ndimage

from vcmodels.metrics.overlap import centroid, centroid_distance, regions

SHAPE = (6, 7, 8)
SPACING = (4.0, 1.5, 0.25)


def random_volume(channels, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((channels, *SHAPE)).astype(np.float32)


def oracle(predicted, labelled):
    centres = [np.array(ndimage.center_of_mass(r)) * SPACING for r in (predicted, labelled)]
    return float(np.linalg.norm(centres[0] - centres[1]))


@pytest.mark.parametrize("channels", [1, 2])
def test_the_distance_of_masks_is_that_of_their_centres_of_mass(channels):
    share, label = random_volume(channels), (random_volume(channels, 1) > 0.7).astype(np.float32)
    valid = random_volume(1, 2) > 0.3
    found = centroid_distance(share, label, valid, SPACING)["centroid_distance"]
    pairs = [((p > 0.5) & valid[0], (t == 1) & valid[0]) for p, t in zip(share, label, strict=True)]
    assert found == pytest.approx([oracle(*pair) for pair in pairs])


def test_the_distance_of_classes_is_that_of_each_but_the_background():
    scores, valid = random_volume(4), random_volume(1, 2) > 0.3
    label = np.random.default_rng(1).integers(0, 3, (1, *SHAPE)).astype(np.float32)
    first, second, absent = centroid_distance(scores, label, valid, SPACING)["centroid_distance"]
    index, wanted, counts = scores.argmax(0), label[0], valid[0]
    pairs = [((index == c) & counts, (wanted == c) & counts) for c in (1, 2)]
    assert [first, second] == pytest.approx([oracle(*pair) for pair in pairs])
    assert math.isnan(absent)


def test_a_moved_region_is_as_far_as_it_was_moved():
    mask = np.zeros((1, 9, 10, 11), np.float32)
    mask[0, 2:4, 3:6, 1:5] = 1
    moved = np.roll(mask, (3, -2, 4), axis=(1, 2, 3))
    everywhere = np.ones_like(mask, bool)
    found = centroid_distance(moved, mask, everywhere, SPACING)["centroid_distance"]
    assert found == pytest.approx([math.hypot(3 * 4.0, 2 * 1.5, 4 * 0.25)])


def test_each_mask_is_cut_by_the_voxels_that_count_in_it():
    share, label, valid = random_volume(2), random_volume(2, 1), random_volume(2, 2) > 0.4
    for n, (predicted, labelled) in enumerate(regions(share, label, valid)):
        np.testing.assert_array_equal(predicted, (share[n] > 0.5) & valid[n])
        np.testing.assert_array_equal(labelled, (label[n] > 0.5) & valid[n])


def test_what_is_empty_has_no_centre():
    assert all(math.isnan(c) for c in centroid(np.zeros(SHAPE, bool), SPACING))
