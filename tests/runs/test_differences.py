from hypothesis import given
from hypothesis import strategies as st

from vcmodels.runs.run import differing_keys, shown

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def test_keys_are_named_with_the_number_of_their_block():
    old = {"tr": {"lr": 1, "size": [1, 2]}, "volumes": [{"input": "a", "weight": 1}], "seed": 0}
    new = {"tr": {"lr": 2, "size": [1, 3]}, "volumes": [{"input": "b", "weight": 1}], "more": 5}
    assert differing_keys([old, new]) == {
        "tr.lr": [1, 2],
        "tr.size": [[1, 2], [1, 3]],
        "volumes.0.input": ["a", "b"],
        "seed": [0, None],
        "more": [None, 5],
    }


def test_a_key_of_any_of_three_tasks_is_named():
    assert differing_keys([{"a": 1}, {"a": 1}, {"a": 2}]) == {"a": [1, 1, 2]}


@given(st.dictionaries(st.text(max_size=3), JSON))
def test_a_task_does_not_differ_from_itself(task):
    assert differing_keys([task, task]) == {}


def test_long_values_are_cut():
    assert shown("é" * 100) == '"' + "é" * 59 + "..."
