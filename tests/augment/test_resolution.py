"""Blur, sharpening and low resolution, against SciPy and against what a coarse voxel holds."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from vcmodels.augment.resample import gaussian
from vcmodels.augment.values import Blur, LowResolution, Sharpen

SHAPE = (2, 13, 17, 20)


def change(augmentation, image, seed=0):
    return augmentation.change(torch.tensor(image), np.random.default_rng(seed)).numpy()


def scipys(image, sigmas):
    """SciPy's filter, as wide as ours: up to the voxel that holds three standard deviations."""
    reach = [int(np.ceil(3 * sigma)) for sigma in sigmas]
    return gaussian_filter(image, sigmas, mode="nearest", radius=reach)


def white(shape=SHAPE):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("sigmas", [(1.5, 0.4, 0.8), (0, 0, 2), (0, 0, 0), (0.1, 0.3, 4)], ids=str)
def test_gaussian_is_scipys(sigmas):
    image = white()
    expected = scipys(image, (0, *sigmas))
    found = gaussian(torch.from_numpy(image), sigmas).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_gaussian_reaches_beyond_a_short_axis():
    image = white((1, 1, 2, 3))
    expected = scipys(image, (0, 3, 3, 3))
    found = gaussian(torch.from_numpy(image), (3, 3, 3)).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_blur_is_equal_along_all_axes_unless_asked():
    image = white()
    expected = scipys(image, (0, 1.5, 1.5, 1.5))
    np.testing.assert_allclose(change(Blur(sigma=(1.5, 1.5)), image), expected, atol=2e-6)
    only_x = change(Blur(sigma=(1.5, 1.5), axes=("x",)), image)
    expected = scipys(image, (0, 0, 0, 1.5))
    np.testing.assert_allclose(only_x, expected, atol=2e-6)


def test_blur_per_axis_draws_three_widths():
    point = np.zeros((1, 25, 25, 25), np.float32)
    point[0, 12, 12, 12] = 1
    spread = change(Blur(sigma=(0.8, 2.5), per_axis=True), point)[0]
    offset = np.arange(25) - 12
    drawn = np.random.default_rng(0).uniform(0.8, 2.5, size=3)
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        width = np.sqrt((spread.sum(axis=others) * offset**2).sum())
        assert width == pytest.approx(drawn[axis], rel=0.05)


def test_sharpening_adds_the_difference_from_the_blurred_image():
    image = white()
    blurred = scipys(image, (0, 1, 1, 1))
    found = change(Sharpen(amount=(0.7, 0.7), sigma=(1, 1)), image)
    np.testing.assert_allclose(found, image + 0.7 * (image - blurred), atol=5e-6)


def test_low_resolution_keeps_place_but_loses_fine_detail():
    ramp = np.broadcast_to(np.arange(24, dtype=np.float32), (1, 16, 20, 24))
    coarse = change(LowResolution(zoom=(0.5, 0.5)), ramp)
    np.testing.assert_allclose(coarse[..., 2:-2], ramp[..., 2:-2], atol=0.51)
    mean = change(LowResolution(zoom=(0.5, 0.5), take="mean"), ramp)
    np.testing.assert_allclose(mean[..., 2:-2], ramp[..., 2:-2], atol=1e-5)
    noise = white((1, 24, 24, 24))
    coarse = change(LowResolution(zoom=(0.5, 0.5)), noise)
    for axis in (1, 2, 3):
        assert np.diff(coarse, axis=axis).var() < 0.5 * np.diff(noise, axis=axis).var()
    same = change(LowResolution(zoom=(1, 1)), noise)
    np.testing.assert_allclose(same, noise, atol=1e-6)


def test_thick_slices_are_means_along_one_axis_alone():
    image = white((1, 12, 5, 6))
    thick = change(LowResolution(zoom=(0.25, 0.25), axes=("z",), take="mean"), image)
    means = image.reshape(1, 3, 4, 5, 6).mean(axis=2)
    # A coarse voxel's centre lies between fine voxels 4i + 1 and 4i + 2.
    np.testing.assert_allclose((thick[:, 1::4] + thick[:, 2::4]) / 2, means, atol=0.3)
    np.testing.assert_allclose(thick[:, 0], means[:, 0], atol=1e-6)
    np.testing.assert_allclose(thick[:, -1], means[:, -1], atol=1e-6)


def test_one_axis_loses_resolution_each_of_them_in_turn():
    image, coarse_axes = white((1, 16, 16, 16)), set()
    for seed in range(20):
        changed = change(LowResolution(zoom=(0.3, 0.3), one_axis=True), image, seed)
        loss = [
            np.diff(changed, axis=axis).var() / np.diff(image, axis=axis).var()
            for axis in (1, 2, 3)
        ]
        lowest = int(np.argmin(loss))
        assert loss[lowest] < 0.3
        assert min(v for axis, v in enumerate(loss) if axis != lowest) > 2 * loss[lowest]
        coarse_axes.add(lowest)
    assert coarse_axes == {0, 1, 2}
