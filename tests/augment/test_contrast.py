"""Value curves: the order, mean and deviation that each keeps, against the formula in NumPy."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from vcmodels.augment.values import Brightness, Contrast, Gamma, HistogramShift

OVER = (1, 2, 3)


def change(augmentation, image, seed=0):
    return augmentation.change(torch.tensor(image), np.random.default_rng(seed)).numpy()


def smooth_image():
    """Two channels of different offset and width."""
    image = gaussian_filter(np.random.default_rng(0).normal(size=(2, 20, 23, 26)), (0, 2, 2, 2))
    image *= np.array([1, 3])[:, None, None, None] / image.std()
    return (image + np.array([0, 5])[:, None, None, None]).astype(np.float32)


def test_brightness_shifts_up_and_down_within_its_range():
    image = smooth_image()
    shifts = [change(Brightness(shift=(0.1, 0.5)), image, seed) - image for seed in range(40)]
    assert all(np.ptp(shift) < 2e-6 for shift in shifts)
    sizes = np.array([shift.mean() for shift in shifts])
    assert ((np.abs(sizes) > 0.099) & (np.abs(sizes) < 0.501)).all()
    assert 5 < (sizes > 0).sum() < 35


def test_contrast_scales_each_channel_about_its_mean():
    image = smooth_image()
    mean = image.mean(OVER, keepdims=True, dtype=np.float64)
    stretched = change(Contrast(factor=(2, 2)), image)
    np.testing.assert_allclose(stretched, (image - mean) * 2 + mean, atol=1e-5)


@pytest.mark.parametrize("invert", [0, 1])
def test_gamma_is_a_power_that_keeps_order_mean_and_deviation(invert):
    image = smooth_image()
    curved = change(Gamma(exponent=(1.5, 1.5), invert=invert), image)
    np.testing.assert_allclose(curved.mean(OVER), image.mean(OVER), atol=1e-4)
    np.testing.assert_allclose(curved.std(OVER), image.std(OVER), rtol=1e-3)
    for channel, found in zip(image.astype(np.float64), curved, strict=True):
        order = np.argsort(channel, axis=None)
        assert (np.diff(found.ravel()[order]) >= -1e-5).all()
        sign = -1 if invert else 1
        unit = sign * channel
        unit = sign * ((unit - unit.min()) / np.ptp(unit)) ** 1.5
        expected = (unit - unit.mean()) / unit.std() * channel.std() + channel.mean()
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_gamma_inverts_as_often_as_asked():
    image = smooth_image()
    powers = (
        change(Gamma(exponent=(2, 2), invert=0), image),
        change(Gamma(exponent=(2, 2), invert=1), image),
    )
    often = [change(Gamma(exponent=(2, 2), invert=0.25), image, seed) for seed in range(80)]
    inverted = sum(np.abs(c - powers[1]).max() < np.abs(c - powers[0]).max() for c in often)
    assert 10 < inverted < 32


def test_histogram_shift_is_a_monotone_curve_that_keeps_the_ends():
    image = smooth_image()
    for seed in range(10):
        bent = change(HistogramShift(points=(1, 9), strength=(1, 1)), image, seed)
        for channel, found in zip(image, bent, strict=True):
            order = np.argsort(channel, axis=None)
            assert (np.diff(found.ravel()[order]) >= -1e-5 * np.ptp(channel)).all()
            assert found.min() == pytest.approx(channel.min(), abs=1e-5)
            assert found.max() == pytest.approx(channel.max(), abs=1e-4)


def test_histogram_shift_moves_control_points_by_up_to_half_their_distance():
    ramp = np.linspace(0, 1, 4001, dtype=np.float32).reshape(1, 1, 1, -1)
    points = np.arange(1, 4) * 1000
    moves = np.array(
        [
            (change(HistogramShift(points=(3, 3), strength=(0.5, 0.5)), ramp, seed) - ramp)[
                0, 0, 0, points
            ]
            for seed in range(200)
        ]
    )
    assert np.abs(moves).max() == pytest.approx(0.5 / 8, rel=0.05)
    assert np.abs(moves.mean(axis=0)).max() < 0.01
    still = change(HistogramShift(strength=(0, 0)), ramp)
    np.testing.assert_allclose(still, ramp, atol=1e-6)


def test_histogram_shift_is_smooth():
    """Its slope does not jump at the control points, as the slope of joined lines would."""
    ramp = np.linspace(0, 1, 20001, dtype=np.float32).reshape(1, 1, 1, -1)
    bent = change(HistogramShift(points=(3, 3), strength=(1, 1)), ramp)[0, 0, 0].astype(np.float64)
    slope = np.diff(bent[::20]) / np.diff(ramp[0, 0, 0, ::20].astype(np.float64))
    assert np.abs(np.diff(slope)).max() < 0.05
