from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcmodels.errors import TaskError
from vcmodels.postprocess.lengths import (
    in_micrometers,
    least_voxels,
    most_voxels,
    reach_of,
    require_length,
)

SIDES = st.tuples(*(st.floats(0.01, 10),) * 3)


@given(spacing=SIDES, voxels=st.integers(1, 10**6), more=st.floats(0.01, 0.99))
def test_volumes_are_whole_voxels_however_they_are_rounded(spacing, voxels, more):
    exact = voxels * spacing[0] * spacing[1] * spacing[2]
    assert least_voxels(exact, spacing) in range(voxels - voxels // 10**5 - 1, voxels + 1)
    if voxels < 1000:
        assert least_voxels(exact, spacing) == most_voxels(exact, spacing) == voxels
        assert least_voxels(exact + more * prod(spacing), spacing) == voxels + 1
        assert most_voxels(exact + more * prod(spacing), spacing) == voxels


def test_a_reach_counts_the_centres_within():
    assert reach_of(0.3, (0.1, 0.2, 0.31)) == (3, 1, 0)


def test_nanometers_become_micrometers_and_pixels_stay():
    assert in_micrometers((400.0, 8.0, 8.0), "nanometer") == (0.4, 0.008, 0.008)
    assert in_micrometers((4.0, 2.0, 1.0), None) == (4.0, 2.0, 1.0)


@pytest.mark.parametrize(
    ("unit", "said"), [(None, "no unit of length"), ("second", 'the unit "second"')]
)
def test_micrometers_need_a_store_with_lengths(unit, said):
    with pytest.raises(TaskError, match=f'min_size_um3: .*{said}.*; give "min_size", in voxels'):
        require_length("min_size_um3", unit)
    require_length("min_size_um3", "angstrom")
