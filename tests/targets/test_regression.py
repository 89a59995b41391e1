import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional as F

from vcmodels.targets import RegressionTarget
from vcmodels.targets.stored import LabelError

SHAPE = (6, 7, 8)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float32, np.float64])
def test_stored_values_are_taken_as_they_are(dtype):
    stored = np.random.default_rng(0).uniform(0, 100, (2, *SHAPE)).astype(dtype)
    label, valid = RegressionTarget(channels=2).read_label(stored)
    np.testing.assert_array_equal(label, stored.astype(np.float32))
    assert label.dtype == np.float32
    assert valid.shape == (1, *SHAPE)
    assert valid.all()


def test_a_declared_encoding_is_used():
    stored = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    target = RegressionTarget(encoding={"scale": 1 / 255, "offset": 1})
    np.testing.assert_allclose(target.read_label(stored)[0].flatten(), (1, 1.2, 2), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_a_voxel_that_is_not_finite_in_any_channel_does_not_count(bad):
    stored = np.ones((2, *SHAPE))
    stored[1, 2, 3, 4] = bad
    label, valid = RegressionTarget(channels=2).read_label(stored)
    assert np.argwhere(~valid).tolist() == [[0, 2, 3, 4]]
    assert (label[:, 2, 3, 4] == 0).all()
    assert np.isfinite(label).all()


def test_ignored_values_and_unlabelled_zeros_do_not_count():
    stored = np.array([0, -1, 2, -7.5], np.float32).reshape(1, 1, 1, 4)
    _, valid = RegressionTarget(ignore_label=-1).read_label(stored)
    assert valid.flatten().tolist() == [True, False, True, True]
    _, valid = RegressionTarget(loss_only_on_label=True).read_label(stored)
    assert valid.flatten().tolist() == [False, True, True, True]


def test_the_sigmoid_is_part_of_the_prediction_in_training():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 1, *SHAPE), torch.rand(2, 1, *SHAPE)
    valid = torch.rand(2, 1, *SHAPE) > 0.5
    for name, oracle in [("l1", F.l1_loss), ("l2", F.mse_loss), ("smooth_l1", F.smooth_l1_loss)]:
        plain = RegressionTarget(loss=name).compute_loss(logits, label, valid)
        torch.testing.assert_close(plain, oracle(logits[valid], label[valid]))
        bounded = RegressionTarget(loss=name, activation="sigmoid")
        found = bounded.compute_loss(logits, label, valid)
        torch.testing.assert_close(found, oracle(logits.sigmoid()[valid], label[valid]))
    both = RegressionTarget(loss={"bce": 2, "l1": 1}, activation="sigmoid")
    wanted = 2 * F.binary_cross_entropy_with_logits(logits[valid], label[valid])
    wanted = wanted + F.l1_loss(logits.sigmoid()[valid], label[valid])
    torch.testing.assert_close(both.compute_loss(logits, label, valid), wanted)


def test_bce_refuses_labels_outside_zero_and_one():
    target = RegressionTarget(loss="bce", activation="sigmoid")
    stored = np.zeros((1, *SHAPE), np.float32)
    stored[0, 2, 3, 4] = 1.5
    with pytest.raises(LabelError, match=r"value 1.5 at \(z, y, x\) = \(2, 3, 4\); loss \"bce\""):
        target.read_label(stored)


def test_metrics_by_hand():
    prediction = torch.tensor([1.0, 2.0, 9.0]).view(1, 1, 1, 1, 3)
    label = torch.tensor([0.0, 5.0, 0.0]).view(1, 1, 1, 1, 3)
    valid = torch.tensor([True, True, False]).view(1, 1, 1, 1, 3)
    target = RegressionTarget()
    found = target.summarise(target.measure(prediction, label, valid))
    wanted = {"r2": 1 - 10 / 12.5, "mae": 2, "rmse": math.sqrt(5)}
    wanted |= {"median_error": 1, "p90_error": 3, "p95_error": 3}
    assert found == pytest.approx(wanted, rel=1 / 256)
    nothing = target.measure(prediction, label, torch.zeros_like(valid))
    assert all(math.isnan(v) for v in target.summarise(nothing).values())


@pytest.mark.parametrize("name", ["uint8", "uint16", "float16", "float32"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), low=st.floats(-100, 100), width=st.floats(0.01, 1000))
def test_decoding_undoes_encoding_to_half_a_step(name, seed, low, width):
    dtype = np.dtype(name)
    target = RegressionTarget(channels=2, output_range=[low, low + width])
    wanted = np.random.default_rng(seed).uniform(low, low + width, (2, *SHAPE)).astype(np.float32)
    stored = target.encode(torch.from_numpy(wanted), dtype)
    attributes = target.encoding(dtype)
    rounding = 4e-7 * (abs(low) + width)
    half_step = {"float16": 2000 * rounding, "float32": 0}.get(
        name, 0.5 * attributes["scale"] + rounding
    )
    np.testing.assert_allclose(target.decode(stored), wanted, rtol=0, atol=half_step)
    by_attributes = stored * attributes["scale"] + attributes["offset"]
    np.testing.assert_allclose(by_attributes, wanted, rtol=0, atol=half_step)


def test_values_outside_the_range_are_clipped_and_never_wrap():
    target = RegressionTarget(output_range=[-10, 10])
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf, 300, -300, 10]).view(1, 1, 1, 6)
    stored = target.encode(bad, np.dtype("uint8"))
    assert stored.flatten().tolist() == [0, 255, 0, 255, 0, 255]
    assert np.isnan(target.encode(bad, np.dtype("float32"))[0, 0, 0, 0])


def test_integers_need_a_range():
    with pytest.raises(ValueError, match=r'as uint8 \(integers need "output_range"'):
        RegressionTarget().output_channels(np.dtype("uint8"))
    assert RegressionTarget().output_channels(np.dtype("float32")) is None
    assert RegressionTarget(channels=2).output_channels(np.dtype("float32")) == 2
    sigmoid = RegressionTarget(activation="sigmoid")
    assert sigmoid.output_channels(np.dtype("uint8")) is None
    stored = sigmoid.encode(torch.full((1, 1, 1, 1), 0.2), np.dtype("uint8"))
    assert stored.item() == 51


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pictures_have_three_colours_in_range(channels):
    values = np.random.default_rng(0).normal(0, 9, (channels, 5, 6)).astype(np.float32)
    values[0, 0, 0] = np.nan
    picture = RegressionTarget(channels=channels).picture(values)
    assert picture.shape == (5, 6, 3)
    assert picture.min() >= 0
    assert picture.max() <= 1
    constant = RegressionTarget(channels=channels).picture(np.ones((channels, 5, 6), np.float32))
    assert np.isfinite(constant).all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"loss": "bce"}, 'it needs activation "sigmoid"'),
        ({"output_range": [1, 1]}, r"must be \[low, high\], got \[1"),
        ({"output_range": [1]}, "at least 2 items"),
        ({"loss": "ce"}, 'no loss "ce" for this kind'),
    ],
)
def test_what_does_not_fit_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        RegressionTarget(**keys)
