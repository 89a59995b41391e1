"""Smoothing against SciPy, normals against those of planes, balls and sheets."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vcmodels.fields.distance import inner
from vcmodels.fields.normals import (
    FLATTEST,
    TRUNCATE,
    gaussian,
    gaussian_reach,
    normals_reach,
    smooth,
    structure,
    surface_normals,
)
from vcmodels.targets.vector_math import principal_axes

SLABS = (2.0, 0.5, 1.0)


@pytest.mark.parametrize("sigma", [(0.5, 1.0, 2.0), (0.7, 0.3, 1.4)], ids=str)
def test_a_gaussian_is_that_of_scipy(sigma):
    reach = gaussian_reach(sigma)
    field = np.random.default_rng(0).normal(
        size=[n + 2 * m for n, m in zip((6, 7, 8), reach, strict=True)]
    )
    radius = [int(np.ceil(TRUNCATE * s - 1e-6)) for s in sigma]
    wanted = ndimage.gaussian_filter(field, sigma, mode="constant", radius=radius)
    found = gaussian(torch.from_numpy(field), sigma)
    np.testing.assert_allclose(found, inner(torch.from_numpy(wanted), reach), atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_unknown_voxels_have_no_weight(seed):
    rng, sigma = np.random.default_rng(seed), (0.4, 0.6, 0.9)
    reach = gaussian_reach(sigma)
    shape = [n + 2 * m for n, m in zip((4, 5, 6), reach, strict=True)]
    field, known = rng.normal(size=shape), rng.random(shape) > 0.5
    above, below = (
        ndimage.gaussian_filter(a, sigma, mode="constant", radius=reach)
        for a in (field * known, known.astype(float))
    )
    junk = np.where(known, field, 1e9)
    found, here = smooth(torch.from_numpy(junk).float()[None], torch.from_numpy(known)[None], sigma)
    wanted = inner(torch.from_numpy(above / np.maximum(below, 1e-12)), reach)
    assert torch.equal(here[0], inner(torch.from_numpy(known), reach))
    torch.testing.assert_close(found[0][here[0]], wanted[here[0]].float(), atol=1e-5, rtol=1e-4)


def ball(spacing, radius, extent=22.0):
    """(a ball, the way from its centre to each voxel), in space."""
    places = [np.arange(-extent, extent + 1e-6, side) for side in spacing]
    offsets = np.stack(np.meshgrid(*places, indexing="ij"))
    return np.linalg.norm(offsets, axis=0) <= radius, offsets


@pytest.mark.parametrize("axial", [False, True])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 0.5, 0.5)], ids=["cubes", "slabs"])
def test_the_normals_of_a_ball_point_away_from_its_centre(axial, spacing):
    mask, offsets = ball(spacing, 7.3)
    sigma = 2.0 / min(spacing)  # a length of 2
    margin = normals_reach(sigma, spacing, axial=axial)
    source = torch.from_numpy(mask.astype(np.float32))[None]
    known = torch.ones_like(source, dtype=torch.bool)
    field, valid = (structure if axial else surface_normals)(source, known, sigma, spacing)
    normals = principal_axes(field) if axial else field
    away = inner(torch.from_numpy(offsets), margin).float()
    length = away.norm(dim=0)
    near = valid[0] & ((length - 7.3).abs() < 4)  # the middle of a ball has no axis
    cosine = ((normals * away).sum(0) / length)[near]
    cosine = cosine.abs() if axial else cosine
    assert valid.sum() > 1000
    # Voxels make steps: with a sigma of two of the longest, normals are right to a few degrees.
    assert cosine.mean() > np.cos(np.deg2rad(2.5))
    assert cosine.min() > np.cos(np.deg2rad(12))


def test_normals_are_known_within_two_sigmas_of_a_flat_face():
    sigma, spacing = 2.0, (0.5, 1.0, 1.0)  # sigma is two shortest sides: 1.0, two voxels along z
    margin = normals_reach(sigma, spacing, axial=False)
    mask = np.zeros([24 + 2 * margin[0], 1 + 2 * margin[1], 1 + 2 * margin[2]], np.float32)
    mask[12 + margin[0] :] = 1
    source = torch.from_numpy(mask)[None]
    known = torch.ones_like(source, dtype=torch.bool)
    normals, valid = surface_normals(source, known, sigma, spacing)
    assert np.flatnonzero(valid[0, :, 0, 0]).tolist() == list(range(8, 16))
    assert (normals[:, valid[0]] == torch.tensor([[-1.0], [0.0], [0.0]])).all()
    assert pytest.approx(0.054, abs=1e-3) == np.exp(-2) / np.sqrt(2 * np.pi) > FLATTEST


def test_a_thin_oblique_sheet_has_one_axis_through_and_through():
    normal = np.array([2.0, 1.0, -1.0]) / np.sqrt(6)
    grid = np.stack(np.meshgrid(*[np.arange(-14, 15)] * 3, indexing="ij"))
    height = np.einsum("c,czyx->zyx", normal, grid)
    source = torch.from_numpy((np.abs(height) <= 1.5).astype(np.float32))[None]
    known = torch.ones_like(source, dtype=torch.bool)
    margin = normals_reach(1.0, (1.0, 1.0, 1.0), axial=True)
    tensor, valid = structure(source, known, 1.0, (1.0, 1.0, 1.0))
    in_sheet = inner(source[0], margin) > 0
    assert valid[0][in_sheet].all()
    cosine = (principal_axes(tensor) * torch.from_numpy(normal).view(3, 1, 1, 1)).sum(0).abs()
    assert cosine[in_sheet].min() > np.cos(np.deg2rad(8))


def test_the_negative_distance_has_the_normals_of_the_mask():
    mask, offsets = ball((1.0, 1.0, 1.0), 7.3)
    signed = ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)
    source = torch.from_numpy(-signed.astype(np.float32))[None]
    known = torch.ones_like(source, dtype=torch.bool)
    normals, valid = surface_normals(source, known, 2.0, (1.0, 1.0, 1.0))
    away = inner(torch.from_numpy(offsets), normals_reach(2.0, (1.0, 1.0, 1.0), axial=False))
    length = away.norm(dim=0)
    near = valid[0] & ((length - 7.3).abs() < 2)
    assert ((normals * away).sum(0) / length)[near].mean() > np.cos(np.deg2rad(3))


def test_slopes_are_taken_in_space_and_not_by_the_voxel():
    grid = np.stack(np.meshgrid(*[np.arange(-20, 21)] * 3, indexing="ij"))
    normal = np.array([1.0, 2.0, -2.0]) / 3
    ramp = -np.einsum("c,czyx->zyx", normal * SLABS, grid)
    source = torch.from_numpy(ramp.astype(np.float32))[None]
    known = torch.ones_like(source, dtype=torch.bool)
    normals, valid = surface_normals(source, known, 1.0, SLABS)
    assert valid.all()
    wanted = torch.from_numpy(normal).float().view(3, 1, 1, 1).expand_as(normals)
    torch.testing.assert_close(normals, wanted, atol=1e-4, rtol=0)
