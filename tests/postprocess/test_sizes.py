"""Against the same rules in memory, with the components of SciPy."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.postprocess.places import run_step, source_of, step_of
from vcmodels.postprocess.sizes import SizesStep

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
