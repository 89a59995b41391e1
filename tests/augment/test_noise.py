"""Noise: mean, deviation and distribution of each kind, against SciPy's."""

import numpy as np
import pytest
import torch
from scipy import stats

from vcmodels.augment.values import Noise, ShotNoise, Speckle

SHAPE = (1, 32, 33, 34)


def change(augmentation, image, seed=0):
    return augmentation.change(torch.tensor(image), np.random.default_rng(seed)).numpy()


def ramp():
    """From 0 to 4 along x, alike elsewhere."""
    return np.broadcast_to(np.linspace(0, 4, SHAPE[-1], dtype=np.float32), SHAPE).copy()


def test_noise_is_white_and_normal_with_the_drawn_deviation():
    image = ramp()
    noise = change(Noise(p=1, deviation=(0.4, 0.4)), image) - image
    assert stats.kstest(noise.ravel() / 0.4, "norm").pvalue > 0.01
    for axis in (1, 2, 3):
        assert np.mean(noise * np.roll(noise, 1, axis)) == pytest.approx(0, abs=0.005)
    drawn = [np.std(change(Noise(p=1), np.zeros((1, 9, 9, 9), np.float32), s)) for s in range(40)]
    assert min(drawn) < 0.05
    assert 0.15 < max(drawn) < 0.22


def test_channels_have_noise_of_their_own():
    noise = change(Noise(p=1, deviation=(1, 1)), np.zeros((2, 20, 20, 20), np.float32))
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05


def test_shot_noise_counts_are_poisson_from_the_darkest_to_the_brightest():
    image, counts = ramp(), 50.0
    drawn = change(ShotNoise(p=1, counts=(counts, counts)), image) * (counts / 4)
    np.testing.assert_allclose(drawn, drawn.round(), atol=1e-3)
    assert not drawn[..., 0].any()
    for x in (1, 8, 20, 33):
        expected = counts * x / (SHAPE[-1] - 1)
        found = drawn[..., x].ravel().round()
        assert found.mean() == pytest.approx(expected, abs=4 * np.sqrt(expected / found.size))
        assert found.var() == pytest.approx(expected, rel=0.2)
        assert stats.skew(found) == pytest.approx(expected**-0.5, abs=0.25)


def test_shot_noise_scales_each_channel_by_its_own_range():
    image = np.concatenate([ramp(), 100 * ramp() - 7])
    noise = change(ShotNoise(p=1), image) - image
    assert noise[1].std() == pytest.approx(100 * noise[0].std(), rel=0.05)


def test_speckle_grows_with_the_height_above_the_darkest_voxel():
    image = ramp() - 9
    noise = change(Speckle(p=1, deviation=(0.2, 0.2)), image) - image
    height = image[0, 0, 0] + 9
    np.testing.assert_allclose(noise.std(axis=(0, 1, 2)), 0.2 * height, rtol=0.12)
    assert stats.kstest((noise / (0.2 * (image + 9) + 1e-9))[..., 1:].ravel(), "norm").pvalue > 0.01
