import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.morphology import skeletonize

from vcmodels.metrics.thin import centreline_dice

SHAPE = (11, 12, 40)


def tube(start, end, y=5, radius=1):
    mask = np.zeros(SHAPE, bool)
    mask[5 - radius : 6 + radius, y - radius : y + 1 + radius, start:end] = True
    return mask


def scores(predicted, labelled, valid=None):
    predicted, labelled = (a[None].astype(np.float32) for a in (predicted, labelled))
    valid = np.ones_like(labelled, bool) if valid is None else valid[None]
    found = centreline_dice(predicted, labelled, valid, (1.0, 2.0, 3.0))
    return [found[name][0] for name in ("cldice", "skeleton_precision", "skeleton_recall")]


def test_half_a_tube_has_all_of_its_line_in_the_whole_and_half_of_the_line_of_the_whole():
    both, precision, recall = scores(tube(2, 20), tube(2, 38))
    assert precision == 1
    assert recall == pytest.approx(0.5, abs=0.04)
    assert both == pytest.approx(2 * recall / (1 + recall))
    assert scores(tube(2, 38), tube(2, 20)) == [both, recall, precision]


def test_width_does_not_matter_and_place_does():
    assert scores(tube(2, 38, radius=2), tube(2, 38, radius=1)) == pytest.approx(
        [1, 1, 1], abs=0.05
    )
    assert scores(tube(2, 38, y=3), tube(2, 38, y=8)) == [0, 0, 0]


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 9)] * 3), seed=st.integers(0, 1000))
def test_the_shares_are_those_of_the_skeletons(shape, seed):
    rng = np.random.default_rng(seed)
    predicted, labelled = rng.random((2, *shape)) < 0.4
    both, precision, recall = scores(predicted, labelled)
    lines = [
        set(map(tuple, np.argwhere(skeletonize(a, method="lee")))) for a in (predicted, labelled)
    ]
    regions = [set(map(tuple, np.argwhere(a))) for a in (predicted, labelled)]
    if not all(regions):
        assert both == 0 if any(regions) else math.isnan(both)
    elif all(lines):
        assert precision == len(lines[0] & regions[1]) / len(lines[0])
        assert recall == len(lines[1] & regions[0]) / len(lines[1])
        assert both == pytest.approx(2 * precision * recall / max(precision + recall, 1e-9))


def test_voxels_that_do_not_count_are_in_no_region():
    valid = np.ones(SHAPE, bool)
    valid[..., 20:] = False
    assert scores(tube(2, 20), tube(2, 38), valid) == [1, 1, 1]


def test_empty_regions():
    nothing = np.zeros(SHAPE, bool)
    assert scores(nothing, tube(2, 9)) == scores(tube(2, 9), nothing) == [0, 0, 0]
    assert all(map(math.isnan, scores(nothing, nothing)))
    cube = nothing.copy()
    cube[3:5, 4:6, 5:7] = True
    assert math.isnan(scores(cube, tube(2, 9))[0])


def test_each_class_has_its_own_figure():
    classes = np.stack([~(tube(2, 20) | tube(22, 38)), tube(2, 20), tube(22, 38)]).astype(
        np.float32
    )
    label = (tube(2, 20) + 2 * tube(2, 38, y=9))[None].astype(np.float32)
    found = centreline_dice(classes, label, np.ones_like(label, bool), (1.0, 1.0, 1.0))
    assert found["cldice"] == [1, 0]
