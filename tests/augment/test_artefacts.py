"""Faults of scanners, of volumes and of single slices: where they are and what they leave as it is."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from vcmodels.augment.artefacts import (
    BiasField,
    BlankBoxes,
    BlurredSlices,
    MissingSlices,
    Rings,
    ShiftedSlices,
)


def change(augmentation, image, seed=0):
    return augmentation.change(torch.tensor(image), np.random.default_rng(seed)).numpy()


def white(shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def test_bias_field_is_a_smooth_gain_within_its_range():
    image = np.ones((2, 20, 30, 40), np.float32)
    image[:, 0, 0, 0] = -3
    for seed in range(5):
        gain = (change(BiasField(factor=(0.5, 2)), image, seed) + 3) / 4
        assert gain[0, 0, 0, 0] == 0, "the darkest voxel stays"
        gain[:, 0, 0, 0] = gain[:, 0, 0, 1]
        assert 0.5 <= gain.min() < gain.max() <= 2
        assert np.array_equal(gain[0], gain[1])
        # Two cells over n voxels: no slope of a B-spline exceeds that between control points.
        for axis, n in enumerate(image.shape[1:]):
            assert np.abs(np.diff(np.log(gain[0]), axis=axis)).max() <= np.log(4) * 2 / n


def test_rings_are_constant_along_their_axis_and_around_their_centre():
    image = np.zeros((2, 7, 60, 61), np.float32)
    rings = Rings(count=(1, 1), amplitude=(0.3, 0.3), width=(1, 1), reach=0)
    for seed in range(5):
        pattern = change(rings, image, seed)
        assert (pattern == pattern[:1, :1]).all()
        assert np.abs(pattern).max() == pytest.approx(0.3, rel=0.15)
        centre = np.random.default_rng(seed).uniform(0, 1, size=2) * (60, 61)
        radius = np.hypot(*(np.indices((60, 61)) - centre[:, None, None]))
        order = np.argsort(radius, axis=None)
        along = np.abs(pattern[0, 0]).ravel()[order]
        peak = radius.ravel()[order][along.argmax()]
        expected = 0.3 * np.exp(-0.5 * (radius - peak) ** 2)
        np.testing.assert_allclose(np.abs(pattern[0, 0]), expected, atol=0.1)
    turned = change(Rings(axis="x"), np.zeros((1, 9, 10, 11), np.float32))
    assert (turned == turned[..., :1]).all()
    assert np.ptp(turned) > 0


def test_blank_boxes_are_boxes_of_the_asked_size_in_all_channels():
    image = np.ones((2, 40, 40, 40), np.float32)
    for seed in range(10):
        blank = change(BlankBoxes(count=(1, 1), size=(0.1, 0.3)), image, seed) == 0
        assert np.array_equal(blank[0], blank[1])
        corners = np.argwhere(blank[0])
        sides = corners.max(0) - corners.min(0) + 1
        assert ((sides >= 4) & (sides <= 12)).all()
        assert blank[0].sum() == np.prod(sides)


def test_blank_boxes_reach_every_corner():
    image = np.ones((1, 4, 5, 6), np.float32)
    boxes = BlankBoxes(count=(1, 1), size=(0.2, 0.2))
    blank = sum(change(boxes, image, seed) == 0 for seed in range(1500))
    assert (blank > 0).all()


@pytest.mark.parametrize("axis", ["z", "y", "x"])
@pytest.mark.parametrize("kind", [MissingSlices, ShiftedSlices, BlurredSlices])
def test_only_as_many_slices_as_drawn_change(kind, axis):
    image = white((2, 12, 13, 14))
    for seed in range(10):
        changed = change(kind(count=(2, 4), axis=axis), image, seed)
        others = tuple(a for a in range(4) if a != 1 + "zyx".index(axis))
        spoilt = (changed != image).any(axis=others).sum()
        assert 2 <= spoilt <= 4
    assert (change(kind(count=(99, 99), axis=axis), image) != image).mean() > 0.9


def test_missing_slices_are_zero():
    image = white((1, 6, 7, 8)) + 9
    changed = change(MissingSlices(count=(2, 2)), image)
    assert sorted((changed == 0).mean(axis=(0, 2, 3))) == [0, 0, 0, 0, 1, 1]


def test_shifted_slices_are_moved_in_their_plane_with_borders_repeated():
    image = white((2, 1, 9, 10))
    shifts = set()
    for seed in range(40):
        changed = change(ShiftedSlices(count=(1, 1), shift=(1, 2)), image, seed)
        found = [
            (dy, dx)
            for dy in (-2, -1, 0, 1, 2)
            for dx in (-2, -1, 0, 1, 2)
            if np.array_equal(
                changed,
                np.pad(image, ((0, 0), (0, 0), (2, 2), (2, 2)), "edge")[
                    :, :, 2 - dy : 11 - dy, 2 - dx : 12 - dx
                ],
            )
        ]
        assert len(found) == 1
        shifts.add(found[0])
    assert {abs(d) for shift in shifts for d in shift} == {1, 2}
    assert len(shifts) > 8


def test_blurred_slices_are_blurred_in_their_plane():
    image = white((2, 9, 1, 10))
    changed = change(BlurredSlices(count=(1, 1), sigma=(2, 2), axis="y"), image)
    expected = gaussian_filter(image, (0, 2, 0, 2), mode="nearest", truncate=3)
    np.testing.assert_allclose(changed, expected, atol=2e-6)
