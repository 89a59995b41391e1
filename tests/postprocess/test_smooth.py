"""Against SciPy's filters and a vote that counts one voxel at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.postprocess.places import run_step, source_of, step_of
from vcmodels.errors import TaskError
from vcmodels.postprocess.radius import ball
from vcmodels.postprocess.smooth import SmoothStep

SHAPE = (7, 12, 9)
SPACING = (2.0, 1.0, 1.0)
BLOCKS = st.tuples(*(st.integers(3, 12),) * 3)


def footprint_of(within):
    near = ball(2.0, SPACING)
    return near if within == "ball" else np.ones_like(near)


def smoothed(values, kind, folder, block, **keys):
    return run_step(
        step_of(SmoothStep, "labels", radius_um=2.0, **keys),
        {"values": source_of(values, kind)},
        folder,
        block,
        spacing=SPACING,
        unit="micrometer",
    )


def vote(row):
    values, counts = np.unique(row, return_counts=True)
    return values[counts.argmax()]


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    block=BLOCKS,
    within=st.sampled_from(["ball", "box"]),
    kind=st.sampled_from(["multiclass", "instances", "binary"]),
)
def test_labels_vote_and_the_lowest_of_equals_wins(tmp_path_factory, seed, block, within, kind):
    dtype, values = {
        "multiclass": (np.int16, [0, 1, 2, 5]),
        "instances": (np.uint64, [0, 3, 2**60, 2**60 + 1]),
        "binary": (np.uint8, [0, 255]),
    }[kind]
    labels = np.array(values, dtype)[np.random.default_rng(seed).integers(0, len(values), SHAPE)]
    labels[:, :6] = values[1]
    found = smoothed(labels, kind, tmp_path_factory.mktemp("s"), block, within=within)
    index = np.searchsorted(np.array(values, dtype), labels)  # generic_filter counts in float64
    expected = ndimage.generic_filter(
        index, vote, footprint=footprint_of(within), mode="nearest"
    ).astype(int)
    np.testing.assert_array_equal(found, np.array(values, dtype)[expected])
    assert found.dtype == dtype


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    block=BLOCKS,
    within=st.sampled_from(["ball", "box"]),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32, np.float16]),
)
def test_values_become_their_median(tmp_path_factory, seed, block, within, dtype):
    values = (np.random.default_rng(seed).random(SHAPE) * 250).astype(dtype)
    keys = {"by": "median", "within": within}
    found = smoothed(values, "distance", tmp_path_factory.mktemp("s"), block, **keys)
    expected = ndimage.median_filter(
        values.astype(np.float32), footprint=footprint_of(within), mode="nearest"
    )
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == dtype


def test_nan_counts_as_the_least_value(tmp_path):
    values = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    values[2:5, 4:9, 3:6] = np.nan
    found = smoothed(values, "regression", tmp_path, SHAPE, by="median")
    low = np.where(np.isnan(values), np.float32(-1), values)
    expected = ndimage.median_filter(low, footprint=footprint_of("ball"), mode="nearest")
    np.testing.assert_array_equal(np.nan_to_num(found, nan=-1), expected)
    assert np.isnan(found).any()


@pytest.mark.parametrize(
    ("kind", "by", "remedy"),
    [("distance", "majority", 'give "median"'), ("instances", "median", 'give "majority"')],
)
def test_values_do_not_vote_and_ids_have_no_median(kind, by, remedy):
    step = step_of(SmoothStep, "a", radius=1.0, by=by)
    with pytest.raises(TaskError, match=remedy):
        step.check({"values": source_of(np.zeros(SHAPE, np.uint8), kind)}, SPACING, None)
