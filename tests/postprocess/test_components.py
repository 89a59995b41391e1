import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.postprocess.places import run_step, source_of, step_of
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
