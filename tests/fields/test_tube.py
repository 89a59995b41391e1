import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.fields.centreline import Centreline, line_through
from vcmodels.fields.tube import Tube

SPACING = (2.0, 0.7, 1.1)
LINE = line_through(np.array([[4.0, 10, 20], [20, 18, 14], [40, 12, 30], [60, 20, 22.0]]))


def true_distance(origin, shape, line):
    """To the segments of the line, one by one."""
    spots = np.stack(
        np.mgrid[tuple(slice(o, o + n) for o, n in zip(origin, shape, strict=True))], -1
    )
    spots = spots * np.array(SPACING)
    best = np.full(shape, np.inf)
    for a, b in zip(line.points[:-1], line.points[1:], strict=True):
        share = np.clip((spots - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        best = np.minimum(best, np.linalg.norm(spots - a - share[..., None] * (b - a), axis=-1))
    return best


def test_the_tube_is_all_voxels_within_the_radius():
    origin, shape = (-3, -2, 1), (40, 50, 45)
    mask = Tube(LINE, 6.0).mask(origin, shape, SPACING)
    distance = true_distance(origin, shape, LINE)
    certain = np.abs(distance - 6.0) > 0.01
    np.testing.assert_array_equal(mask[certain], distance[certain] < 6.0)
    assert 0 < mask.sum() < mask.size


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.integers(-9, 60)] * 3),
    st.tuples(*[st.integers(1, 20)] * 3),
    st.sampled_from([0.1, 3.0, 25.0]),
)
def test_a_box_is_cut_from_the_whole(origin, shape, radius):
    tube = Tube(LINE, radius)
    low, size = (-9, -9, -9), (90, 90, 90)
    cut = tuple(slice(o - a, o - a + n) for o, a, n in zip(origin, low, shape, strict=True))
    whole = tube.mask(low, size, SPACING)
    np.testing.assert_array_equal(tube.mask(origin, shape, SPACING), whole[cut])


def test_all_of_it_lies_in_its_reach():
    tube = Tube(LINE, 6.0)
    low, high = tube.reach()
    spots = np.argwhere(tube.mask((-9, -9, -9), (90, 90, 90), SPACING)) - 9
    places = spots * np.array(SPACING)
    assert (places >= low).all()
    assert (places <= high).all()
    # The round cap may fall between two slices, and its tip between the voxels of one.
    assert (places.min(axis=0) - low <= 2 * np.array(SPACING)).all()
    assert (high - places.max(axis=0) <= 2 * np.array(SPACING)).all()


def test_a_short_line_is_a_ball():
    line = Centreline(0, np.array([[9.9, 10, 10], [10.1, 10, 10]]))
    mask = Tube(line, 3.3).mask((0, 0, 0), (21, 22, 23), (1.0, 1.0, 1.0))
    z, y, x = np.mgrid[:21, :22, :23]
    expected = (z - 10) ** 2 + (y - 10) ** 2 + (x - 10) ** 2
    np.testing.assert_array_equal(mask[expected != 11], (expected < 11)[expected != 11])
