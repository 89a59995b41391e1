"""Curves of values against NumPy's percentiles and means of the whole volume."""

import tracemalloc

import numpy as np
import pytest

from vcmodels.errors import VolumeError
from vcmodels.prepare import curves
from vcmodels.prepare.curves import (
    PERCENTILES,
    ValueCurve,
    curves_of,
    foreground_box,
    landmarks_of,
    learnt_landmarks,
    spreads_of,
)
from vcmodels.prepare.section import NyulStandard, ScaleStandard, WindowStandard, ZScoreStandard
from vcmodels.volumes import Volume

SHAPE = (40, 31, 50)


def spread_of(volume, channel, above):
    return spreads_of([volume], {channel: above}, volume.box, "key")[channel]


def tissue(seed=0, scale=1.0, shift=0.0):
    """A body with three tissues in air, on some scale."""
    draw = np.random.default_rng(seed)
    array = np.zeros(SHAPE, np.float32)
    array[5:35, 4:28, 6:44] = 40
    array[10:30, 8:24, 10:40] = 80
    array[15:25, 12:20, 15:30] = 130
    noisy = np.where(array > 0, array + draw.normal(0, 3, SHAPE), 0)
    return np.where(noisy > 0, noisy * scale + shift, 0).astype(np.float32)


@pytest.mark.parametrize(("above", "rule"), [(None, lambda v: v != 0), ("mean", lambda v: v > v.mean()),
                                             (50.0, lambda v: v > 50)])  # fmt: skip
def test_a_spread_is_that_of_the_voxels_that_count(store, above, rule):
    array = tissue()
    volume = store("a", np.stack([array, -array]), chunks=(16, 16, 16))
    found = spread_of(volume, 0, above)
    values = array[rule(array)].astype(np.float64)
    assert found.mean == pytest.approx(values.mean())
    assert found.deviation == pytest.approx(values.std())
    width = np.ptp(values) / 65536
    for percent in (1, 35, 50, 99):
        assert found.percentile(percent) == pytest.approx(
            np.percentile(values, percent), abs=3 * width
        )


