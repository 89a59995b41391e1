import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from surface_distance import lookup_tables

from vcmodels.fields.surfaces import corner_codes, surface_voxels, surfel_areas

SPACINGS = ((1.0, 1.0, 1.0), (2.0, 0.7, 1.3), (0.01, 5.0, 40.0))


@st.composite
def regions(draw):
    shape = tuple(draw(st.integers(1, 7)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.random(shape) < draw(st.sampled_from([0.3, 0.8]))


def long_axes(region):
    return tuple(axis for axis in range(3) if region.shape[axis] > 1)


def wide(region, before, after):
    return np.pad(region, [(before, after) if n > 1 else (0, 0) for n in region.shape])


@settings(max_examples=60, deadline=None)
@given(region=regions())
def test_a_surface_is_the_region_without_its_erosion_also_of_a_picture_or_a_line(region):
    found = surface_voxels(wide(region, 1, 1), long_axes(region))
    flat = region.squeeze()
    eroded = ndimage.binary_erosion(flat) if flat.ndim else flat
    np.testing.assert_array_equal(found, (flat & ~eroded).reshape(region.shape))


def their_code(code):
    """The code of the package `surface-distance` for one of ours."""
    kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    bits = [bit for bit in range(8) if code >> bit & 1]
    return sum(int(kernel[bit & 1, bit >> 1 & 1, bit >> 2]) for bit in bits)


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
def test_areas_are_those_of_the_package_that_made_surfels_known(spacing):
    theirs = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    wanted = [theirs[their_code(code)] for code in range(256)]
    found = surfel_areas(spacing)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert (found[1:255] > 0).all()


@settings(max_examples=60, deadline=None)
@given(region=regions())
def test_codes_are_those_of_a_correlation(region):
    found = corner_codes(wide(region, 1, 1), long_axes(region))
    # Along an axis of one voxel, both voxels of a corner are that one.
    cut = tuple(slice(1, None) for _ in range(3))
    thick = np.pad(wide(region, 1, 1), [(0, int(n == 1)) for n in region.shape], mode="edge")
    kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    wanted = ndimage.correlate(thick.astype(np.uint8), kernel, mode="constant")[cut]
    translated = np.array([their_code(code) for code in range(256)])[found]
    np.testing.assert_array_equal(translated, wanted)


@pytest.mark.parametrize("axis", range(3))
def test_the_area_around_a_corner_of_a_picture_is_the_length_of_its_contour(axis):
    spacing = (2.0, 0.7, 1.3)
    others = [length for a, length in enumerate(spacing) if a != axis]
    lengths = lookup_tables.create_table_neighbour_code_to_contour_length(others)
    for code in range(16):
        picture = np.array([code >> (3 - bit) & 1 for bit in range(4)], bool).reshape(2, 2)
        region = np.expand_dims(picture, axis)
        (found,) = corner_codes(region, [a for a in range(3) if a != axis]).ravel()
        area = surfel_areas(spacing)[found]
        assert area == pytest.approx(lengths[code] * spacing[axis], rel=1e-12)
