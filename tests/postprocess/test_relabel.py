import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.postprocess.places import run_step, source_of, step_of
from vcmodels.postprocess.relabel import RelabelStep

SHAPE = (9, 14, 11)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    block=st.tuples(*(st.integers(3, 15),) * 3),
    by=st.sampled_from(["place", "size"]),
)
def test_ids_are_consecutive_in_the_order_of_places_or_sizes(tmp_path_factory, seed, block, by):
    rng = np.random.default_rng(seed)
    names = np.concatenate([[0, 0], rng.integers(1, 2**63, 20)]).astype(np.uint64)
    ids = names[rng.integers(0, len(names), SHAPE)]
    step = step_of(RelabelStep, "cells", by=by)
    found = run_step(
        step, {"ids": source_of(ids, "instances")}, tmp_path_factory.mktemp("r"), block
    )
    distinct, firsts, counts = np.unique(ids[ids != 0], return_index=True, return_counts=True)
    order = np.argsort(firsts) if by == "place" else np.lexsort((firsts, -counts))
    expected = np.zeros(SHAPE, np.uint64)
    for number, at in enumerate(order, 1):
        expected[ids == distinct[at]] = number
    np.testing.assert_array_equal(found, expected)


def test_nothing_stays_nothing(tmp_path):
    source = source_of(np.zeros(SHAPE, np.uint64), "instances")
    assert not run_step(step_of(RelabelStep, "cells"), {"ids": source}, tmp_path, (5, 5, 5)).any()