def test_blocks_are_decoded_once_for_all_channels_of_their_volume(store, monkeypatch):
    array = tissue()
    pair = [store("a", np.stack([array, 2 * array, array])), store("b", 3 * array)]
    alone = {n: spread_of(pair[n // 3], n % 3, None) for n in (0, 1, 3)}
    seen, read = [], Volume.read
    monkeypatch.setattr(Volume, "read", lambda one, box: seen.append(one) or read(one, box))
    monkeypatch.setattr(curves, "PIECE", (16, 16, 32))
    above = {0: None, 1: "mean", 3: None}
    found = spreads_of(pair, above, pair[0].box, "key")
    blocks = 3 * 2 * 2
    assert (seen.count(pair[0]), seen.count(pair[1])) == (3 * blocks, 2 * blocks)
    assert found.keys() == above.keys()
    for n in (0, 3):
        assert found[n].mean == pytest.approx(alone[n].mean)
        assert found[n].deviation == pytest.approx(alone[n].deviation)
        np.testing.assert_array_equal(found[n].counts, alone[n].counts)
    assert found[1].mean == pytest.approx(2 * array[array > array.mean()].mean(dtype=np.float64))


def test_histograms_of_blocks_are_not_kept(store, monkeypatch):
    volume = store("a", tissue())
    monkeypatch.setattr(curves, "PIECE", (8, 8, 8))
    blocks = 5 * 4 * 7
    tracemalloc.start()
    try:
        spread_of(volume, 0, None)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < blocks * curves.BINS * 8 / 3


def test_zscore_and_window(store):
    array = tissue()
    volume = store("a", array)
    window, zscore = WindowStandard(low=30, high=90), ZScoreStandard()
    (curve,) = curves_of([window], (volume,), volume.box, "key")
    np.testing.assert_allclose(curve(array), np.clip(array, 30, 90))
    (curve,) = curves_of([zscore], (volume,), volume.box, "key")
    inside = array[array != 0].astype(np.float64)
    np.testing.assert_allclose(curve(array), (array - inside.mean()) / inside.std(), atol=1e-5)


def test_two_rescaled_copies_are_the_same_after_standardisation(store):
    first, second = tissue(), tissue(scale=7.5, shift=200)
    volumes = [store("a", first), store("b", second)]
    marks = [landmarks_of(spread_of(v, 0, None), v.location, "key") for v in volumes]
    standard = NyulStandard(above=None, landmarks=learnt_landmarks(marks))
    found = []
    for volume, array in zip(volumes, (first, second), strict=True):
        (curve,) = curves_of([standard], (volume,), volume.box, "key")
        found.append(curve(array)[first > 0])
    assert np.abs(found[0] - found[1]).max() < 0.01 * np.ptp(found[0])
    np.testing.assert_allclose(
        np.percentile(found[0], PERCENTILES), standard.landmarks, atol=0.01 * np.ptp(found[0])
    )


def test_landmarks_rise_even_where_values_are_shared():
    marks = [[0.0] * 5 + [1.0, 2, 3, 4, 5, 6]] * 2
    found = learnt_landmarks(marks)
    assert all(np.diff(found) > 0)
    assert found[-1] == 100


def test_a_curve_goes_on_past_its_ends_or_stays():
    x, y = (0.0, 1.0, 3.0), (0.0, 10.0, 20.0)
    np.testing.assert_allclose(ValueCurve(x, y, True)(np.array([-1, 0.5, 5])), [-10, 5, 30])
    np.testing.assert_allclose(ValueCurve(x, y, False)(np.array([-1, 0.5, 5])), [0, 5, 20])


def test_volumes_without_different_values_are_refused(store):
    flat = store("a", np.full(SHAPE, 7, np.int16))
    with pytest.raises(VolumeError, match="no different values"):
        spread_of(flat, 0, None)
    array = np.full(SHAPE, 7, np.int16)
    array[0, 0, 0] = 9
    nearly = store("b", array)
    with pytest.raises(VolumeError, match=r"nearly all of .* is 7"):
        landmarks_of(spread_of(nearly, 0, None), nearly.location, "key")


def test_the_foreground_is_the_box_around_what_is_above(store):
    array = np.zeros(SHAPE, np.int16)
    array[3, 7, 9] = array[30, 8, 40] = 100
    volume = store("a", array)
    box = foreground_box(volume, 50, "key")
    assert (box.origin, box.end) == ((3, 7, 9), (31, 9, 41))


def test_a_zscore_of_all_voxels_counts_the_zeros_too(store):
    array = tissue()
    (curve,) = curves_of(
        [ZScoreStandard(above="all")], [volume := store("a", array)], volume.box, "k"
    )
    np.testing.assert_allclose(curve(array), (array - array.mean()) / array.std(), atol=1e-4)


def test_zeros_may_stay_zero(store):
    array = tissue(shift=5)
    given = [ZScoreStandard(keep_zero=True)]
    (curve,) = curves_of(given, [volume := store("a", array)], volume.box, "k")
    inner = array[array != 0]
    expected = np.where(array == 0, 0, (array - inner.mean()) / inner.std())
    np.testing.assert_allclose(curve(array), expected, atol=1e-4)
    assert ValueCurve.from_json(curve.to_json()) == curve


def test_a_scale_cuts_first(store):
    volume = store("a", array := tissue())
    given = ScaleStandard(low=10, high=90, mean=50, sd=20)
    (curve,) = curves_of([given], [volume], volume.box, "k")
    np.testing.assert_allclose(curve(array), (array.clip(10, 90) - 50) / 20, atol=1e-6)


def test_what_is_not_zero_may_be_negative_and_in_another_channel(store):
    array = np.zeros((2, *SHAPE), np.float32)
    array[0, 5:9, 7:20, 30:40], array[1, 8:12, 3:9, 33] = -4, 2
    box = foreground_box(store("a", array), "nonzero", "key")
    assert (box.origin, box.end) == ((5, 3, 30), (12, 20, 40))
    nothing = store("b", 0 * array)
    assert foreground_box(nothing, "nonzero", "key") == nothing.box
