import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.fields.centreline import Centreline, line_through, trace

SHAPE = (120, 70, 80)


def helix(z):
    turn = 2 * np.pi * z / 60
    return np.stack([z, 35 + 14 * np.sin(turn), 40 + 14 * np.cos(turn)], axis=-1)


def tube(radius=4.2):
    z, y, x = np.mgrid[tuple(map(slice, SHAPE))]
    _, cy, cx = np.moveaxis(helix(z), -1, 0)
    return (y - cy) ** 2 + (x - cx) ** 2 < radius**2


def traced(mask, spacing=(1.0, 1.0, 1.0), **options):
    index = np.argwhere(mask)
    return trace(index, np.ones(len(index)), spacing, **{"most_gap": 20.0} | options)


def errors(line):
    return np.linalg.norm(line.points - helix(line.points[:, 0]), axis=1)


@pytest.mark.parametrize("radius", [4.2, 2.0, 1.1])
def test_the_line_of_a_helix_is_its_axis(radius):
    found = traced(tube(radius))
    assert found.line.axis == 0
    assert errors(found.line).max() < 0.5
    assert (found.share, found.strays) == (1, 0)
    assert found.line.length == pytest.approx(119 * np.hypot(1, 14 * 2 * np.pi / 60), rel=0.02)


def test_gaps_are_closed_and_what_lies_beside_is_left_out():
    mask = tube()
    mask[50:62] = False
    whole = mask.sum()
    mask[80:100, 60:68, 2:10] = True  # beside it
    mask[:9, 5:15, 5:15] = True
    found = traced(mask)
    assert errors(found.line).max() < 0.7
    assert found.share == pytest.approx(whole / mask.sum())


def test_pieces_further_apart_than_allowed_are_not_joined():
    mask = tube()
    mask[50:75] = False
    near, far = traced(mask, most_gap=20.0), traced(mask, most_gap=30.0)
    assert far.line.points[[0, -1], 0].tolist() == [0, 119]
    assert near.line.points[[0, -1], 0].tolist() == [0, 49]  # the heavier one
    assert near.share < 0.6


@settings(max_examples=20, deadline=None)
@given(
    st.permutations([0, 1, 2]),
    st.tuples(*[st.sampled_from([0.5, 1.0, 2.5])] * 3),
    st.tuples(*[st.booleans()] * 3),
)
def test_turning_the_volume_turns_the_line(order, spacing, flips):
    mask = tube(3.0)[:60, ::1, ::1]
    length = np.array(mask.shape)
    flipped = mask[tuple(slice(None, None, -1 if f else 1) for f in flips)].transpose(order)
    axis = int(np.argmax(np.array(order) == 0))
    there = traced(flipped, tuple(spacing[a] for a in order), axis=axis).line.points
    here = traced(mask, spacing, axis=0).line.points
    back = there[:, np.argsort(order)]
    back = np.where(flips, (length - 1) * spacing - back, back)
    back = back[np.argsort(back[:, 0])]
    np.testing.assert_allclose(back, here, atol=1e-6)


def test_an_oblique_rod_that_leaves_the_volume_keeps_its_line():
    z, y, x = np.mgrid[:50, :40, :90].astype(float)
    direction = np.array([0.5, 0.3, 1.0]) / np.linalg.norm([0.5, 0.3, 1.0])
    offset = np.stack([z - 20, y - 18, x - 44], axis=-1)
    beside = offset - (offset @ direction)[..., None] * direction
    found = traced(np.linalg.norm(beside, axis=-1) < 5)
    assert found.line.axis == 2
    away = found.line.points - [20, 18, 44]
    off = np.linalg.norm(away - (away @ direction)[:, None] * direction, axis=1)
    assert off[12:-12].max() < 0.3  # where no slice is cut by a face of the volume


def test_probabilities_move_the_middle():
    index = np.array([[z, 5, x] for z in range(9) for x in (10, 14)])
    weights = np.where(index[:, 2] == 10, 0.75, 0.25)
    found = trace(index, weights, (1.0, 1.0, 1.0), axis=0, most_gap=5.0)
    # The two columns do not touch: the heavier one is the object.
    np.testing.assert_allclose(found.line.points[:, 2], 10, atol=1e-9)
    index[:, 2] = np.where(index[:, 2] == 14, 11, 10)
    found = trace(index, weights, (1.0, 1.0, 1.0), axis=0, most_gap=5.0)
    np.testing.assert_allclose(found.line.points[:, 2], 10.25, atol=1e-9)


def test_pieces_are_those_of_scipy():
    from scipy.ndimage import label

    from vcmodels.fields.centreline import _parts

    mask = np.random.default_rng(0).random((9, 14, 11)) < 0.08
    expected = label(mask, np.ones((3, 3, 3)))[0][mask]
    found = _parts(np.argwhere(mask))
    pairs = set(zip(found.tolist(), expected.tolist(), strict=True))
    assert len(pairs) == len(set(found)) == expected.max()


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (tube()[:10], "mm long, less than 50"),
        (np.random.default_rng(1).random((60, 50, 40)) < 0.01, "only 1% of what was found"),
        (tube() | np.roll(tube(), 40, axis=2), "lies on one line"),
    ],
    ids=["short", "specks", "two"],
)
def test_what_is_no_line_is_said(mask, words):
    found = traced(mask)
    assert words in found.defect(50.0, 0.7, "mm")
    assert traced(tube()).defect(50.0, 0.7, "mm") is None


def test_nothing_has_no_line():
    assert traced(np.zeros((4, 5, 6), bool)) is None


@pytest.mark.parametrize("slices", [1, 2, 3, 4, 5])
def test_few_slices_have_a_line_too(slices):
    mask = np.zeros((9, 20, 30), bool)
    mask[2 : 2 + slices, 8:11, 4:7] = True
    line = traced(mask, axis=0).line
    np.testing.assert_allclose(line.points[:, 1:], [[9, 5]] * len(line.points), atol=1e-9)
    assert line.length >= slices - 1


def test_given_points_are_passed_through_in_their_order_along_the_axis():
    points = helix(np.array([40.0, 0.0, 10.0, 30.0, 20.0]))
    line = line_through(points)
    assert line.axis == 0
    near = np.linalg.norm(line.points[None] - points[:, None], axis=-1).min(axis=1)
    assert near.max() < 1e-9
    assert errors(line).max() < 0.5
    with pytest.raises(ValueError, match="place along the axis"):
        line_through(points[:1])


def test_a_line_goes_straight_on_beyond_its_ends():
    line = Centreline(0, np.array([[0.0, 0, 0], [1, 1, 0], [2, 2, 0], [3, 3, 1]]))
    np.testing.assert_allclose(line.extended((2.0, 0.0)).points[0], [-2, -2, 0])
    np.testing.assert_allclose(line.extended((0.0, 1.0)).points[-1], [4, 4, 2])


def test_a_large_object_takes_little_memory():
    index = np.argwhere(np.ones((60, 40, 30), bool)).astype(np.int32)
    weights = np.ones(len(index), np.float32)
    traced(tube())  # what is imported late does not count
    tracemalloc.start()
    try:
        trace(index, weights, (1.0, 1.0, 1.0), most_gap=20.0)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 250 * len(index)
