import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcmodels.geometry.affine import index_affine
from vcmodels.geometry.alignment import align
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.gridmap import GridMap
from vcmodels.geometry.symmetries import CUBE_SYMMETRIES

SHAPE = (6, 7, 9)
OBLIQUE = index_affine(
    np.array([[0.8, -0.3, 0.1, -40], [0.25, 0.9, 0.2, 12], [-0.1, -0.2, 2.5, 7], [0, 0, 0, 1.0]])
)


def chain(turn: int, low: tuple[int, int, int], length: tuple[int, int, int]) -> GridMap:
    turned = GridMap.identity(SHAPE).turned(CUBE_SYMMETRIES[turn])
    return turned.cropped(Box(low, length))


@given(
    st.integers(0, 47), st.tuples(*[st.integers(-4, 4)] * 3), st.tuples(*[st.integers(1, 12)] * 3)
)
def test_a_grid_that_was_turned_and_cropped_is_found_again(turn, low, length):
    made = chain(turn, low, length)
    found = align(made.affine(OBLIQUE), made.shape, OBLIQUE, SHAPE)
    assert found.grid_map == made
    assert found.voxels < 1e-9
    assert found.millimeters < 1e-9
    box = Box(low, length).intersect(
        Box((0, 0, 0), GridMap.identity(SHAPE).turned(CUBE_SYMMETRIES[turn]).shape)
    )
    assert found.touches == bool(box.voxels)


def test_a_shift_of_less_than_a_voxel_is_measured():
    moved = np.array(OBLIQUE)
    moved[:3, 3] += 0.4 * moved[:3, 0]
    found = align(moved, SHAPE, OBLIQUE, SHAPE)
    assert found.grid_map.is_identity
    assert found.voxels == pytest.approx(0.4)
    assert found.millimeters == pytest.approx(0.4 * np.linalg.norm(OBLIQUE[:3, 0]))


def test_other_voxel_sizes_are_off_at_the_corners():
    finer = GridMap.identity(SHAPE).resampled((1, 1, 0.5))
    found = align(finer.affine(OBLIQUE), finer.shape, OBLIQUE, SHAPE)
    assert found.voxels > 3
