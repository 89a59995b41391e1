"""Maps between grids against arrays that are turned, cut and padded, and against world coordinates."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcmodels.geometry.affine import spacing_of
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.gridmap import GridMap
from vcmodels.geometry.symmetries import CUBE_SYMMETRIES, Symmetry

shapes = st.tuples(*[st.integers(1, 9)] * 3)
symmetries = st.sampled_from(CUBE_SYMMETRIES)
factors = st.tuples(*[st.floats(0.3, 3.5)] * 3)


@st.composite
def boxes(draw, shape):
    """Boxes that may lie partly outside."""
    low = [draw(st.integers(-3, n)) for n in shape]
    return Box(tuple(low), tuple(draw(st.integers(1, n + 3)) for n in shape))


@st.composite
def chains(draw, with_resampling):
    grid = GridMap.identity(draw(shapes))
    for kind in draw(st.lists(st.sampled_from(["crop", "turn", "resample"]), max_size=6)):
        if kind == "crop":
            grid = grid.cropped(draw(boxes(grid.shape)))
        elif kind == "turn":
            grid = grid.turned(draw(symmetries))
        elif with_resampling:
            grid = grid.resampled(draw(factors))
    return grid


def positions(grid, indices):
    """Where voxels (n, 3) of the derived grid lie in the source."""
    matrix = np.array(grid.matrix)
    return indices @ matrix[:, :3].T + matrix[:, 3]


def some_indices(shape):
    return np.random.default_rng(0).integers(0, shape, (20, 3))


def gathered(grid, array):
    """The derived array of an exact map, voxel by voxel; -1 outside of the source."""
    out = np.full(grid.shape, -1, array.dtype)
    for index in np.ndindex(grid.shape):
        at = positions(grid, np.array(index))
        assert np.array_equal(at, np.round(at))
        if all(0 <= p < n for p, n in zip(at, array.shape, strict=True)):
            out[index] = array[tuple(at.astype(int))]
    return out


@given(chains(with_resampling=True))
def test_there_and_back_is_the_identity(grid):
    both = grid.then(grid.inverse())
    assert both.source == both.shape == grid.source
    np.testing.assert_allclose(both.matrix, np.eye(3, 4), atol=1e-9)
    assert grid.inverse().inverse().shape == grid.shape
    at = some_indices(grid.shape)
    np.testing.assert_allclose(positions(grid.inverse(), positions(grid, at)), at, atol=1e-9)


@given(chains(with_resampling=False))
def test_chains_without_resampling_are_exact_both_ways(grid):
    assert grid.is_exact
    both = grid.then(grid.inverse())
    assert both.is_identity
    assert both.matrix == GridMap.identity(grid.source).matrix


@given(shapes, st.data())
def test_exact_steps_move_voxels_as_numpy_does(shape, data):
    array = np.arange(np.prod(shape)).reshape(shape)
    symmetry = data.draw(symmetries)
    turned = GridMap.identity(shape).turned(symmetry)
    np.testing.assert_array_equal(gathered(turned, array), symmetry(array))
    assert turned.shape == symmetry.turned_shape(shape)
    box = data.draw(boxes(turned.shape))
    pads = [(3, 12)] * 3
    padded = np.pad(symmetry(array), pads, constant_values=-1)
    expected = padded[Box(tuple(o + 3 for o in box.origin), box.shape).slices()]
    np.testing.assert_array_equal(gathered(turned.cropped(box), array), expected)


@given(st.lists(symmetries, min_size=1, max_size=4))
def test_vectors_turn_as_the_gradient_does(turns):
    field = np.random.default_rng(0).normal(size=(6, 7, 8))
    grid, turned = GridMap.identity(field.shape), field
    for symmetry in turns:
        grid, turned = grid.turned(symmetry), symmetry(turned)
    moved = grid.symmetry(np.stack(np.gradient(field)))
    vectors = np.einsum("ik,i...->k...", grid.symmetry.matrix, moved)
    np.testing.assert_array_equal(vectors, np.stack(np.gradient(turned)))


@given(shapes, factors)
def test_resampling_keeps_the_first_edge_and_loses_no_half_voxel(shape, factors):
    grid = GridMap.identity(shape).resampled(factors)
    for axis, (n, f) in enumerate(zip(shape, factors, strict=True)):
        centres = grid.centres(axis, 0, grid.shape[axis])
        assert centres[0] - f / 2 == pytest.approx(-0.5)
        end = centres[-1] + f / 2 + 0.5
        assert abs(end - n) <= f / 2 + 1e-9 or grid.shape[axis] == 1
    assert grid.factors == pytest.approx(factors)


def test_halving_puts_a_voxel_between_two():
    grid = GridMap.identity((4, 5, 6)).resampled((2, 1, 0.5))
    assert grid.shape == (2, 5, 12)
    np.testing.assert_allclose(grid.centres(0, 0, 2), [0.5, 2.5])
    np.testing.assert_allclose(grid.centres(2, 0, 3), [-0.25, 0.25, 0.75])
    assert not grid.is_exact
    assert grid.spacing((1.0, 3.0, 2.0)) == (2.0, 3.0, 1.0)


@given(chains(with_resampling=True))
def test_the_world_place_of_a_voxel_stays_the_same(grid):
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.7, 0.8, 2.5])
    affine[:3, 3] = [-10, 20, 5]
    at = some_indices(grid.shape)
    derived = grid.affine(affine)
    there = positions(grid, at)
    np.testing.assert_allclose(
        at[:, ::-1] @ derived[:3, :3].T + derived[:3, 3],
        there[:, ::-1] @ affine[:3, :3].T + affine[:3, 3],
        atol=1e-8,
    )
    np.testing.assert_allclose(grid.spacing((2.5, 0.8, 0.7)), spacing_of(derived))


@given(chains(with_resampling=True), st.data())
def test_holding_are_the_voxels_with_their_centres_in_the_box(grid, data):
    box = data.draw(boxes(grid.source))
    indices = np.array(list(np.ndindex(grid.shape)))
    at = positions(grid, indices)
    low, high = np.array(box.origin) - 0.5, np.array(box.end) - 0.5
    gap = np.minimum(np.abs(at - low), np.abs(at - high)).min()
    if gap < 1e-6:  # a centre on a face: rounding decides
        return
    inside = ((at > low) & (at < high)).all(1)
    found = grid.holding(box)
    assert found.voxels == inside.sum()
    if found.voxels:
        np.testing.assert_array_equal(indices[inside].min(0), found.origin)
        np.testing.assert_array_equal(indices[inside].max(0) + 1, found.end)


@given(chains(with_resampling=True))
def test_json_round_trip(grid):
    assert GridMap.from_json(json.loads(json.dumps(grid.to_json()))) == grid


@pytest.mark.parametrize(
    "change",
    [
        {"matrix": [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]},
        {"matrix": [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]},
        {"matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]},
        {"shape": [0, 1, 1]},
        {"shape": None},
    ],
)
def test_what_is_no_map_is_refused(change):
    stored = GridMap.identity((2, 3, 4)).to_json()
    with pytest.raises(ValueError, match="map"):
        GridMap.from_json({**stored, **change})


def test_steps_of_another_grid_are_refused():
    grid = GridMap.identity((2, 3, 4))
    with pytest.raises(ValueError, match="cannot follow"):
        grid.then(GridMap.identity((2, 3, 5)))
    with pytest.raises(ValueError, match="empty"):
        grid.cropped(Box((0, 0, 0), (0, 1, 1)))
    with pytest.raises(ValueError, match="above 0"):
        grid.resampled((1, 0, 1))


def test_symmetry_is_that_of_the_last_turn():
    symmetry = Symmetry((2, 0, 1), (True, False, True))
    grid = GridMap.identity((5, 6, 7)).resampled((2, 1, 3)).turned(symmetry)
    assert grid.symmetry == symmetry
    assert grid.factors == (3, 2, 1)
