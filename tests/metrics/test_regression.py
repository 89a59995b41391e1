import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.metrics.regression import (
    angle_counts,
    angle_histogram,
    angle_quantile,
    angle_sums,
    angles_deg,
    close_share,
    correlation,
    determination,
    endpoint_error,
    endpoint_sums,
    error_counts,
    error_histogram,
    error_quantile,
    error_sums,
    mean_absolute,
    mean_angle,
    moment_sums,
    root_mean_square,
    sign_accuracy,
    sign_sums,
)

SHAPE = (6, 7, 8)


def vectors(seed):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 3, *SHAPE))).float()


def test_angles_are_those_of_the_arc_cosine():
    a, b = vectors(0).double(), vectors(1).double()
    cosine = (a * b).sum(1, keepdim=True) / (a.norm(dim=1) * b.norm(dim=1))[:, None]
    found = angles_deg(a.float(), b.float()).double()
    torch.testing.assert_close(found, torch.rad2deg(torch.acos(cosine)), rtol=1e-6, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(degrees=st.floats(1e-3, 0.1))
def test_small_angles_keep_their_digits(degrees):
    a = math.radians(degrees)
    turned = torch.tensor([math.cos(a), math.sin(a), 0]).view(1, 3, 1, 1, 1)
    still = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1, 1)
    assert angles_deg(turned, still).item() == pytest.approx(degrees, rel=1e-5)


def test_a_missing_prediction_is_90_degrees_off_and_a_missing_label_does_not_count():
    label = vectors(0)
    valid = torch.ones(2, 1, *SHAPE, dtype=torch.bool)
    assert (angles_deg(torch.zeros_like(label), label) == 90).all()
    label[1] *= 1e-8
    sums = angle_sums(torch.zeros_like(label), label, valid)
    assert mean_angle(sums) == 90
    assert sums["directed"] == math.prod(SHAPE)


def test_angle_sums_by_hand():
    label = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1, 1).expand(1, 3, 1, 1, 4)
    angles = torch.deg2rad(torch.tensor([0.0, 5.0, 175.0, 45.0]))
    found = torch.stack([angles.cos(), angles.sin(), 0 * angles]).view(1, 3, 1, 1, 4)
    valid = torch.tensor([True, True, True, False]).view(1, 1, 1, 1, 4)
    sums = angle_sums(found, label, valid)
    assert mean_angle(sums) == pytest.approx(60, rel=1e-5)
    assert close_share(sums) == pytest.approx(2 / 3)


def test_error_sums_are_those_of_the_valid_values():
    a, b = vectors(0), vectors(1)
    valid = torch.rand(2, 1, *SHAPE) > 0.5
    error = (a - b)[valid.expand_as(a)].double()
    sums = error_sums(a, b, valid)
    torch.testing.assert_close(sums["absolute"], error.abs().sum())
    torch.testing.assert_close(sums["squared"], error.square().sum())
    assert sums["values"] == error.numel()
    assert mean_absolute(sums) == pytest.approx(float(error.abs().mean()))
    assert root_mean_square(sums) == pytest.approx(float(error.square().mean().sqrt()))


def test_endpoints_and_signs_are_those_of_the_valid_values():
    a, b = vectors(0), vectors(1)
    b[0, 0, 0, 0, 0] = a[0, 0, 0, 0, 0] = 0
    valid = torch.rand(2, 1, *SHAPE) > 0.5
    distance = (a - b).double().norm(dim=1, keepdim=True)[valid].mean()
    assert endpoint_error(endpoint_sums(a, b, valid)) == pytest.approx(float(distance), rel=1e-6)
    right = ((a > 0) == (b > 0))[valid.expand_as(a)].double().mean()
    assert sign_accuracy(sign_sums(a, b, valid)) == pytest.approx(float(right))


def test_correlation_is_that_of_numpy():
    a, b = vectors(0), vectors(1) + 0.5 * vectors(0)
    valid = torch.rand(2, 3, *SHAPE) > 0.5
    wanted = np.corrcoef(a[valid].numpy(), b[valid].numpy())[0, 1]
    assert correlation(moment_sums(a, b, valid)) == pytest.approx(wanted, abs=1e-6)
    assert math.isnan(correlation(moment_sums(torch.ones_like(b), b, valid)))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 3e5])
