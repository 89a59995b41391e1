import nibabel
import numpy as np
import pytest

from vcmodels.geometry.affine import (
    axis_codes,
    edge_codes,
    flipped_world,
    index_affine,
    is_square,
    offset_of,
    opposite_codes,
    spacing_of,
)


def turned(seed: int) -> np.ndarray:
    """A grid with unequal voxels, turned in any way, and mirrored for odd seeds."""
    rng = np.random.default_rng(seed)
    steps = np.linalg.qr(rng.normal(size=(3, 3)))[0] * (0.5, 1.5, 4.0)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = steps * (1, 1, (-1) ** seed), rng.normal(size=3)
    return affine


@pytest.mark.parametrize("seed", range(40))
def test_codes_are_those_of_nibabel(seed):
    affine = turned(seed)
    assert axis_codes(affine) == "".join(nibabel.aff2axcodes(affine))


def test_the_spinal_cord_toolbox_calls_las_rpi():
    assert axis_codes(np.diag([-1.0, 1, 1, 1])) == "LAS"
    assert opposite_codes("LAS") == "RPI"


def test_spacing_is_along_z_y_x():
    assert spacing_of(turned(3)) == pytest.approx((4.0, 1.5, 0.5))


def test_only_a_grid_along_the_world_has_an_offset():
    affine = np.diag([0.5, 1.5, 4, 1])
    affine[:3, 3] = 1, 2, 3
    assert offset_of(affine) == (3, 2, 1)
    assert offset_of(flipped_world(affine)) == (0, 0, 0)
    assert offset_of(turned(4)) == (0, 0, 0)


def test_the_affine_of_indices_gives_the_same_place_turned_round():
    affine = turned(5)
    x, y, z = (affine @ (3, 5, 7, 1))[:3]
    np.testing.assert_allclose(index_affine(affine) @ (7, 5, 3, 1), (z, y, x, 1))


def test_a_sheared_grid_is_not_square():
    affine = turned(6)
    assert is_square(affine)
    affine[:3, 1] += 0.01 * affine[:3, 0]
    assert not is_square(affine)


@pytest.mark.parametrize(("axis", "edges"), [(0, "PARL"), (1, "ISRL"), (2, "ISPA")])
def test_the_edges_of_a_slice_are_named_as_the_axes_run(axis, edges):
    affine = np.diag([-1.0, 2, 3, 1])  # LAS: x runs to the left, y to the front, z up
    assert "".join(edge_codes(affine, axis)) == edges
