import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from vcmodels.geometry.symmetries import CUBE_SYMMETRIES, IDENTITY, mirror
from vcmodels.symmetry.signs import both_sides, directions, share_along

SPACING = (2.0, 1.0, 1.0)


@pytest.fixture
def field():
    rng = np.random.default_rng(0)
    image = gaussian_filter(rng.normal(size=(1, 24, 40, 36)), (0, 1.5, 1.5, 1.5))
    places = rng.integers(8, 16, (20, 3))
    units = rng.normal(size=(20, 3))
    return image, places, units / np.linalg.norm(units, axis=1, keepdims=True)


def test_a_vector_turned_about_gives_the_opposite_numbers(field):
    image, places, units = field
    there, back = (both_sides(image, places, s * units, SPACING) for s in (1, -1))
    np.testing.assert_allclose(there, -back, atol=1e-12)
    assert np.abs(there).max() > 1e-3


def test_an_image_that_rises_along_a_vector_is_higher_ahead():
    """In physical units: 2 along z and 1 along x are one way on these voxels."""
    z, _, x = np.meshgrid(*map(np.arange, (24, 30, 32)), indexing="ij")
    unit = np.array([[0.6, 0.0, 0.8]])
    image = (0.6 * 2 * z + 0.8 * x)[None]
    found = both_sides(image, np.array([[12, 15, 16]]), unit, SPACING)
    steps = np.repeat([2, 4, 6, 8, 12, 16], 3)
    np.testing.assert_allclose(found[0], steps, atol=1e-9)


def test_vectors_are_taken_where_they_count():
    vectors, counts = torch.zeros(3, 16, 16, 16), torch.zeros(16, 16, 16, dtype=torch.bool)
    rng = np.random.default_rng(0)
    vectors[1] = 5.0
    assert directions(torch.rand(1, 16, 16, 16), vectors, counts, SPACING, rng) is None
    counts[8, 8, 8] = counts[0, 0, 0] = True
    found = directions(torch.rand(1, 16, 16, 16), vectors, counts, SPACING, rng)
    np.testing.assert_allclose(found.vectors, [[0, 1, 0]])


def test_a_common_way_is_what_a_group_leaves_of_the_mean():
    rng = np.random.default_rng(0)
    vectors = torch.from_numpy(rng.normal([0, 3, 0], 1, (400, 3))).float()
    assert share_along(vectors, [IDENTITY]) > 0.95
    assert share_along(vectors, [IDENTITY, mirror(2), mirror(0)]) > 0.95
    assert share_along(vectors, [IDENTITY, mirror(1)]) < 0.75
    assert share_along(vectors, CUBE_SYMMETRIES) == 0.5
