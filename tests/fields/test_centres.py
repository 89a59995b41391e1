"""Centres of instances against a slow, obvious version; patches against the whole."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from vcmodels.fields.instances import centre_heat, centre_offsets, heat_reach

LONGEST, SIGMA = (3, 4, 5), (0.8, 1.0, 0.6)
REACH = heat_reach(SIGMA)
MARGIN = tuple(a + b for a, b in zip(LONGEST, REACH, strict=True))


def padded(ids, known, margin):
    """A whole volume as a patch: nothing is known outside of it."""
    around = [(m, m) for m in margin]
    ids, known = np.pad(ids, around, constant_values=9), np.pad(known, around)
    return torch.from_numpy(ids.astype(np.float32))[None], torch.from_numpy(known)[None]


def pieces_by_hand(ids, known, longest, keep_cut):
    """[(voxels (n, 3), centre or None)], by `scipy.ndimage.label` for each id alone."""
    every = np.ones((3, 3, 3))
    outside = ndimage.binary_dilation(np.pad(~known, 1, constant_values=True), every)[
        1:-1, 1:-1, 1:-1
    ]
    for value in np.unique(ids[known & (ids != 0)]):
        numbers, count = ndimage.label((ids == value) & known, every)
        for k in range(1, count + 1):
            voxels = np.argwhere(numbers == k)
            is_long = (np.ptp(voxels, axis=0) + 1 > longest).any()
            is_cut = outside[numbers == k].any() and not keep_cut
            yield voxels, None if is_long or is_cut else voxels.mean(0)


def fields_by_hand(ids, known, longest, sigma, keep_cut):
    heat, offsets, valid = np.zeros(ids.shape), np.zeros((3, *ids.shape)), known.copy()
    places = np.stack(np.meshgrid(*(np.arange(n) for n in ids.shape), indexing="ij"))
    for voxels, centre in pieces_by_hand(ids, known, longest, keep_cut):
        at = tuple(voxels.T)
        if centre is None:
            valid[at] = False
            continue
        offsets[(slice(None), *at)] = (centre - voxels).T
        d = (places - centre.reshape(3, 1, 1, 1)) / np.reshape(sigma, (3, 1, 1, 1))
        near = (np.abs(d) <= 3 + 1e-9).all(0)
        heat = np.maximum(heat, np.exp(-0.5 * (d**2).sum(0)) * near)
    return heat * valid, offsets, valid


@st.composite
def volumes(draw):
    """Blobs of a few ids, some touching, some repeated, some ignored voxels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = tuple(draw(st.integers(1, 14)) for _ in range(3))
    ids = np.zeros(shape, np.int64)
    for _ in range(draw(st.integers(0, 14))):
        low = [rng.integers(0, n) for n in shape]
        size = [rng.integers(1, m + 2) for m in LONGEST]
        ids[tuple(slice(a, a + s) for a, s in zip(low, size, strict=True))] = rng.integers(0, 12)
    return ids, rng.random(shape) > draw(st.sampled_from([0, 0.02]))


@pytest.mark.parametrize("keep_cut", [False, True])
@settings(max_examples=60, deadline=None)
@given(volume=volumes())
def test_the_fields_are_those_of_the_slow_version(keep_cut, volume):
    ids, known = volume
    heat, counts = centre_heat(*padded(*volume, MARGIN), SIGMA, LONGEST, MARGIN, keep_cut=keep_cut)
    ways, also = centre_offsets(*padded(*volume, LONGEST), LONGEST, LONGEST, keep_cut=keep_cut)
    slow_heat, slow_ways, valid = fields_by_hand(ids, known, LONGEST, SIGMA, keep_cut)
    np.testing.assert_array_equal(counts[0], valid)
    np.testing.assert_array_equal(also[0], valid)
    np.testing.assert_allclose(heat[0], slow_heat, atol=1e-6)
    np.testing.assert_allclose(ways * also, slow_ways * valid, atol=1e-5)
    assert heat.dtype == ways.dtype == torch.float32


@pytest.mark.parametrize("keep_cut", [False, True])
@settings(max_examples=60, deadline=None)
@given(volume=volumes(), seed=st.integers(0, 2**32 - 1))
def test_a_patch_with_its_margin_gives_the_crop_of_the_whole_to_the_bit(keep_cut, volume, seed):
    rng = np.random.default_rng(seed)
    for margin, field in (
        (MARGIN, lambda i, k: centre_heat(i, k, SIGMA, LONGEST, MARGIN, keep_cut=keep_cut)),
        (LONGEST, lambda i, k: centre_offsets(i, k, LONGEST, LONGEST, keep_cut=keep_cut)),
    ):
        whole = padded(*volume, margin)
        wanted = field(*whole)
        for _ in range(8):
            low = [rng.integers(0, n) for n in volume[0].shape]
            part = tuple(
                slice(a, rng.integers(a, n) + 1) for a, n in zip(low, volume[0].shape, strict=True)
            )
            grown = tuple(slice(s.start, s.stop + 2 * m) for s, m in zip(part, margin, strict=True))
            found = field(*(array[(slice(None), *grown)] for array in whole))
            for one, other in zip(found, wanted, strict=True):
                assert torch.equal(one, other[(slice(None), *part)])


def test_one_id_in_two_places_has_two_centres_and_touching_ids_have_their_own():
    ids = np.zeros((9, 12, 14), np.int64)
    ids[2:5, 2:5, 2:5] = 7
    ids[2:5, 2:5, 9:12] = 7
    ids[5:7, 2:5, 2:5] = 3
    heat, valid = centre_heat(
        *padded(ids, np.ones(ids.shape, bool), MARGIN), SIGMA, LONGEST, MARGIN
    )
    assert valid.all()
    assert [tuple(p) for p in np.argwhere(heat[0].numpy() == 1)] == [(3, 3, 3), (3, 3, 10)]
    assert heat[0, 5, 3, 3] == heat[0, 6, 3, 3] == pytest.approx(np.exp(-0.5 * (0.5 / 0.8) ** 2))


@pytest.mark.parametrize("axis", range(3))
def test_a_piece_of_the_longest_extent_counts_and_one_voxel_more_does_not(axis):
    for more, wanted in ((0, True), (1, False)):
        ids = np.zeros((14, 14, 14), np.int64)
        size = [1, 1, 1]
        size[axis] = LONGEST[axis] + more
        ids[tuple(slice(4, 4 + s) for s in size)] = 5
        _, valid = centre_offsets(*padded(ids, np.ones(ids.shape, bool), LONGEST), LONGEST, LONGEST)
        assert valid[0, 4, 4, 4] == wanted
        assert valid.all() == wanted


@pytest.mark.parametrize("step", [*itertools.product((-1, 0, 1), repeat=3)], ids=str)
def test_a_piece_beside_an_unknown_voxel_has_no_centre(step):
    ids = np.zeros((7, 7, 7), np.int64)
    ids[3, 3, 3] = 1
    known = np.ones(ids.shape, bool)
    known[tuple(3 + s for s in step)] = False
    ways, valid = centre_offsets(*padded(ids, known, LONGEST), LONGEST, LONGEST)
    assert not valid[0, 3, 3, 3]
    assert (ways == 0).all()
