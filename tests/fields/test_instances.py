"""Affinities and boundaries against loops over voxels."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.fields.distance import voxels_within
from vcmodels.fields.instances import affinities, instance_boundaries, longest_offset

OFFSETS = ((-1, 0, 0), (0, 2, 0), (1, -1, 3), (0, 0, -5))


@st.composite
def volumes(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = tuple(draw(st.integers(1, 6)) for _ in range(3))
    return rng.integers(0, 4, shape), rng.random(shape) > draw(st.sampled_from([0, 0.05, 0.3]))


def padded(ids, known, margin):
    around = [(m, m) for m in margin]
    ids, known = np.pad(ids, around, constant_values=1), np.pad(known, around)
    return torch.from_numpy(ids.astype(np.float32))[None], torch.from_numpy(known)[None]


@settings(max_examples=40, deadline=None)
@given(volume=volumes())
def test_affinities_are_those_of_a_loop(volume):
    ids, known = volume
    label, valid = affinities(*padded(*volume, longest_offset(OFFSETS)), OFFSETS)
    assert label.shape == valid.shape == (len(OFFSETS), *ids.shape)
    for k, offset in enumerate(OFFSETS):
        for here in np.ndindex(*ids.shape):
            there = tuple(int(v) for v in np.add(here, offset))
            inside = all(0 <= p < n for p, n in zip(there, ids.shape, strict=True))
            counts = bool(inside and known[here] and known[there])
            assert valid[(k, *here)] == counts
            same = counts and ids[here] == ids[there] != 0
            assert label[(k, *here)] == float(same)


def boundary_by_loop(ids, known, width, spacing, with_background):
    """(is a boundary, is certain) for each voxel, by its distance to every other box around."""
    reach = [n + 1 for n in voxels_within(width, spacing)]
    result, valid = np.zeros(ids.shape, bool), known.copy()
    steps = list(itertools.product(*(range(-r, r + 1) for r in reach)))
    gaps = np.maximum(np.abs(steps) - 0.5, 0) * spacing
    near = [s for s, gap in zip(steps, gaps, strict=True) if np.linalg.norm(gap) <= width + 1e-6]
    for here in map(tuple, np.argwhere(known)):
        sees_unknown = False
        for step in near:
            there = tuple(int(v) for v in np.add(here, step))
            if (
                not all(0 <= p < n for p, n in zip(there, ids.shape, strict=True))
                or not known[there]
            ):
                sees_unknown = True
            elif ids[there] != ids[here] and (with_background or ids[here] * ids[there]):
                result[here] = True
        valid[here] = result[here] or not sees_unknown
    return result, valid


@pytest.mark.parametrize("with_background", [False, True])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.5, 1.0)], ids=["cubes", "slabs"])
@settings(max_examples=15, deadline=None)
@given(volume=volumes(), width=st.sampled_from([0.3, 0.5, 0.75, 1.0, 1.6]))
def test_boundaries_are_those_of_a_loop(with_background, spacing, volume, width):
    source = padded(*volume, voxels_within(width, spacing))
    label, valid = instance_boundaries(*source, width, spacing, with_background=with_background)
    wanted, certain = boundary_by_loop(*volume, width, spacing, with_background)
    np.testing.assert_array_equal(valid[0], certain)
    np.testing.assert_array_equal(label[0], wanted & certain)
