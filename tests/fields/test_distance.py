"""Distances against SciPy on the grid of faces, where every nearest point of a box lies."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vcmodels.fields.distance import inner, known_distance, surface_distance, voxels_within
from vcmodels.geometry.symmetries import CUBE_SYMMETRIES

SPACINGS = ((1.0, 1.0, 1.0), (2.0, 0.5, 1.0), (0.3, 0.3, 0.7))


def distance_to(boxes, spacing):
    """From each centre to the nearest true voxel, as a closed box.

    The point of a box that is nearest to a centre has coordinates that are centres or faces.
    """
    fine = np.zeros([2 * n + 1 for n in boxes.shape], bool)
    for z, y, x in np.argwhere(boxes):
        fine[2 * z : 2 * z + 3, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3] = True
    if not fine.any():
        return np.full(boxes.shape, np.inf)
    return ndimage.distance_transform_edt(~fine, np.asarray(spacing) / 2)[1::2, 1::2, 1::2]


def distances_by_hand(ids, known, spacing, reach):
    distance = np.full(ids.shape, np.inf)
    for value in np.unique(ids[known]):
        own = known & (ids == value)
        distance[own] = distance_to(known & (ids != value), spacing)[own]
    # Outside of the volume nothing is known.
    around = np.pad(~known, 1, constant_values=True)
    wide = np.pad(around, 1, constant_values=True)
    to_unknown = inner(torch.from_numpy(distance_to(wide, spacing)), (2, 2, 2)).numpy()
    certain = known & ((distance < to_unknown - 1e-6) | (to_unknown > reach - 1e-6))
    return np.where(certain, np.minimum(distance, reach), 0), certain


def padded(ids, known, margin):
    around = [(m, m) for m in margin]
    ids, known = np.pad(ids, around, constant_values=3), np.pad(known, around)
    return torch.from_numpy(ids.astype(np.float32))[None], torch.from_numpy(known)[None]


@st.composite
def volumes(draw, most=9, ids=4):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = tuple(draw(st.integers(1, most)) for _ in range(3))
    values = np.zeros(shape, np.int64)
    for _ in range(draw(st.integers(0, 6))):
        low = [rng.integers(0, n) for n in shape]
        size = rng.integers(1, 5, 3)
        values[tuple(slice(a, a + s) for a, s in zip(low, size, strict=True))] = rng.integers(
            0, ids
        )
    return values, rng.random(shape) > draw(st.sampled_from([0, 0.02, 0.3]))


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
@settings(max_examples=40, deadline=None)
@given(volume=volumes(), reach=st.floats(0.1, 4))
@example(volume=(np.zeros((1, 1, 2), int), np.array([[[True, False]]])), reach=0.49)
def test_distances_are_those_of_scipy(spacing, volume, reach):
    margin = voxels_within(reach, spacing)
    distance, certain = known_distance(*padded(*volume, margin), spacing, reach)
    wanted, also = distances_by_hand(*volume, spacing, reach)
    np.testing.assert_array_equal(certain[0], also)
    np.testing.assert_allclose(distance[0], wanted, atol=1e-5)


@pytest.mark.parametrize("axis", range(3))
def test_a_flat_face_is_half_a_voxel_from_both_sides(axis):
    spacing = (2.0, 0.5, 1.0)
    reach = 2.2 * spacing[axis]
    margin = voxels_within(reach, spacing)
    shape = [1 + 2 * m for m in margin]
    shape[axis] += 5
    ids = np.indices(shape)[axis] >= 3 + margin[axis]
    found = surface_distance(torch.from_numpy(ids), spacing, reach).flatten() / spacing[axis]
    torch.testing.assert_close(found, torch.tensor([2.2, 1.5, 0.5, 0.5, 1.5, 2.2]))


@settings(max_examples=20, deadline=None)
@given(volume=volumes(most=12), seed=st.integers(0, 2**31))
def test_a_patch_with_its_margin_gives_the_crop_of_the_whole_to_the_bit(volume, seed):
    rng = np.random.default_rng(seed)
    spacing, reach = (0.7, 0.3, 0.4), 1.3
    margin = voxels_within(reach, spacing)
    whole = padded(*volume, margin)
    wanted = known_distance(*whole, spacing, reach)
    for _ in range(6):
        low = [rng.integers(0, n) for n in volume[0].shape]
        part = tuple(
            slice(a, rng.integers(a, n) + 1) for a, n in zip(low, volume[0].shape, strict=True)
        )
        grown = tuple(slice(s.start, s.stop + 2 * m) for s, m in zip(part, margin, strict=True))
        found = known_distance(*(a[(slice(None), *grown)] for a in whole), spacing, reach)
        for one, other in zip(found, wanted, strict=True):
            assert torch.equal(one, other[(slice(None), *part)])


def test_every_symmetry_of_the_volume_is_one_of_the_distances_to_the_bit():
    ids = np.random.default_rng(0).integers(0, 3, (8, 9, 10)) // 2
    margin = voxels_within(2.0, (1.0, 1.0, 1.0))
    around = [(m, m) for m in margin]
    ids = np.pad(ids, around).astype(np.float32)
    found = surface_distance(torch.from_numpy(ids), (1.0, 1.0, 1.0), 2.0).numpy()
    for symmetry in CUBE_SYMMETRIES:
        turned = torch.from_numpy(symmetry(ids).copy())
        again = surface_distance(turned, (1.0, 1.0, 1.0), 2.0)
        np.testing.assert_array_equal(again, symmetry(found))


@pytest.mark.parametrize(
    ("reach", "spacing", "wanted"),
    [(2.0, (1.0, 1.0, 1.0), 2), (0.4, (1.0, 1.0, 1.0), 0), (0.3, (0.2, 0.2, 0.2), 2)],
)
def test_the_margin_is_as_wide_as_the_reach_and_no_wider(reach, spacing, wanted):
    assert voxels_within(reach, spacing) == (wanted,) * 3
