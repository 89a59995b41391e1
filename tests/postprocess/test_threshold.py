"""Against scikit-image on the whole volume."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.filters import apply_hysteresis_threshold, threshold_otsu

from tests.postprocess.places import run_step, source_of, step_of
from vcmodels.errors import TaskError
from vcmodels.postprocess.threshold import ThresholdStep

SHAPE = (9, 14, 11)
BLOCKS = st.tuples(*(st.integers(3, 15),) * 3)


def values_of(seed):
    rough = np.random.default_rng(seed).random(SHAPE)
    return (0.5 * rough + 0.5 * ndimage.gaussian_filter(rough, 1)).astype(np.float32)


def masked(values, folder, block=(5, 6, 7), kind="binary", **keys):
    step = step_of(ThresholdStep, "values", **keys)
    found = run_step(step, {"values": source_of(values, kind)}, folder, block)
    assert set(np.unique(found)) <= {0, 255}
    return found == 255


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), block=BLOCKS, below=st.booleans())
def test_otsu_is_that_of_the_whole_volume(tmp_path_factory, seed, block, below):
    values = values_of(seed)
    values[:4] += 0.7
    keys = {"threshold": "otsu", "below": below}
    found = masked(values, tmp_path_factory.mktemp("t"), block, "regression", **keys)
    upper = values > np.float32(threshold_otsu(values))
    np.testing.assert_array_equal(found, ~upper if below else upper)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    block=BLOCKS,
    below=st.booleans(),
    connectivity=st.sampled_from([6, 18, 26]),
)
def test_hysteresis_keeps_weak_regions_with_a_strong_voxel(
    tmp_path_factory, seed, block, below, connectivity
):
    values = values_of(seed)
    ends = np.quantile(values, [0.1, 0.4] if below else [0.6, 0.9])
    low, high = ends.astype(np.float32).tolist()
    threshold = {"low": low, "high": high, "connectivity": connectivity}
    keys = {"threshold": threshold, "below": below}
    found = masked(values, tmp_path_factory.mktemp("t"), block, **keys)
    weak, strong = (values < high, values < low) if below else (values >= low, values >= high)
    rank = {6: 1, 18: 2, 26: 3}[connectivity]
    ids = ndimage.label(weak, ndimage.generate_binary_structure(3, rank))[0]
    np.testing.assert_array_equal(found, np.isin(ids, np.setdiff1d(ids[strong], 0)))
    if connectivity == 6 and not below:
        # What equals a threshold is above it here, and not there.
        before = np.nextafter(np.array([low, high], np.float32), np.float32(0))
        np.testing.assert_array_equal(found, apply_hysteresis_threshold(values, *before))


@pytest.mark.parametrize("below", [False, True])
def test_nan_is_in_no_mask(tmp_path, below):
    values = values_of(0)
    values[3:5] = np.nan
    found = masked(values, tmp_path, below=below)
    np.testing.assert_array_equal(found, values < 0.5 if below else values >= 0.5)
    upper = masked(values, tmp_path / "otsu", threshold="otsu", below=below)
    assert not upper[3:5].any()
    assert upper.any()


def test_of_one_value_otsu_takes_none(tmp_path):
    values = np.full(SHAPE, 0.25, np.float32)
    assert not masked(values, tmp_path, threshold="otsu").any()
    assert not masked(values * np.nan, tmp_path / "nan", threshold="otsu").any()


def test_codes_are_read_as_what_they_stand_for(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    step = step_of(ThresholdStep, "d", threshold=-3.0, below=True)
    source = source_of(values, "distance", decode=as_distances)
    found = run_step(step, {"values": source}, tmp_path, (4, 5, 6))
    np.testing.assert_array_equal(found == 255, as_distances(values) < -3)


def as_distances(stored):
    return stored.astype(np.float32) * np.float32(16 / 255) - np.float32(8)


@pytest.mark.parametrize(
    ("kind", "threshold", "message"),
    [
        ("binary", 3.0, "threshold: 3 is no probability; give a number from 0 to 1"),
        ("boundary", {"high": 1.5, "low": 0.2}, "threshold.high: 1.5 is no probability"),
        ("distance", None, r'threshold: it is missing, and "source" has no probabilities'),
    ],
)
def test_thresholds_that_values_cannot_have_are_refused(kind, threshold, message):
    step = step_of(ThresholdStep, "values", threshold=threshold)
    with pytest.raises(TaskError, match=message):
        step.check({"values": source_of(values_of(0), kind)}, (1.0, 1.0, 1.0), None)


def test_a_low_threshold_is_below_the_high_one():
    with pytest.raises(ValueError, match=r'"low" is 0.8 and "high" 0.4'):
        step_of(ThresholdStep, "values", threshold={"high": 0.4, "low": 0.8})
