"""The cube symmetries against NumPy's own moves, np.gradient and the group axioms."""

import itertools

import numpy as np
import pytest

from vcmodels.geometry.symmetries import (
    CUBE_SYMMETRIES,
    IDENTITY,
    generated_group,
    mirror,
    quarter_turn,
)


def noise(shape=(6, 7, 8), channels=()):
    return np.random.default_rng(0).normal(size=(*channels, *shape))


def test_there_are_48_different_symmetries_and_the_first_is_the_identity():
    images = {symmetry(np.arange(27).reshape(3, 3, 3)).tobytes() for symmetry in CUBE_SYMMETRIES}
    assert len(images) == len(set(CUBE_SYMMETRIES)) == len({str(s) for s in CUBE_SYMMETRIES}) == 48
    assert CUBE_SYMMETRIES[0] == IDENTITY
    assert IDENTITY.is_identity


@pytest.mark.parametrize("symmetry", CUBE_SYMMETRIES, ids=str)
def test_matrix_turns_the_gradient_into_the_gradient_of_the_turned_field(symmetry):
    field = noise()
    gradient = np.stack(np.gradient(field))
    turned = np.einsum("ik,i...->k...", symmetry.matrix, symmetry(gradient))
    np.testing.assert_array_equal(turned, np.stack(np.gradient(symmetry(field))))


@pytest.mark.parametrize("symmetry", CUBE_SYMMETRIES, ids=str)
def test_inverse_and_shape(symmetry):
    array = noise(channels=(2,))
    turned = symmetry(array)
    assert turned.shape[1:] == symmetry.turned_shape((6, 7, 8))
    assert np.shares_memory(turned, array)
    np.testing.assert_array_equal(symmetry.inverse(turned), array)
    assert (symmetry @ symmetry.inverse).is_identity
    np.testing.assert_array_equal(symmetry.inverse.matrix, np.linalg.inv(symmetry.matrix))
    np.testing.assert_array_equal(symmetry.matrix.T @ symmetry.matrix, np.eye(3))


def test_composition_is_application_one_after_the_other():
    array = noise()
    for first, second in itertools.product(CUBE_SYMMETRIES, repeat=2):
        both = second @ first
        np.testing.assert_array_equal(both(array), second(first(array)))
        np.testing.assert_array_equal(both.matrix, first.matrix @ second.matrix)


@pytest.mark.parametrize("plane", list(itertools.permutations(range(3), 2)), ids=str)
def test_quarter_turn_is_rot90(plane):
    np.testing.assert_array_equal(quarter_turn(*plane)(noise()), np.rot90(noise(), axes=plane))


@pytest.mark.parametrize("axis", range(3))
def test_mirror_is_flip(axis):
    np.testing.assert_array_equal(mirror(axis)(noise()), np.flip(noise(), axis))


@pytest.mark.parametrize("plane", [(1, 1), (0, 3)], ids=str)
def test_a_plane_that_is_none_is_refused(plane):
    with pytest.raises(ValueError, match="two different axes"):
        quarter_turn(*plane)


@pytest.mark.parametrize(
    ("spacing", "count"),
    [((1, 1, 1), 48), ((5, 1, 1.005), 16), ((1, 1.02, 1), 16), ((1, 2, 3), 8)],
    ids=str,
)
def test_axes_are_exchanged_only_when_their_voxels_are_equal(spacing, count):
    lawful = [s for s in CUBE_SYMMETRIES if s.is_lawful(spacing)]
    assert len(lawful) == count
    for symmetry in lawful:
        assert np.allclose(symmetry.turned_shape(spacing), spacing, rtol=0.01)


def test_groups_generated_by_turns_and_mirrors():
    planes = [quarter_turn(0, 1), quarter_turn(1, 2)]
    rotations = generated_group(planes)
    assert len(rotations) == 24
    assert all(round(np.linalg.det(turn.matrix)) == 1 for turn in rotations)
    assert len(generated_group([quarter_turn(1, 2)])) == 4
    assert len(generated_group([*planes, mirror(0)])) == 48
    assert generated_group([]) == (IDENTITY,)