def test_percentiles_of_errors_are_those_of_numpy_to_a_256th(share, scale):
    a, b = scale * vectors(0), scale * vectors(1)
    valid = torch.rand(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0)) > 0.4
    error = (a - b).abs()[valid.expand_as(a)].numpy()
    wanted = np.quantile(error, share, method="inverted_cdf")
    assert error_quantile(error_counts(a, b, valid), share) == pytest.approx(wanted, rel=1 / 256)


def test_errors_of_nothing_of_zero_and_beyond_the_range():
    zero, valid = torch.zeros(1, 1, 1, 1, 10), torch.ones(1, 1, 1, 1, 10, dtype=torch.bool)
    assert math.isnan(error_quantile(error_counts(zero, zero, ~valid), 0.5))
    assert error_quantile(error_counts(zero, zero, valid), 0.95) == 0
    assert error_quantile(error_counts(zero + 1e-30, zero, valid), 0.5) == 0
    assert error_quantile(error_counts(zero + 1e30, zero, valid), 0.5) > 4e9


def test_quantiles_are_steps_of_the_shares_not_of_their_rounding():
    error = torch.arange(1, 11).float().view(1, 1, 1, 1, 10)
    sums = error_counts(error, torch.zeros_like(error), error > 0)
    assert error_quantile(sums, 0.9) == pytest.approx(9, rel=1 / 256)
    assert error_quantile(sums, 0.91) == pytest.approx(10, rel=1 / 256)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95])
def test_percentiles_of_angles_are_those_of_numpy_where_the_label_has_a_direction(share):
    a, b = vectors(0), vectors(1)
    b[0, :, :3] = 0
    valid = torch.rand(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0)) > 0.4
    directed = valid & (b.abs().sum(1, keepdim=True) > 0)
    wanted = np.quantile(angles_deg(a, b)[directed].numpy(), share, method="inverted_cdf")
    assert angle_quantile(angle_counts(a, b, valid), share) == pytest.approx(wanted, abs=0.0501)


def test_histograms_hold_the_shares_and_reach_as_far_as_they_must():
    a, b = vectors(0), vectors(1)
    valid = torch.ones(2, 1, *SHAPE, dtype=torch.bool)
    angles = angle_counts(a, b, valid)
    (wide,) = angle_histogram(angles).values()
    assert wide.style == "bars"
    assert sum(wide.y) == pytest.approx(1, abs=1e-4)
    assert max(wide.x) == 177.5
    found = angles_deg(a, b).numpy()
    heights, _ = np.histogram(found, 36, (0, 180))
    assert wide.y == pytest.approx(heights / found.size, abs=0.01)
    nearer = torch.where((a * b).sum(1, keepdim=True) < 0, -a, a)
    (narrow,) = angle_histogram(angle_counts(nearer, b, valid)).values()
    assert max(narrow.x) == 88.75
    (errors,) = error_histogram(error_counts(a, b, valid)).values()
    assert sum(errors.y) == pytest.approx(0.99, abs=0.005)


def test_r2_is_one_minus_the_share_of_the_variance_that_is_left():
    a, b = vectors(0), vectors(1) + 0.5 * vectors(0)
    valid = torch.rand(2, 3, *SHAPE, generator=torch.Generator().manual_seed(0)) > 0.5
    p, t = a[valid].double().numpy(), b[valid].double().numpy()
    wanted = 1 - ((p - t) ** 2).sum() / ((t - t.mean()) ** 2).sum()
    assert determination(moment_sums(a, b, valid)) == pytest.approx(wanted, abs=1e-6)
    mean = torch.full_like(b, float(t.mean()))
    assert determination(moment_sums(mean, b, valid)) == pytest.approx(0, abs=1e-6)
    assert determination(moment_sums(b, b, valid)) == 1
    assert math.isnan(determination(moment_sums(a, torch.ones_like(b), valid)))


@pytest.mark.parametrize("centre", [3e4, 1e5])
def test_moments_of_values_far_from_0_are_those_of_their_differences(centre):
    b = (centre + torch.arange(2 * 6 * 7 * 8).view(1, 1, 12, 7, 8) % 5).float()
    a = b + (b % 3 - 1)
    valid = torch.ones_like(b, dtype=torch.bool)
    p, t = (values.double().numpy().ravel() for values in (a, b))
    wanted = 1 - ((p - t) ** 2).sum() / ((t - t.mean()) ** 2).sum()
    assert determination(moment_sums(a, b, valid)) == pytest.approx(wanted, abs=1e-6)
    wanted = np.corrcoef(p, t)[0, 1]
    assert correlation(moment_sums(a, b, valid)) == pytest.approx(wanted, abs=1e-6)
