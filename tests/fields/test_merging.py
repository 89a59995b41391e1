from hypothesis import given
from hypothesis import strategies as st

from vcmodels.fields import merging
from vcmodels.fields.merging import merged_in_turn


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=30), st.integers(0, 20))
def test_no_more_than_the_result_so_far_waits(several, few):
    held = []

    def together(tables):
        held.append((len(tables[0]), sum(map(len, tables[1:-1]))))
        return sorted({number for table in tables for number in table})

    before, merging.FEW = merging.FEW, few
    try:
        found = merged_in_turn([], iter(several), together)
    finally:
        merging.FEW = before
    assert found == sorted({number for table in several for number in table})
    # Without the last one, which made it too many, and at the end the rest.
    assert all(waiting <= max(rows, few) for rows, waiting in held)
