import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vcmodels.geometry.boxes import Box
from vcmodels.geometry.coordinates import coordinates, with_coordinates

places = st.tuples(*[st.integers(-9, 9)] * 3)
shapes = st.tuples(*[st.integers(1, 6)] * 3)


@given(places, shapes, shapes)
def test_each_voxel_says_where_it_lies_also_outside(origin, shape, extent):
    found = coordinates(Box(origin, shape), extent)
    assert (found.dtype, found.shape) == (np.float32, (3, *shape))
    for offset in np.ndindex(shape):
        for axis in range(3):
            middle = origin[axis] + offset[axis] + 0.5
            wanted = middle / extent[axis] * 2 - 1
            np.testing.assert_allclose(found[axis][offset], wanted, rtol=1e-6, atol=1e-6)


@given(places, shapes, shapes)
def test_a_voxel_has_the_same_bits_in_any_box(origin, shape, extent):
    box = Box(origin, shape)
    wide = Box.between([o - 2 for o in box.origin], [e + 3 for e in box.end])
    part = coordinates(wide, extent)[(slice(None), *box.slices(wide))]
    np.testing.assert_array_equal(coordinates(box, extent), part)


def test_the_faces_of_a_volume_are_at_one_and_minus_one():
    extent = (4, 5, 10)
    found = coordinates(Box((0, 0, 0), extent), extent)
    for axis, n in enumerate(extent):
        ends = found[axis].take([0, -1], axis)
        np.testing.assert_allclose(np.unique(ends), [1 / n - 1, 1 - 1 / n], rtol=1e-6)


def test_each_image_is_followed_by_its_coordinates():
    box, extent = Box((1, 0, -1), (2, 3, 4)), (5, 6, 7)
    images = np.arange(4 * 24, dtype=np.float32).reshape(4, 2, 3, 4)
    found = with_coordinates(images, 2, box, extent)
    assert found.shape == (10, 2, 3, 4)
    np.testing.assert_array_equal(found[[0, 1, 5, 6]], images)
    for first in (2, 7):
        np.testing.assert_array_equal(found[first : first + 3], coordinates(box, extent))
