import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.postprocess.places import run_step, source_of, step_of
from vcmodels import extras
from vcmodels.errors import RefusedError, TaskError
from vcmodels.postprocess.components import ComponentsStep

SHAPE = (9, 14, 11)


def in_order_of_first_voxels(ids):
    distinct, first = np.unique(ids, return_index=True)
    kept = distinct != 0
    table = np.zeros(int(ids.max()) + 1, np.uint64)
    table[distinct[kept][np.argsort(first[kept])]] = np.arange(1, kept.sum() + 1)
    return table[ids]


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    block=st.tuples(*(st.integers(3, 15),) * 3),
    connectivity=st.sampled_from([6, 18, 26]),
    share=st.sampled_from([0.1, 0.3, 0.6]),
)
def test_components_are_those_of_the_whole_volume_for_any_blocks(
    tmp_path_factory, seed, block, connectivity, share
):
    values = np.random.default_rng(seed).random(SHAPE).astype(np.float32)
    step = step_of(ComponentsStep, "mask", threshold=1 - share, connectivity=connectivity)
    found = run_step(
        step, {"mask": source_of(values, "binary")}, tmp_path_factory.mktemp("c"), block
    )
    expected = cc3d.connected_components(values >= np.float32(1 - share), connectivity=connectivity)
    np.testing.assert_array_equal(found, in_order_of_first_voxels(expected))


def test_ids_are_uint64_and_an_empty_mask_has_none(tmp_path):
    values = np.zeros(SHAPE, np.float32)
    step = step_of(ComponentsStep, "mask")
    found = run_step(step, {"mask": source_of(values, "binary")}, tmp_path, (4, 5, 6))
    assert found.dtype == np.uint64
    assert not found.any()


def test_a_role_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match='there is no role "seeds"; choose from mask'):
        step_of(ComponentsStep, {"seeds": "a"})


def large_components(marks, connectivity, min_size, largest, groups):
    """cc3d on the whole, each group by itself."""
    ids = in_order_of_first_voxels(cc3d.connected_components(marks, connectivity=connectivity))
    for group in np.unique(groups):
        sizes = np.bincount(ids[groups == group].astype(np.int64), minlength=int(ids.max()) + 1)
        order = [number for number in np.argsort(-sizes, kind="stable") if number and sizes[number]]
        kept = [number for number in order if sizes[number] >= min_size][:largest]
        ids[(groups == group) & ~np.isin(ids, kept)] = 0
    return in_order_of_first_voxels(ids)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    block=st.tuples(*(st.integers(4, 15),) * 3),
    connectivity=st.sampled_from([6, 18, 26]),
    form=st.sampled_from(["mask", "class", "ids"]),
    largest=st.sampled_from([None, 3]),
)
def test_components_of_classes_and_ids_are_sized_each_by_itself(
    tmp_path_factory, seed, block, connectivity, form, largest
):
    classes = np.random.default_rng(seed).choice([0, 1, 4], SHAPE, p=[0.7, 0.2, 0.1])
    kind, dtype = ("instances", np.uint64) if form == "ids" else ("multiclass", np.uint8)
    classes = classes.astype(dtype)
    keys = {"by_class": True} if form == "class" else {}
    step = step_of(
        ComponentsStep, "a", connectivity=connectivity, min_size=2, largest=largest, **keys
    )
    found = run_step(step, {"mask": source_of(classes, kind)}, tmp_path_factory.mktemp("c"), block)
    marks = (classes != 0).astype(np.uint8) if form == "mask" else classes
    groups = classes if form == "class" else np.zeros(SHAPE)
    expected = large_components(marks, connectivity, 2, largest, groups)
    np.testing.assert_array_equal(found, expected)


def test_the_inside_may_be_below_and_sizes_in_space(tmp_path):
    distances = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    step = step_of(ComponentsStep, "d", threshold=-0.5, below=True, min_size_um3=3 * 0.024)
    keys = {"spacing": (400.0, 300.0, 200.0), "unit": "nanometer"}
    source = {"mask": source_of(distances, "distance")}
    step.check(source, *keys.values())
    found = run_step(step, source, tmp_path, (4, 5, 6), **keys)
    inside = (distances < -0.5).astype(np.uint8)
    expected = large_components(inside, 26, 3, None, np.zeros(SHAPE))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("distance", {}, 'threshold: it is missing, and "source" has no probabilities'),
        ("binary", {"threshold": 2.0}, "threshold: 2 is no probability"),
        ("instances", {"below": True}, 'below: it has no effect: "source" has no values'),
        ("binary", {"by_class": True}, 'by_class: "source" has no classes'),
        ("binary", {"min_size_um3": 2.0}, 'min_size_um3: .* no unit .*; give "min_size"'),
    ],
)
def test_keys_that_do_not_fit_the_source_are_refused(kind, keys, message):
    source = {"mask": source_of(np.zeros(SHAPE, np.uint8), kind)}
    with pytest.raises(TaskError, match=message):
        step_of(ComponentsStep, "a", **keys).check(source, (1.0, 1.0, 1.0), None)


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    source = {"mask": source_of(np.zeros(SHAPE, np.uint8), "binary")}
    with pytest.raises(RefusedError, match=r'package cc3d, .*; pip install "vcmodels\[objects'):
        step_of(ComponentsStep, "a").check(source, (1.0, 1.0, 1.0), None)
