import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.geometry.boxes import Box
from vcmodels.pictures import planes
from vcmodels.pictures.planes import Readable, View, level_for, read_planes, readable_levels
from vcmodels.volumes import Pyramid, open_volume, write_volume

EXTENT = (11, 17, 23)
VALUES = np.random.default_rng(0).integers(0, 255, (2, *EXTENT)).astype(np.uint8)


def readable(values, unit=(4, 5, 6)):
    """An array, and the boxes that were read of it."""
    boxes = []

    def read(box):
        boxes.append(box)
        assert Box((0, 0, 0), values.shape[1:]).contains(box)
        return values[(slice(None), *box.slices())]

    return Readable(read, values.shape[1:], unit), boxes


@given(
    axis=st.integers(0, 2),
    lows=st.tuples(*(st.integers(0, n - 1) for n in EXTENT)),
    sizes=st.tuples(*(st.integers(1, n) for n in EXTENT)),
    unit=st.tuples(*(st.integers(1, n) for n in EXTENT)),
    most=st.integers(1, 40),
    data=st.data(),
)
@settings(max_examples=40)
def test_pixels_are_the_voxels_under_their_centres(axis, lows, sizes, unit, most, data):
    box = Box(lows, sizes).intersect(Box((0, 0, 0), EXTENT))
    view = View.of(axis, box, (1.0, 1.0, 1.0), most)
    start = box.origin[axis]
    at = data.draw(
        st.lists(st.integers(start, start + box.shape[axis] - 1), min_size=1, unique=True)
    )
    at.sort()
    source, _ = readable(VALUES, unit)
    found = list(read_planes(source, view, at))
    down, right = view.in_plane
    for position, plane in zip(at, found, strict=True):
        assert plane.shape == (2, view.height, view.width)
        for i in {0, view.height // 2, view.height - 1}:
            for j in {0, view.width // 2, view.width - 1}:
                voxel = [0, 0, 0]
                voxel[axis] = position
                voxel[down] = box.origin[down] + (2 * i + 1) * box.shape[down] / (2 * view.height)
                voxel[right] = box.origin[right] + (2 * j + 1) * box.shape[right] / (2 * view.width)
                # A centre on the border of two voxels may be given to either.
                near = [
                    VALUES[:, z, y, x]
                    for z in _under(voxel[0], axis == 0)
                    for y in _under(voxel[1], axis == 1)
                    for x in _under(voxel[2], axis == 2)
                ]
                assert any((plane[:, i, j] == one).all() for one in near)


def _under(place, is_index):
    if is_index:
        return [int(place)]
    return {int(np.floor(place - 1e-9)), int(np.floor(place + 1e-9))}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_full_slices_are_those_of_numpy(axis):
    source, _ = readable(VALUES)
    view = View.of(axis, Box((0, 0, 0), EXTENT), (1.0, 1.0, 1.0), 99)
    found = list(read_planes(source, view, range(EXTENT[axis])))
    np.testing.assert_array_equal(np.stack(found, axis + 1), VALUES)


def test_slices_of_one_chunk_are_read_at_once_and_no_further_than_needed():
    source, boxes = readable(VALUES, (4, 64, 64))
    list(read_planes(source, View.of(0, Box((0, 0, 0), EXTENT), (1, 1, 1), 99), [1, 2, 9]))
    read = [box for box in boxes if box.voxels > 1]
    assert [(box.origin[0], box.end[0]) for box in read] == [(1, 3), (9, 10)]


def test_memory_bounds_change_what_is_read_at_once_but_not_what_is_read(monkeypatch):
    view = View.of(0, Box((0, 0, 0), EXTENT), (1, 1, 1), 99)
    whole = list(read_planes(readable(VALUES, (64, 64, 64))[0], view, range(11)))
    monkeypatch.setattr(planes, "SLAB_BYTES", 3 * 2 * 17 * 23)
    monkeypatch.setattr(planes, "TILE", 8)
    source, boxes = readable(VALUES, (64, 4, 4))
    np.testing.assert_array_equal(list(read_planes(source, view, range(11))), whole)
    assert max(box.shape[0] for box in boxes) == 3
    assert max(box.shape[1] for box in boxes) <= 8


@pytest.mark.parametrize(
    ("axis", "spacing", "most", "least", "size"),
    [
        (0, (1, 1, 1), 99, 1, (17, 23)),
        (1, (5, 1, 1), 999, 1, (55, 23)),  # sections are five times as thick as pixels
        (2, (5, 1, 2), 999, 1, (55, 17)),
        (0, (1, 1, 1), 99, 40, (34, 46)),  # enlarged by a whole factor
        (0, (1, 1, 1), 10, 1, (7, 10)),
    ],
)
def test_pixels_are_square(axis, spacing, most, least, size):
    view = View.of(axis, Box((0, 0, 0), EXTENT), spacing, most, least)
    assert (view.height, view.width) == size


@pytest.fixture
def pyramid(tmp_path):
    rng = np.random.default_rng(1)
    values = rng.integers(0, 255, (1, 32, 48, 40)).astype(np.uint8)
    place = tmp_path / "p.zarr"
    write_volume(str(place), values[0], chunks=(16, 16, 16), pyramid=Pyramid(2))
    return open_volume(str(place))


@pytest.mark.parametrize(
    ("most", "step", "level"), [(48, 1, 0), (24, 2, 1), (24, 1, 0), (12, 4, 2), (12, 2, 1)]
)
def test_the_level_has_a_voxel_for_each_pixel_and_slice(pyramid, most, step, level):
    levels = readable_levels(pyramid)
    assert len(levels) == 3
    view = View.of(0, pyramid.box, (1.0, 1.0, 1.0), most)
    assert level_for(levels, view, step) is levels[level]


def test_a_coarse_level_shows_the_same_place(pyramid):
    _, coarse, _ = readable_levels(pyramid)
    view = View.of(1, pyramid.box, (1.0, 1.0, 1.0), 20)
    assert view.step == 2
    (found,) = read_planes(coarse, view, [10])
    whole = pyramid.read(pyramid.box)[0].astype(float)
    wanted = whole.reshape(16, 2, 24, 2, 20, 2).mean((1, 3, 5))[:, 5]
    np.testing.assert_allclose(found[0], wanted, atol=1)
