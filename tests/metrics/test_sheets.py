"""Pairs of sheets against brute force, and against planes whose spacing is known."""

from itertools import takewhile

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tests.metrics.blocks import MemoryPair, figures, instances, measured
from vcmodels.geometry.boxes import Box
from vcmodels.metrics.sheets import PLANE_RADIUS, SheetPairs, SheetScene

METRIC = SheetPairs(compares=("masks", "instances"))
SHAPE = (18, 20, 21)


def sheets_of(shape, normal, pitch, thickness, spacing=(1, 1, 1)):
    """Parallel sheets with ids from 1: labels and the distance from the middle of the nearest."""
    scale = np.asarray(spacing) / min(spacing)
    normal = np.asarray(normal) / np.linalg.norm(normal)
    place = np.indices(shape) * scale[:, None, None, None]
    phase = np.tensordot(normal, place, 1) / pitch + 20.3
    wrap = np.rint(phase)
    distance = np.abs(phase - wrap) * pitch
    return np.where(distance <= thickness / 2, wrap, 0).astype(np.int64), distance


def of_mask(predicted, ids, valid=None, spacing=(1.0, 1.0, 1.0)):
    valid = np.ones(ids.shape, bool) if valid is None else valid
    probability = predicted.astype(np.float32)[None]
    return MemoryPair("masks", probability, ids[None].astype(np.float32), valid[None], spacing)


NORMALS = [(0, 1, 1), (1, 2, -2), (3, 1, 1), (-1, 0.3, 0.2)]


@pytest.mark.parametrize("normal", NORMALS, ids=str)
@pytest.mark.parametrize("pitch", [2.5, 3.5, 4.5, 5.5])
def test_planes_have_the_spacing_that_they_were_made_with(normal, pitch):
    shape = (22, 24, 26)
    ids, _ = sheets_of(shape, normal, pitch, 0.6 * pitch)
    scene = SheetScene.read(
        of_mask(ids > 0, ids), Box((0, 0, 0), shape).grow((16, 16, 16)), np.ones(3)
    )
    places = scene.labelled((20, 20, 20))
    planes = scene.planes(places)
    cosine = np.abs(planes.normal @ normal) / np.linalg.norm(normal)
    assert cosine[planes.is_flat].min() > np.cos(np.radians(3))
    spacing = scene.crossings(places, 10.7).spacing
    assert spacing.size > 200
    # Voxels lie on a lattice: a mean over a small ball is half a voxel off, at most.
    assert np.abs(spacing - pitch).max() < 0.6
    assert abs(spacing.mean() - pitch) < 0.12


def test_unequal_voxels_are_measured_in_those_of_the_finest_axis():
    shape, spacing = (20, 30, 32), (3.0, 1.5, 1.5)
    ids, _ = sheets_of(shape, (1, 2, 2), 5.5, 3.3, spacing)
    part = measured(METRIC, of_mask(ids > 0, ids, spacing=spacing), shape)
    assert part["pairs"][3] > 0.85 * part["pairs"].sum() > 500


@pytest.mark.parametrize("normal", [(1, 0, 0), *NORMALS[:2]], ids=str)
def test_what_is_kept_apart_is_resolved_and_what_is_filled_or_lost_is_not(normal):
    ids, distance = sheets_of((20, 22, 24), normal, 4.4, 2.4)
    assert METRIC.figures(measured(METRIC, of_mask(ids > 0, ids), (20, 22, 24)))["resolved"] > 0.99
    for wrong in (np.ones_like(ids), np.zeros_like(ids), (ids > 0) & (ids % 2 > 0)):
        found = METRIC.figures(measured(METRIC, of_mask(wrong, ids), (20, 22, 24)))
        assert found["resolved"] == found["resolved_4_5"] == 0
    thin = METRIC.figures(measured(METRIC, of_mask(distance < 0.9, ids), (20, 22, 24)))
    assert thin["resolved"] > 0.85


def test_ids_resolve_sheets_that_touch_and_a_mask_does_not():
    ids, _ = sheets_of((18, 20, 22), (1, 0.2, 0), 3.4, 3.4)
    assert (ids > 0).all()
    block = (18, 20, 22)
    assert METRIC.figures(measured(METRIC, of_mask(ids > 0, ids), block))["resolved"] == 0
    named = METRIC.figures(measured(METRIC, instances(7 * ids, ids), block))
    assert named["resolved"] == 1
    one = METRIC.figures(measured(METRIC, instances(np.ones_like(ids), ids), block))
    assert one["resolved"] == 0


def test_half_of_the_volume_merged_is_half_resolved():
    ids, _ = sheets_of((20, 20, 40), (1, 0, 0), 3.5, 2)
    predicted = ids > 0
    predicted[..., 20:] = True
    found = METRIC.figures(measured(METRIC, of_mask(predicted, ids), (20, 20, 40)))
    assert found["resolved_3_4"] == pytest.approx(0.5, abs=0.02)
    assert np.isnan(found["resolved_5_6"])


