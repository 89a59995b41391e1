import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vcmodels.targets.vector_math import outer_products, principal_axes, pull_back, unit

SHAPE = (6, 7, 8)


def normals(seed=0, shape=SHAPE):
    return unit(torch.from_numpy(np.random.default_rng(seed).normal(size=(3, *shape))).float())


def matrices(moments):
    """(6, Z, Y, X) as (N, 3, 3), float64."""
    zz, yy, xx, zy, zx, yx = moments.double().flatten(1)
    rows = [zz, zy, zx, zy, yy, yx, zx, yx, xx]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def rayleigh(axes, moments):
    v = axes.double().flatten(1).T
    return torch.einsum("ni,nij,nj->n", v, matrices(moments), v)


def mean_moments(seed, count, sharpness):
    """Averages of `count` noisy copies of random axes."""
    rng = np.random.default_rng(seed)
    main = rng.normal(size=(3, *SHAPE))
    noisy = sharpness * main + rng.normal(size=(count, 3, *SHAPE))
    return outer_products(unit(torch.from_numpy(noisy).float())).mean(0)


def shortfall(gap):
    """How much of the largest eigenvalue an axis may miss, `gap` being what the second lacks.

    In float32 the eigenvalue is off by up to 1e-8 / gap, for it is found with an arc cosine that is
    the steeper the nearer the two are. The axis turns towards the second one by the share that this
    error has of what it leaves of the gap, and loses the square of it. So it is within 3e-6 from a
    gap of 4e-4 on; of two that differ by less than 1e-4 it is one or the other.
    """
    error = 1e-8 / gap.clamp(min=1e-12)
    turned = torch.where(error < gap, error / (gap - error), torch.inf)
    return 1e-6 + gap * turned.square().clamp(max=1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 8), sharpness=st.floats(0, 20))
@example(seed=129106517, count=2, sharpness=0.0)
def test_principal_axes_reach_the_largest_eigenvalue(seed, count, sharpness):
    moments = mean_moments(seed, count, sharpness)
    _, second, largest = torch.linalg.eigvalsh(matrices(moments)).unbind(-1)
    axes = principal_axes(moments)
    torch.testing.assert_close(axes.norm(dim=0), torch.ones(SHAPE))
    missing = largest - rayleigh(axes, moments)
    assert (missing.abs() <= shortfall(largest - second)).all()


@pytest.mark.parametrize("gap", [0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-2])
@pytest.mark.parametrize("third", [0, 0.1, 0.3])
def test_principal_axes_of_nearly_equal_axes_stay_in_their_plane(gap, third):
    frames = torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).normal(size=(4096, 3, 3))))
    axes = frames.Q.permute(2, 1, 0).reshape(3, 3, 16, 16, 16)
    weights = torch.tensor([0.5 + gap, 0.5, third]).double().view(3, 1, 1, 1, 1)
    moments = (weights * outer_products(axes)).sum(0).float()
    found = rayleigh(principal_axes(moments), moments)
    # float32 cannot tell two eigenvalues apart that differ by less than about 1e-4: the arc cosine
    # is steep there. Out of the plane the error would be 0.2 and more.
    allowed = min(gap, 1e-4) + 4e-6
    torch.testing.assert_close(found, torch.full_like(found, 0.5 + gap), rtol=0, atol=allowed)


def test_principal_axes_are_the_eigenvectors_where_one_stands_out():
    moments = mean_moments(0, 5, 3)
    values, vectors = torch.linalg.eigh(matrices(moments))
    clear = values[:, 2] - values[:, 1] > 0.1
    cosine = (principal_axes(moments).double().flatten(1).T * vectors[..., -1]).sum(-1).abs()
    assert clear.sum() > 200
    assert cosine[clear].min() > 1 - 1e-6


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_an_axis_survives_its_outer_product(scale):
    axes = normals()
    cosine = (principal_axes(scale * outer_products(axes)) * axes).sum(0).abs()
    assert cosine.min() > 1 - 1e-6


@pytest.mark.parametrize("pair", list(itertools.combinations(range(3), 2)), ids=str)
def test_of_two_equal_axes_the_result_lies_in_their_plane(pair):
    tied = torch.eye(3)[list(pair)].view(2, 3, 1, 1, 1)
    axis = principal_axes(outer_products(tied).mean(0)).flatten()
    assert axis.norm() == pytest.approx(1)
    (missing,) = {0, 1, 2} - set(pair)
    assert abs(axis[missing]) < 1e-6


def test_no_axis_is_the_zero_vector():
    assert (principal_axes(torch.zeros(6, *SHAPE)) == 0).all()
    assert (principal_axes(torch.full((6, *SHAPE), torch.nan)) == 0).all()
    isotropic = torch.tensor([1.0, 1, 1, 0, 0, 0]).view(6, 1, 1, 1) / 3
    assert (principal_axes(isotropic) == 0).all()


def test_a_leading_batch_axis_changes_nothing():
    moments = torch.stack([mean_moments(0, 3, 1), mean_moments(1, 3, 1)])
    wanted = torch.stack([principal_axes(m) for m in moments])
    torch.testing.assert_close(principal_axes(moments), wanted, rtol=0, atol=0)


def test_unit_leaves_no_direction_as_it_is():
    vectors = torch.zeros(3, 1, 1, 4)
    vectors[:, 0, 0, 0] = torch.tensor([3.0, 0, 4])
    vectors[0, 0, 0, 1] = 1e-7
    vectors[0, 0, 0, 2] = torch.nan
    vectors[0, 0, 0, 3] = torch.inf
    wanted = torch.zeros(3, 1, 1, 4)
    wanted[:, 0, 0, 0] = torch.tensor([0.6, 0, 0.8])
    torch.testing.assert_close(unit(vectors), wanted)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_constant_jacobian_acts_as_the_same_field(seed):
    jacobian = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 3))).float()
    field = jacobian[..., None, None, None].expand(3, 3, *SHAPE)
    vectors = normals()
    wanted = unit(torch.einsum("ij,izyx->jzyx", jacobian, vectors))
    kwargs = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(pull_back(vectors, jacobian), wanted, **kwargs)
    torch.testing.assert_close(pull_back(vectors, field), wanted, **kwargs)
