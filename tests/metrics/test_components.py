import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import label as label_regions

from tests.metrics.blocks import MemoryPair, figures, instances, masks, measured
from vcmodels.metrics.components import Components
from vcmodels.metrics.instances import Instances

IDS = Instances(compares="instances")
SHAPES = st.tuples(*[st.integers(1, 9)] * 3)
BLOCKS = st.tuples(*[st.integers(1, 5)] * 3)


def components(**options):
    return Components(compares=("masks", "classes"), is_default=False, **options)


def by_ids(predicted, labelled, valid, connectivity, ignore_background=True):
    """The scores of the components that scikit-image finds in the whole."""
    ids = [
        label_regions(mask & valid, connectivity={6: 1, 18: 2, 26: 3}[connectivity])
        for mask in (predicted, labelled)
    ]
    metric = Instances(compares="instances", ignore_background=ignore_background)
    return figures(metric, instances(*ids, valid), (99, 99, 99))


@settings(max_examples=60, deadline=None)
@given(
    shape=SHAPES,
    block=BLOCKS,
    connectivity=st.sampled_from([6, 18, 26]),
    ignore=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_components_of_any_blocks_are_scored_as_the_ids_of_the_whole(
    shape, block, connectivity, ignore, seed
):
    rng = np.random.default_rng(seed)
    predicted, labelled = rng.random((2, *shape)) < rng.choice([0.2, 0.5, 0.8])
    valid = rng.random(shape) < 0.9
    metric = components(connectivity=connectivity, ignore_background=ignore)
    found = figures(metric, masks(predicted, labelled, valid), block, seed)
    wanted = by_ids(predicted, labelled, valid, connectivity, ignore)
    for name, value in wanted.items():
        assert found[f"component_{name}"] == pytest.approx([value], abs=1e-12, nan_ok=True), name


def test_each_class_is_scored_on_its_own():
    rng = np.random.default_rng(0)
    scores = ndimage.gaussian_filter(rng.random((3, 12, 13, 14)), (0, 1, 1, 1)).astype(np.float32)
    label = np.roll(scores, 1, axis=3).argmax(0)[None].astype(np.float32)
    valid = rng.random((1, 12, 13, 14)) < 0.95
    pair = MemoryPair("classes", scores, label, valid, corner=(5, -2, 0))
    found = figures(components(), pair, (5, 6, 7))
    for n, k in enumerate((1, 2)):
        wanted = by_ids(scores.argmax(0) == k, label[0] == k, valid[0], 26)
        assert found["component_voi"][n] == pytest.approx(wanted["voi"])
        assert found["component_missed_objects"][n] == wanted["missed_objects"] > 0
    curves = components().curves(measured(components(), pair, (5, 6, 7)))
    assert list(curves) == [f"Average precision of components, {k}" for k in (1, 2)]


def test_a_sheet_through_all_blocks_that_is_broken_is_split():
    labelled = np.zeros((9, 16, 17), bool)
    labelled[4] = True
    predicted = labelled.copy()
    predicted[:, 8] = False
    found = figures(components(), masks(predicted, labelled), (3, 4, 5))
    half, rest = 8 / 16, 7 / 16
    entropy = -sum(share * math.log2(share) for share in (half, rest, 1 / 16))
    assert found["component_voi_split"] == pytest.approx([entropy])
    assert found["component_voi_merge"] == [0]
    assert found["component_ap_50"] == [1 / 2]
    assert found["component_count_error"] == [1]


def test_the_figures_do_not_depend_on_the_blocks_by_a_bit():
    field = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(20, 21, 22)), 1)
    pair = masks(field > 0.12, np.roll(field, 1, axis=1) > 0.1)
    whole = figures(components(), pair, (99, 99, 99))
    assert whole["component_voi"][0] > 0.5
    for seed, block in enumerate([(3, 4, 5), (20, 1, 7), (6, 6, 6)]):
        assert figures(components(), pair, block, seed) == whole
