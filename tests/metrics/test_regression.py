import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.metrics.regression import angle_sums, angles_deg, error_sums

SHAPE = (6, 7, 8)


def vectors(seed):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 3, *SHAPE))).float()


@pytest.mark.parametrize("axial", [False, True])
def test_angles_are_those_of_the_arc_cosine(axial):
    a, b = vectors(0).double(), vectors(1).double()
    cosine = (a * b).sum(1, keepdim=True) / (a.norm(dim=1) * b.norm(dim=1))[:, None]
    wanted = torch.rad2deg(torch.acos(cosine.abs() if axial else cosine))
    found = angles_deg(a.float(), b.float(), axial=axial).double()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(degrees=st.floats(1e-3, 0.1))
def test_small_angles_keep_their_digits(degrees):
    a = math.radians(degrees)
    turned = torch.tensor([math.cos(a), math.sin(a), 0]).view(1, 3, 1, 1, 1)
    still = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1, 1)
    assert angles_deg(turned, still, axial=False).item() == pytest.approx(degrees, rel=1e-5)


@pytest.mark.parametrize("axial", [False, True])
def test_a_missing_prediction_is_90_degrees_off(axial):
    label = vectors(0)
    assert (angles_deg(torch.zeros_like(label), label, axial=axial) == 90).all()


def test_angle_sums_by_hand():
    label = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1, 1).expand(1, 3, 1, 1, 4)
    angles = torch.deg2rad(torch.tensor([0.0, 5.0, 175.0, 45.0]))
    found = torch.stack([angles.cos(), angles.sin(), 0 * angles]).view(1, 3, 1, 1, 4)
    valid = torch.tensor([True, True, True, False]).view(1, 1, 1, 1, 4)
    sums = angle_sums(found, label, valid, axial=False)
    assert sums["degrees"].item() == pytest.approx(180, rel=1e-5)
    assert (sums["close"], sums["voxels"]) == (2, 3)
    sums = angle_sums(found, label, valid, axial=True)
    assert sums["degrees"].item() == pytest.approx(10, rel=1e-5)
    assert (sums["close"], sums["voxels"]) == (3, 3)


def test_error_sums_are_those_of_the_valid_values():
    a, b = vectors(0), vectors(1)
    valid = torch.rand(2, 1, *SHAPE) > 0.5
    error = (a - b)[valid.expand_as(a)].double()
    sums = error_sums(a, b, valid)
    torch.testing.assert_close(sums["absolute"], error.abs().sum())
    torch.testing.assert_close(sums["squared"], error.square().sum())
    assert sums["values"] == error.numel()
