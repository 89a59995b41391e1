from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.symmetry.phantoms import volume_of
from vcmodels.geometry.boxes import Box
from vcmodels.symmetry.windows import MOST_WINDOWS, choose_windows, window_shape

SIDE = st.integers(4, 40)


@settings(max_examples=30)
@given(
    st.tuples(SIDE, SIDE, SIDE), st.tuples(SIDE, SIDE, SIDE), st.integers(1, 20), st.integers(0, 99)
)
def test_windows_lie_in_patches_and_regions_and_apart(shape, patch, count, seed):
    rng = np.random.default_rng(seed)
    volume = volume_of(0, np.zeros(shape, np.float32), {})
    region = Box((1, 0, 2), (shape[0] - 1, shape[1], shape[2] - 2))
    high = [max(e - p, o) for o, e, p in zip(region.origin, region.end, patch, strict=True)]
    rows = np.column_stack(
        [np.zeros(count, np.int64), rng.integers(region.origin, np.array(high) + 1, (count, 3))]
    )
    places = choose_windows([volume], rows, [region], patch, seed)
    assert 1 <= len(places) <= MOST_WINDOWS
    assert places == choose_windows([volume], rows, [region], patch, seed)
    patches = [Box(tuple(row[1:]), patch) for row in rows.tolist()]
    for _, box in places:
        assert region.contains(box)
        assert any(one.contains(box) for one in patches)
        assert len(set(box.shape)) == 1
    assert not any(a.intersect(b).voxels for (_, a), (_, b) in combinations(places, 2))


def test_all_volumes_have_their_share():
    volumes = [volume_of(n, np.zeros((16, 16, 16), np.float32), {}) for n in range(70)]
    rows = np.array([(n, 0, 0, 0) for n in range(70)])
    places = choose_windows(volumes, rows, [v.region for v in volumes], (16, 16, 16), 0)
    assert len({number for number, _ in places}) == MOST_WINDOWS == len(places)
    few = choose_windows(volumes[:2], rows[:2], [v.region for v in volumes], (16, 16, 16), 0)
    assert [number for number, _ in few] == [0, 1]


@pytest.mark.parametrize("count", [*range(11, 21), 33])
def test_what_is_too_many_is_left_out_of_all_volumes_alike(count):
    side = 32  # eight windows of the patch, and more than enough
    volumes = [volume_of(n, np.zeros((side, side, side), np.float32), {}) for n in range(count)]
    origins = list(product((0, 16), repeat=3))
    rows = np.array([(n, *origin) for n in range(count) for origin in origins])
    places = choose_windows(volumes, rows, [v.region for v in volumes], (16, 16, 16), 0)
    shares = np.bincount([number for number, _ in places], minlength=count)
    assert len(places) == MOST_WINDOWS
    assert shares.min() >= shares.max() - 1
    assert shares.min() == MOST_WINDOWS // count


@pytest.mark.parametrize(
    ("spacing", "wanted"),
    [((1, 1, 1), (9, 9, 9)), ((4, 1, 1), (9, 20, 20)), ((1, 2, 1), (9, 20, 9))],
)
def test_a_window_is_as_long_along_axes_of_one_spacing(spacing, wanted):
    region = Box((0, 0, 0), (9, 30, 30))
    assert window_shape(region, (20, 20, 25), spacing, 96) == wanted