def random_scene(seed, shape=SHAPE):
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=shape), 3) * 60 + np.indices(shape)[0] / 3.5
    ids = np.where(np.abs(field - np.rint(field)) < 0.33, np.rint(field) + 50, 0).astype(np.int64)
    valid = np.ones(shape, bool)
    valid[:2, :3, -2:] = False
    return ids, rng.random(shape) < 0.7, valid


@pytest.mark.parametrize("form", ["masks", "instances"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_figures_do_not_depend_on_the_blocks(seed, form):
    ids, predicted, valid = random_scene(seed)
    if form == "masks":
        pair = of_mask(predicted, np.where(valid, ids, 0), valid)
    else:
        pair = instances(np.where(predicted, ids // 2, 0), ids, valid)
    pair.corner = (5, 0, 7)
    whole = measured(METRIC, pair, SHAPE)
    assert whole["pairs"].sum() > 100
    for block in ((9, 11, 8), (18, 5, 21)):
        part = measured(METRIC, pair, block, seed)
        assert {k: v.tolist() for k, v in part.items()} == {k: v.tolist() for k, v in whole.items()}
    figures(METRIC, pair, SHAPE)


@pytest.mark.parametrize(("seed", "spacing"), [(0, (1.0, 1.0, 1.0)), (1, (2.0, 1.0, 1.5))], ids=str)
def test_counts_are_those_of_brute_force(seed, spacing):
    shape = (12, 13, 14)
    ids, predicted, valid = random_scene(seed + 10, shape)
    ids = np.where(valid, ids, 0)
    part = measured(METRIC, of_mask(predicted, ids, valid, spacing), shape)
    expected = brute_force(ids, predicted & valid, valid, np.array(spacing) / min(spacing))
    assert expected[0].sum() > 10
    # Normals of another decomposition differ in the last bits, and a half is rounded either way.
    np.testing.assert_allclose(part["pairs"], expected[0], atol=2)
    np.testing.assert_allclose(part["resolved"], expected[1], atol=2)


def brute_force(ids, predicted, valid, scale):
    """The definition, voxel by voxel and step by step, with planes by a singular value decomposition."""
    limits = METRIC.spacings
    pairs, resolved = (np.zeros(len(limits) - 1, int) for _ in range(2))
    ball = np.indices((9, 9, 9)).reshape(3, -1).T - 4
    ball = ball[np.linalg.norm(ball * scale, axis=1) <= PLANE_RADIUS]

    def plane(place):
        same = np.argwhere(ids == ids[place]) - place
        near = same[np.linalg.norm(same * scale, axis=1) <= PLANE_RADIUS] * scale
        if len(near) < 5 or not all(at(valid, tuple(place + o)) for o in ball):
            return None
        mean = near.mean(axis=0)
        _, s, vectors = np.linalg.svd((near - mean) / np.sqrt(len(near)))
        variance = np.array([*s, 0, 0, 0])[:3] ** 2
        if variance[1] <= 1.2 * variance[2] + 1e-6:
            return None
        return vectors[2], vectors[2] * (vectors[2] @ mean)

    def at(array, place):
        inside = all(0 <= p < n for p, n in zip(place, array.shape, strict=True))
        return array[place] if inside else 0

    for place in map(tuple, np.argwhere(ids)):
        own = plane(place)
        if own is None or np.linalg.norm(own[1]) > np.linalg.norm(own[0] * scale) / 2:
            continue
        for direction in (own[0], -own[0]):
            steps = np.arange(0, 1.5 * limits[-1] + np.linalg.norm(scale), 0.5)
            ray = [tuple(place + np.rint(direction / scale * s).astype(int)) for s in steps]
            met = None
            for n, voxel in enumerate(ray):
                if at(ids, voxel) not in (0, ids[place]):
                    met = n
                    break
                if not at(valid, voxel):
                    break
            if met is None:
                continue
            run = list(takewhile(lambda v, n=ids[ray[met]]: at(ids, v) == n, ray[met:]))
            centre = run[(len(run) - 1) // 2]
            if (other := plane(centre)) is None:
                continue
            start = own[1] @ direction
            end = ((np.array(centre) - place) * scale + other[1]) @ direction
            theirs = [n for n, v in enumerate(ray) if at(ids, v) == ids[ray[met]]]
            last = min(theirs, key=lambda n, e=end: abs(steps[n] - e))
            bins = [n for n in range(len(pairs)) if limits[n] <= end - start < limits[n + 1]]
            for n in bins:
                pairs[n] += 1
                gap = any(not at(predicted, v) for v in ray[:last])
                resolved[n] += bool(predicted[place] and predicted[ray[last]] and gap)
    return pairs, resolved


@pytest.mark.parametrize(
    "wrong", [(2.0,), (3.0, 2.0), (-1.0, 2.0), (1.0, np.inf), (2.0, 33.0)], ids=str
)
def test_limits_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=r"spacings must be .* rise and lie in \[0, 32\]"):
        SheetPairs(spacings=wrong, compares="masks")


def test_a_mask_without_ids_has_no_pairs():
    ids, _ = sheets_of(SHAPE, (1, 0, 0), 3.5, 2)
    found = figures(METRIC, of_mask(ids > 0, ids > 0), SHAPE)
    assert all(np.isnan(value) for value in found.values())
