"""Intensity augmentation: the statistics each promises, on normalised float volumes."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from vcmodels.augment import DEFAULT_AUGMENTATIONS, apply_intensity
from vcmodels.augment.exact import Flip
from vcmodels.augment.intensity import (
    BlankBoxes,
    Blur,
    Brightness,
    Contrast,
    Gamma,
    LowResolution,
    Noise,
)

ALL = (Noise, Blur, Brightness, Contrast, Gamma, LowResolution, BlankBoxes)
SHAPE = (2, 20, 23, 26)


def smooth_image(shape=SHAPE):
    image = gaussian_filter(np.random.default_rng(0).normal(size=shape), (0, 2, 2, 2))
    return (image / image.std()).astype(np.float32)


def change(augmentation, image, seed=0):
    return apply_intensity([augmentation], image, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_shape_type_input_and_seed(kind):
    image = smooth_image()
    copy = image.copy()
    image.setflags(write=False)
    first, again, other = (change(kind(p=1), image, seed) for seed in (1, 1, 2))
    assert first.dtype == np.float32
    assert first.shape == image.shape
    assert first.flags.c_contiguous
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(image, copy)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, image)
    assert not np.array_equal(first, other)
    assert change(kind(p=0), image) is image


def test_the_number_of_blank_boxes_depends_on_the_seed_alone():
    image, many = smooth_image(), BlankBoxes(p=1, count=(1, 50), size=(0.1, 0.1))
    for seed in range(5):
        np.testing.assert_array_equal(change(many, image, seed), change(many, image, seed))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_a_constant_image_and_a_single_slice_stay_finite(kind):
    for image in (np.full(SHAPE, 3, np.float32), np.zeros((1, 1, 5, 7), np.float32)):
        changed = change(kind(p=1), image)
        assert changed.shape == image.shape
        assert np.isfinite(changed).all()
        if kind in (Blur, Contrast, Gamma, LowResolution):
            np.testing.assert_allclose(changed, image, atol=1e-5)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_no_global_random_state_is_used(kind):
    before = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()  # noqa: NPY002
    change(kind(p=1), smooth_image())
    assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert random.getstate() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_probability_is_how_often_it_happens():
    rng = np.random.default_rng(0)
    image = np.zeros((1, 2, 2, 2), np.float32)
    shifted = [apply_intensity([Brightness(p=0.3)], image, rng) is not image for _ in range(2000)]
    assert np.mean(shifted) == pytest.approx(0.3, abs=0.03)


def test_noise_is_white_with_the_drawn_deviation():
    image = smooth_image((1, 32, 32, 32))
    noise = change(Noise(p=1, deviation=(0.4, 0.4)), image) - image
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(0.4, rel=0.02)
    for axis in (1, 2, 3):
        assert np.mean(noise * np.roll(noise, 1, axis)) == pytest.approx(0, abs=0.01)
    drawn = [np.std(change(Noise(p=1), np.zeros((1, 9, 9, 9), np.float32), s)) for s in range(40)]
    assert min(drawn) < 0.05
    assert 0.15 < max(drawn) < 0.22


def test_blur_spreads_a_point_equally_along_all_axes_and_keeps_its_sum():
    point = np.zeros((1, 21, 21, 21), np.float32)
    point[0, 10, 10, 10] = 1
    spread = change(Blur(p=1, sigma=(1.5, 1.5)), point)[0]
    assert spread.sum() == pytest.approx(1, abs=1e-4)
    offset = np.arange(21) - 10
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        assert (spread.sum(axis=others) * offset**2).sum() == pytest.approx(1.5**2, rel=0.05)
    np.testing.assert_allclose(spread, spread.transpose(2, 0, 1), atol=1e-7)


def test_brightness_shifts_up_and_down_within_its_range():
    image = smooth_image()
    shifts = [change(Brightness(p=1, shift=(0.1, 0.5)), image, seed) - image for seed in range(40)]
    assert all(np.ptp(shift) < 1e-6 for shift in shifts)
    sizes = np.array([shift.mean() for shift in shifts])
    assert ((np.abs(sizes) > 0.099) & (np.abs(sizes) < 0.501)).all()
    assert 5 < (sizes > 0).sum() < 35


def test_contrast_scales_each_channel_about_its_mean():
    image = smooth_image() + np.array([0, 5], np.float32)[:, None, None, None]
    stretched = change(Contrast(p=1, factor=(2, 2)), image)
    over = (1, 2, 3)
    np.testing.assert_allclose(stretched.mean(over), image.mean(over), atol=1e-4)
    np.testing.assert_allclose(stretched.std(over), 2 * image.std(over), rtol=1e-4)


@pytest.mark.parametrize("invert", [0, 1])
def test_gamma_is_a_power_that_keeps_order_mean_and_deviation(invert):
    image = smooth_image() * np.array([1, 3], np.float32)[:, None, None, None]
    curved = change(Gamma(p=1, exponent=(1.5, 1.5), invert=invert), image)
    over = (1, 2, 3)
    np.testing.assert_allclose(curved.mean(over), image.mean(over), atol=1e-4)
    np.testing.assert_allclose(curved.std(over), image.std(over), rtol=1e-3)
    for channel in range(2):
        order = np.argsort(image[channel], axis=None)
        assert (np.diff(curved[channel].ravel()[order]) >= -1e-5).all()
        sign = -1 if invert else 1
        unit = sign * image[channel]
        unit = ((unit - unit.min()) / np.ptp(unit)) ** 1.5
        expected = sign * unit
        assert np.corrcoef(curved[channel].ravel(), expected.ravel())[0, 1] > 0.99999


def test_low_resolution_keeps_shape_and_place_but_loses_fine_detail():
    ramp = np.broadcast_to(np.arange(24, dtype=np.float32), (1, 16, 20, 24))
    coarse = change(LowResolution(p=1, zoom=(0.5, 0.5)), ramp)
    np.testing.assert_allclose(coarse[..., 2:-2], ramp[..., 2:-2], atol=0.51)
    noise = np.random.default_rng(0).normal(size=(1, 24, 24, 24)).astype(np.float32)
    coarse = change(LowResolution(p=1, zoom=(0.5, 0.5)), noise)
    for axis in (1, 2, 3):
        assert np.diff(coarse, axis=axis).var() < 0.5 * np.diff(noise, axis=axis).var()
    same = change(LowResolution(p=1, zoom=(1, 1)), noise)
    np.testing.assert_allclose(same, noise, atol=1e-6)


def test_blank_boxes_are_boxes_of_the_asked_size_in_all_channels():
    image = np.ones((2, 40, 40, 40), np.float32)
    for seed in range(10):
        blank = change(BlankBoxes(p=1, count=(1, 1), size=(0.1, 0.3)), image, seed) == 0
        assert np.array_equal(blank[0], blank[1])
        corners = np.argwhere(blank[0])
        sides = corners.max(0) - corners.min(0) + 1
        assert ((sides >= 4) & (sides <= 12)).all()
        assert blank[0].sum() == np.prod(sides)


def test_the_list_runs_in_its_order_and_passes_over_geometry():
    image = smooth_image()
    rng = np.random.default_rng(0)
    double, up = Contrast(p=1, factor=(2, 2)), Brightness(p=1, shift=(1, 1))
    result = apply_intensity([Flip(p=1), double, up], image, rng)
    assert result.std() == pytest.approx(2 * image.std(), rel=1e-2)
    assert abs((result - image).mean()) == pytest.approx(1, abs=0.02)
    assert apply_intensity([Flip(p=1)], image, rng) is image


def test_the_default_list_keeps_images_normalised_enough_to_learn_from():
    image = smooth_image()
    for seed in range(30):
        changed = apply_intensity(DEFAULT_AUGMENTATIONS, image, np.random.default_rng(seed))
        assert abs(changed.mean()) < 0.5
        assert 0.5 < changed.std() < 2
        assert np.corrcoef(changed.ravel(), image.ravel())[0, 1] > 0.8


@pytest.mark.slow
def test_albumentations_is_imported_at_first_use_and_does_not_ask_the_network():
    program = """
import sys
import vcmodels.augment
assert "albumentations" not in sys.modules
import socket, numpy
socket.create_connection = socket.socket.connect = None
from vcmodels.augment.intensity import Gamma
Gamma(p=1).change(numpy.zeros((1, 2, 2, 2), "f4"), numpy.random.default_rng(0))
assert "albumentations" in sys.modules
"""
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
