"""Against the same rules in memory, with the components of SciPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.postprocess.places import run_step, source_of, step_of
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.postprocess.site import Source
from vcmodels.postprocess.sizes import SizesStep
from vcmodels.volumes import create_array, open_volume

SHAPE = (9, 14, 11)
RANKS = {6: 1, 18: 2, 26: 3}
BLOCKS = st.tuples(*(st.integers(4, 15),) * 3)


def labelled(mask, connectivity):
    ids, count = ndimage.label(mask, ndimage.generate_binary_structure(3, RANKS[connectivity]))
    return [ids == number for number in range(1, count + 1)]


def objects_of(values, kind, connectivity):
    """Masks of objects, by group, in the order of first voxels."""
    distinct = [value for value in np.unique(values) if value]
    if kind == "instances":
        found = sorted((values == value for value in distinct), key=lambda one: one.argmax())
        return {1: found}
    return {value: labelled(values == value, connectivity) for value in distinct}


def tidy(values, kind, connectivity, rules):
    """Slow and obvious: objects first, then holes."""
    values = values.copy()
    for group, objects in objects_of(values, kind, connectivity).items():
        rule = rules.get(group, rules[None])
        kept = [one for one in objects if one.sum() >= rule.get("min_size", 1)]
        kept = sorted(kept, key=lambda one: -one.sum())[: rule.get("largest")]
        for one in objects:
            if not any(one is other for other in kept):
                values[one] = 0
    tidied = values.copy()
    for hole in labelled(values == 0, 26 if connectivity == 6 else 6):
        grown = ndimage.binary_dilation(hole, ndimage.generate_binary_structure(3, 1))
        around = np.unique(values[grown & ~hole])
        inside = hole.copy()
        inside[1:-1, 1:-1, 1:-1] = False
        if len(around) == 1 and not inside.any():
            rule = rules.get(around[0], rules[None])
            if rule.get("fill_holes") or hole.sum() <= rule.get("max_hole", 0):
                tidied[hole] = around[0]
    return tidied


def values_of(kind, seed):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.random(SHAPE), 0.8)
    dense = smooth > np.quantile(smooth, 0.3)
    if kind == "binary":
        return np.where(dense, 255, 0).astype(np.uint8)
    coarse = ndimage.zoom(rng.integers(1, 4, (3, 3, 3)), np.array(SHAPE) / 3, order=0)
    return (coarse * dense).astype(np.uint8 if kind == "multiclass" else np.uint64)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    block=BLOCKS,
    kind=st.sampled_from(["binary", "multiclass", "instances"]),
    connectivity=st.sampled_from([6, 18, 26]),
    rule=st.sampled_from(
        [{"min_size": 4}, {"largest": 2}, {"fill_holes": True}, {"min_size": 9, "max_hole": 3}]
    ),
)
def test_sizes_are_those_of_the_whole_volume_for_any_blocks(
    tmp_path_factory, seed, block, kind, connectivity, rule
):
    values = values_of(kind, seed)
    source = source_of(values, kind, encoding={"label_values": [0, 1, 2, 3]})
    step = step_of(SizesStep, "labels", connectivity=connectivity, **rule)
    found = run_step(step, {"objects": source}, tmp_path_factory.mktemp("s"), block)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, tidy(values, kind, connectivity, {None: rule}))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), block=BLOCKS)
def test_each_class_has_its_own_rule(tmp_path_factory, seed, block):
    values = values_of("multiclass", seed)
    rules = {None: {"min_size": 5}, 2: {"largest": 1, "max_hole": 2}, 3: {"fill_holes": True}}
    named = {value: rule for value, rule in rules.items() if value is not None}
    source = source_of(values, "multiclass", encoding={"label_values": [0, 1, 2, 3]})
    step = step_of(SizesStep, "labels", by_class=named, **rules[None])
    found = run_step(step, {"objects": source}, tmp_path_factory.mktemp("s"), block)
    np.testing.assert_array_equal(found, tidy(values, "multiclass", 26, rules))


def test_a_hole_is_filled_by_what_encloses_it_and_only_then(tmp_path):
    ids = np.zeros(SHAPE, np.uint64)
    ids[1:8, 1:6, 1:6] = 7
    ids[1:8, 6:12, 1:6] = 2**60
    ids[2:4, 2:4, 2:4] = 0  # a hole of 7
    ids[4:6, 5:7, 2:4] = 0  # between the two
    ids[1:7, 9:11, 2:4] = 0  # open to the outside
    source = {"objects": source_of(ids, "instances")}
    found = run_step(step_of(SizesStep, "ids", fill_holes=True), source, tmp_path, (4, 4, 4))
    expected = ids.copy()
    expected[2:4, 2:4, 2:4] = 7
    np.testing.assert_array_equal(found, expected)


def test_sizes_in_micrometers_are_those_in_voxels(tmp_path):
    values = values_of("binary", 1)
    source = {"objects": source_of(values, "binary")}
    in_voxels = step_of(SizesStep, "mask", min_size=5, max_hole=3)
    in_space = step_of(SizesStep, "mask", min_size_um3=5 * 0.024, max_hole_um3=3 * 0.024)
    expected = run_step(in_voxels, source, tmp_path / "voxels")
    keys = {"spacing": (400.0, 300.0, 200.0), "unit": "nanometer"}
    found = run_step(in_space, source, tmp_path / "space", (5, 5, 5), **keys)
    np.testing.assert_array_equal(found, expected)
    assert (expected != values).any()


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("binary", {"min_size_um3": 2.0}, 'min_size_um3: .* no unit .*; give "min_size"'),
        ("binary", {"max_hole_um3": 2.0}, 'max_hole_um3: .* no unit .*; give "max_hole"'),
        ("binary", {"by_class": {1: {"largest": 1}}}, r'by_class: "source" has no classes'),
        ("multiclass", {"by_class": {9: {"largest": 1}}}, "by_class.9: .*; choose: 1, 2, 3"),
        ("instances", {"largest": 1, "connectivity": 6}, "connectivity: it has no effect"),
    ],
)
def test_keys_that_do_not_fit_the_source_are_refused(kind, keys, message):
    source = source_of(np.zeros(SHAPE, np.uint8), kind, encoding={"label_values": [0, 1, 2, 3]})
    with pytest.raises(TaskError, match=message):
        step_of(SizesStep, "a", **keys).check({"objects": source}, (1.0, 1.0, 1.0), None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "nothing would be removed or filled"),
        ({"by_class": {1: {}}}, "a rule of by_class is empty"),
        ({"min_size": 3, "min_size_um3": 2.0}, '"min_size" is given twice'),
        ({"fill_holes": True, "max_hole": 3}, '"fill_holes" fills holes of any size'),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        step_of(SizesStep, "a", **keys)


@pytest.mark.parametrize("kind", ["multiclass", "binary"])
def test_chunks_that_are_not_stored_are_background(tmp_path, kind):
    values = np.zeros((16, 24, 20), np.int16 if kind == "multiclass" else np.uint8)
    values[2:7, 3:9, 2:9], values[4, 5, 5] = 1, 0
    values[9:11, 17:23, 15:19] = 2
    chunks = {"shape": values.shape, "chunks": (4, 4, 4), "dtype": values.dtype}
    array = create_array(str(tmp_path), "in.zarr", **chunks)
    array.write(Box((0, 0, 0), values.shape), values[None])
    stored = Source("labels", open_volume(array.location, key="labels"), kind)
    assert stored.is_empty(Box((12, 0, 0), (4, 4, 4)))
    step = step_of(SizesStep, "labels", min_size=50, fill_holes=True)
    found = run_step(step, {"objects": stored}, tmp_path, (8, 8, 8))
    expected = tidy(values, kind, 26, {None: {"min_size": 50, "fill_holes": True}})
    if kind == "binary":
        expected = np.where(expected, 255, 0)
    np.testing.assert_array_equal(found, expected)
