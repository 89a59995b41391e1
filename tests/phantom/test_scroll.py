import numpy as np
import pytest

from vcmodels.errors import FaultError
from vcmodels.geometry.boxes import Box
from vcmodels.phantom.scroll import LOOSE, PressedWinding, Scroll

SHAPE = (60, 140, 120)
BOX = Box((7, 6, 5), (40, 128, 110))


PRESSED = PressedWinding.between(2, 6)


def shifted(scroll, axis, steps):
    origin = tuple(o + steps * (a == axis) for a, o in enumerate(BOX.origin))
    return scroll.phase(Box(origin, BOX.shape))[0]


@pytest.mark.parametrize("winding", [LOOSE, PressedWinding.between(6, 9)], ids=["loose", "pressed"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient_is_the_slope_of_the_phase(seed, winding):
    scroll = Scroll(SHAPE, seed, winding)
    phase, gradient = scroll.phase(BOX)
    smooth = (phase > 2) & (gradient**2 < 0.04).all(axis=0)  # away from the singular axis
    assert smooth.mean() > 0.5
    for axis in range(3):
        near, far = (shifted(scroll, axis, n) - shifted(scroll, axis, -n) for n in (1, 2))
        near -= np.round(near)
        far -= np.round(far - 2 * near)
        slope = (8 * near - far) / 12  # fourth order: the error is below the tolerance
        np.testing.assert_allclose(gradient[axis][smooth], slope[smooth], atol=3e-4)
        assert np.abs(slope[smooth]).max() > 0.02  # the test would see a missing term


def test_the_phase_is_continuous_but_for_whole_turns():
    phase, gradient = Scroll(SHAPE, 0).phase(BOX)
    outside = phase > 1.5
    for axis in (1, 2):
        step = np.diff(phase, axis=axis)
        step -= np.round(step)
        kept = np.delete(outside, 0, axis) & np.delete(outside, -1, axis)
        assert np.abs(step[kept]).max() < 0.25
    assert (np.abs(np.diff(phase, axis=1)) > 0.75).any()  # there is a cut to be crossed
    assert gradient.shape == (3, *BOX.shape)


def test_wraps_vary_in_spacing_and_touch_in_places_but_never_fold():
    scroll = Scroll((60, 224, 224), 0)
    surface = scroll.surface(Box((20, 0, 0), (24, 224, 224)))
    steepness = np.sqrt((surface.gradient**2).sum(axis=0))
    spacing = 1 / steepness[surface.mask]
    low, high = np.percentile(spacing, [2, 98])
    assert 5 < low < 9
    assert 14 < high < 24
    thickness = surface.thickness[surface.mask]
    assert 3.5 < np.percentile(thickness, 2) < np.percentile(thickness, 98) < 6.5


def test_normals_have_length_one_and_point_outward():
    scroll = Scroll(SHAPE, 0)
    surface = scroll.surface(BOX)
    normals = surface.normals[:, surface.has_normal]
    np.testing.assert_allclose((normals**2).sum(axis=0), 1)
    y, x = (np.broadcast_to(a, BOX.shape) for a in np.meshgrid(
        np.arange(6, 134) - scroll.centre[0], np.arange(5, 115) - scroll.centre[1], indexing="ij"
    ))  # fmt: skip
    outward = normals[1] * y[surface.has_normal] + normals[2] * x[surface.has_normal]
    assert np.mean(outward > 0) > 0.98


def test_a_surface_is_a_function_of_the_position():
    scroll = Scroll(SHAPE, 3)
    part = Box((20, 31, 42), (17, 13, 29))
    whole, alone = scroll.surface(BOX).crop(part.slices(BOX)), scroll.surface(part)
    np.testing.assert_allclose(alone.distance, whole.distance, atol=1e-9)
    np.testing.assert_allclose(alone.normals, whole.normals, atol=1e-9)
    np.testing.assert_array_equal(alone.labelled, whole.labelled)
    np.testing.assert_array_equal(alone.mask, whole.mask)


def test_some_of_the_volume_is_unlabelled_and_some_of_the_sheet_is_missing():
    surface = Scroll((96, 192, 192), 0).surface(Box((0, 0, 0), (64, 192, 192)))
    assert 0.003 < 1 - surface.labelled.mean() < 0.1
    first, last = Scroll((96, 192, 192), 0).wraps
    assert last > first + 3
    near = np.abs(surface.distance) < 1
    missing = 1 - surface.present[near].mean()
    assert 0.05 < missing < 0.6


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pressed_wraps_lie_as_far_apart_as_asked_and_touch_in_places(seed):
    surface = Scroll((60, 192, 160), seed, PRESSED).surface(Box((20, 0, 0), (24, 192, 160)))
    spacing = 1 / np.sqrt((surface.gradient**2).sum(axis=0))[surface.mask]
    assert np.mean((spacing >= 2) & (spacing <= 6)) > 0.93  # squeezes go a seventh beyond
    shares = np.histogram(spacing, [2, 3, 4, 5, 6])[0] / spacing.size
    assert shares.min() > 0.1
    between = np.concatenate([faces(surface, axis) for axis in range(3)])
    assert 0.01 < between.size / surface.mask.sum() < 0.2


def faces(surface, axis):
    """The pairs of neighbouring voxels of two wraps along an axis, by the lower number."""
    ids = np.where(surface.mask, surface.wrap, 0)
    before, after = np.delete(ids, -1, axis), np.delete(ids, 0, axis)
    touching = (before > 0) & (after > 0) & (before != after)
    return np.minimum(before, after)[touching]


def test_the_number_of_a_wrap_rises_by_one_from_each_to_the_next_one_outward():
    scroll = Scroll((40, 192, 160), 1, PRESSED)
    surface = scroll.surface(Box((12, 96, 84), (6, 90, 8)))
    middle = surface.wrap[3, :, 4][np.abs(surface.distance[3, :, 4]) < 0.5]
    steps = np.diff(middle)
    assert set(steps) <= {0, 1}
    assert (steps == 1).sum() > 15


@pytest.mark.parametrize("wrong", [(1.9, 6), (4, 3), (5, 18)], ids=str)
def test_spacings_that_cannot_be_are_refused(wrong):
    with pytest.raises(FaultError, match="give two numbers from 2 to 17 voxels"):
        PressedWinding.between(*wrong)
