import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.geometry.boxes import Box
from vcmodels.phantom.scroll import Scatter, Waves, draw, positions, white_noise

BOX = Box((-3, 5, 1000), (30, 40, 50))
SCATTER = Scatter(2, cell=9, chance=0.5, radii=(2.0, 7.0))
EVERYWHERE = list(SCATTER.balls_near(Box((-20, -20, -20), (65, 65, 65))))
starts = st.tuples(*[st.integers(-10, 25)] * 3)
shapes = st.tuples(*[st.integers(1, 9)] * 3)


@settings(deadline=None)
@given(starts, shapes)
def test_noise_is_a_function_of_the_position(start, shape):
    whole = Box((-10, -10, -10), (45, 45, 45))
    box = Box(start, shape)
    np.testing.assert_array_equal(white_noise(box, 7), white_noise(whole, 7)[box.slices(whole)])


def test_noise_is_white_and_nearly_normal():
    noise = white_noise(BOX, 3)
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert 0.65 < np.mean(np.abs(noise) < 1) < 0.70
    for axis in range(3):
        assert abs(np.mean(noise * np.roll(noise, 1, axis))) < 0.02
        assert abs(np.mean(noise * np.flip(noise, axis))) < 0.02
    assert abs(np.mean(noise * white_noise(BOX, 4))) < 0.02
    swapped = white_noise(Box((5, -3, 1000), (40, 30, 50)), 3).swapaxes(0, 1)
    assert abs(np.mean(noise * swapped)) < 0.02


def test_draws_are_uniform_and_differ_in_every_argument():
    values = np.array([draw(1, z, y, 0) for z in range(-20, 20) for y in range(-20, 20)])
    assert len(set(values)) == values.size
    assert np.histogram(values, 10, (0, 1))[0].min() > 120
    assert draw(1, 2, 3) != draw(1, 3, 2) != draw(2, 2, 3)


def test_the_gradient_of_waves_is_their_slope():
    waves = Waves.random(5, 6, (20.0, 60.0), 3.0)
    z, y, x = positions(BOX)
    value, slopes = waves.value_and_gradient(z, y, x)
    np.testing.assert_allclose(value, waves.value(z, y, x))
    step = 1e-4
    for axis, slope in enumerate(slopes):
        shift = [step * (axis == a) for a in range(3)]
        ahead, behind = (
            waves.value(*(p + s * d for p, d in zip((z, y, x), shift, strict=True)))
            for s in (1, -1)
        )
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), atol=1e-6)
    assert waves.value(*positions(Box((0, 0, 0), (120, 120, 120)))).std() == pytest.approx(
        3, rel=0.3
    )


@settings(deadline=None)
@given(starts, shapes)
def test_every_ball_that_touches_a_box_is_found(start, shape):
    box = Box(start, shape)
    touching = [b for b in EVERYWHERE if b.reach().intersect(box).voxels]
    near = list(SCATTER.balls_near(box))
    assert [b for b in near if b.reach().intersect(box).voxels] == touching
