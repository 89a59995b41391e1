"""On planes and spheres whose place is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.postprocess.places import run_step, source_of, step_of
from vcmodels.errors import TaskError
from vcmodels.postprocess.thin import ThinStep

SHAPE = (34, 38, 42)
SPACING = (2.0, 1.0, 1.0)
INNER = (slice(4, -4),) * 3


def places(spacing=(1.0, 1.0, 1.0)):
    """(3, Z, Y, X): positions from the middle, in space."""
    grid = np.indices(SHAPE).astype(float)
    middle = (np.array(SHAPE) - 1) / 2
    return (grid - middle[:, None, None, None]) * np.array(spacing)[:, None, None, None]


def sheet(distance, thickness, seed, noise=0.1):
    """Probabilities of a sheet that fade over a voxel, with noise."""
    sharp = 1 / (1 + np.exp((np.abs(distance) - thickness / 2) / 0.35))
    noisy = sharp + np.random.default_rng(seed).normal(0, noise, SHAPE)
    return np.clip(noisy, 0, 1).astype(np.float32)


def thinned(values, folder, block=SHAPE, normals=None, spacing=(1.0, 1.0, 1.0), **keys):
    names, sources = {"mask": "sheet"}, {"mask": source_of(values, "binary")}
    if normals is not None:
        names["normals"] = "normals"
        sources["normals"] = source_of(normals.astype(np.float32), "normals")
    step = step_of(ThinStep, names, **keys)
    return run_step(step, sources, folder, block, spacing=spacing, unit="micrometer") == 255


def is_crossed(found, distance):
    """Whether a path by faces leads through what was found, from one side to the other."""
    regions = ndimage.label(~found)[0]
    sides = (np.unique(regions[side & ~found]) for side in (distance < -3, distance > 3))
    return bool(set.intersection(*(set(side.tolist()) for side in sides)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("thickness", [2, 3, 5])
@pytest.mark.parametrize(
    ("with_normals", "spacing"),
    [(False, (1.0, 1.0, 1.0)), (True, (1.0, 1.0, 1.0)), (True, SPACING)],
)
def test_a_plane_becomes_one_voxel_in_each_column(tmp_path, seed, thickness, with_normals, spacing):
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=3)
    normal /= np.linalg.norm(normal)
    distance = np.tensordot(normal, places(spacing), 1) + rng.uniform(-1, 1)
    steps = np.abs(normal * spacing)  # how much nearer a voxel along each axis is
    values = sheet(distance / steps.max(), thickness, seed)
    normals = np.broadcast_to(normal[:, None, None, None], (3, *SHAPE)) if with_normals else None
    found = thinned(values, tmp_path, normals=normals, spacing=spacing)[INNER]
    distance = distance[INNER] / steps.max()
    columns = np.moveaxis(distance, steps.argmax(), 0)
    crossing = (columns.min(0) < -1) & (columns.max(0) > 1)
    counts = np.moveaxis(found, steps.argmax(), 0).sum(0)[crossing]
    assert counts.min() == 1
    # With noise, planes between two axes have a second voxel here and there.
    assert counts.mean() < 1.06
    assert np.abs(distance[found]).mean() < 0.5
    assert not is_crossed(found, distance)


@pytest.mark.parametrize("thickness", [2, 3, 5])
def test_a_sphere_becomes_a_closed_surface_near_its_own(tmp_path, thickness):
    distance = np.linalg.norm(places() + 0.3, axis=0) - 12.4
    found = thinned(sheet(distance, thickness, thickness), tmp_path)
    assert np.abs(distance[found]).mean() < 0.5
    near = ndimage.binary_dilation(found, np.ones((3, 3, 3)))
    assert near[np.abs(distance) < 0.5].mean() > 0.99
    assert not is_crossed(found, distance)
    # Fewer voxels than the area has: a column of a slanted face covers more than 1.
    assert found.sum() < 4 * np.pi * 12.4**2


@settings(max_examples=6, deadline=None)
@given(
    block=st.tuples(*(st.integers(11, 42),) * 3),
    with_normals=st.booleans(),
    keys=st.sampled_from([{}, {"sigma": 0.7, "threshold": 0.3}, {"sigma_um": 1.0}]),
)
def test_blocks_do_not_show(tmp_path_factory, block, with_normals, keys):
    place = places(SPACING)
    distance = np.linalg.norm(place, axis=0) - 14
    normals = place / np.maximum(np.linalg.norm(place, axis=0), 1e-9) if with_normals else None
    values = sheet(distance, 4, 0, noise=0.3)
    values[3, 4, 5] = np.nan
    folder = tmp_path_factory.mktemp("t")
    whole = thinned(values, folder / "whole", normals=normals, spacing=SPACING, **keys)
    found = thinned(values, folder / "blocks", block, normals=normals, spacing=SPACING, **keys)
    np.testing.assert_array_equal(found, whole)
    assert whole.any()


def test_a_sheet_at_the_border_stays(tmp_path):
    values = np.zeros(SHAPE, np.float32)
    values[:3], values[-2:] = 1, 1
    found = thinned(values, tmp_path)
    assert found.any(axis=0).all()
    assert (found.sum(axis=0) <= 2).all()


def test_too_wide_a_smoothing_is_refused():
    step = step_of(ThinStep, "sheet", sigma_um=40.0)
    source = {"mask": source_of(np.zeros(SHAPE, np.float32), "binary")}
    with pytest.raises(TaskError, match=r"40 is more than 16 voxels of 2; give at most 32"):
        step.check(source, (2.0, 2.0, 4.0), "micrometer")
    with pytest.raises(TaskError, match='no unit of length; give "sigma", in voxels'):
        step.check(source, (2.0, 2.0, 4.0), None)
