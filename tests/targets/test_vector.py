import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vcmodels.geometry.symmetries import CUBE_SYMMETRIES
from vcmodels.targets import VectorTarget
from vcmodels.targets.vector_math import pull_back, push_forward

SHAPE = (6, 7, 8)
SPACING = (3.0, 0.5, 1.0)


def random_vectors(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=(3, *shape)).astype(np.float32)


def places(shape=SHAPE):
    return np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij"))


def turn(target, label, jacobian, spacing=(1.0, 1.0, 1.0)):
    valid = torch.ones(1, *label.shape[1:], dtype=torch.bool)
    label, jacobian = (torch.as_tensor(np.ascontiguousarray(a)).float() for a in (label, jacobian))
    return target.turn(label, valid, jacobian, spacing)


@pytest.mark.parametrize("units", ["physical", "voxels"])
@pytest.mark.parametrize("symmetry", CUBE_SYMMETRIES, ids=str)
def test_turned_displacements_lead_from_turned_starts_to_turned_ends(symmetry, units):
    """A volume of places is turned with the label: it tells where each voxel came from."""
    vectors = random_vectors()
    ends = (places() + vectors).astype(np.float64)
    j = symmetry.matrix
    start = symmetry(places())
    # q of a place p = J q + constant, the constant told by the first voxel.
    constant = start[:, 0, 0, 0]
    ends_after = np.einsum("ij,izyx->jzyx", j, symmetry(ends) - constant.reshape(3, 1, 1, 1))
    found, _ = turn(VectorTarget(units=units), symmetry(vectors), j, SPACING)
    wanted = ends_after - places(symmetry.turned_shape(SHAPE))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("symmetry", CUBE_SYMMETRIES, ids=str)
def test_turned_gradients_are_the_gradients_of_the_turned_volume(symmetry):
    field = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    moved = symmetry(np.stack(np.gradient(field)))
    found, _ = turn(VectorTarget(transforms_as="gradient"), moved, symmetry.matrix)
    np.testing.assert_array_equal(found, np.stack(np.gradient(symmetry(field))))


@pytest.mark.parametrize("units", ["physical", "voxels"])
@pytest.mark.parametrize("as_field", [False, True])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_any_affine_moves_both_ends_of_a_displacement(units, as_field, seed):
    """On voxels of three unequal sides; the oracle maps start and end by the inverse affine."""
    rng = np.random.default_rng(seed)
    matrix = np.eye(3) + 0.3 * rng.uniform(-1, 1, (3, 3))
    side = np.ones(3) if units == "physical" else np.array(SPACING)
    start, vectors = rng.normal(size=(2, 3, 50))
    end = start + vectors * side[:, None]
    inverse = np.linalg.inv(matrix)
    wanted = (inverse @ end - inverse @ start) / side[:, None]
    j = np.broadcast_to(matrix[..., None, None, None], (3, 3, 1, 1, 50)) if as_field else matrix
    found, valid = turn(VectorTarget(units=units), vectors[:, None, None], j, SPACING)
    np.testing.assert_allclose(found[:, 0, 0], wanted, atol=2e-5)
    assert valid.all()


@pytest.mark.parametrize("units", ["physical", "voxels"])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_any_affine_gives_the_slopes_of_the_resampled_function(units, seed):
    """f(p) = g . p becomes f'(q) = g . M q; slopes by differences along each axis of voxels."""
    rng = np.random.default_rng(seed)
    matrix, slope = np.eye(3) + 0.3 * rng.uniform(-1, 1, (3, 3)), rng.normal(size=3)
    steps = np.diag(SPACING if units == "voxels" else (1.0, 1.0, 1.0))
    before, wanted = steps @ slope, steps @ matrix.T @ slope
    target = VectorTarget(units=units, transforms_as="gradient")
    found, _ = turn(target, before.reshape(3, 1, 1, 1), matrix, SPACING)
    np.testing.assert_allclose(found.flatten(), wanted, atol=2e-5)


def test_a_stretch_lengthens_displacements_and_flattens_gradients():
    """p = q / 2: everything is twice as large afterwards."""
    vectors, j = random_vectors(), np.eye(3) / 2
    np.testing.assert_allclose(turn(VectorTarget(), vectors, j)[0], 2 * vectors, rtol=1e-6)
    gradient = VectorTarget(transforms_as="gradient")
    np.testing.assert_allclose(turn(gradient, vectors, j)[0], vectors / 2, rtol=1e-6)


def test_where_the_map_folds_nothing_counts():
    j = np.broadcast_to(np.eye(3)[..., None, None, None], (3, 3, *SHAPE)).copy()
    j[:, :, 2, 3, 4] = 0
    found, valid = turn(VectorTarget(), random_vectors(), j)
    assert np.argwhere(~valid.numpy()).tolist() == [[0, 2, 3, 4]]
    assert found.isfinite().all()


def test_a_field_of_jacobians_is_solved_as_by_the_library():
    generator = torch.Generator().manual_seed(0)
    j = torch.eye(3).view(3, 3, 1, 1, 1) + 0.3 * torch.randn(3, 3, *SHAPE, generator=generator)
    vectors = torch.from_numpy(random_vectors())
    wanted = torch.linalg.solve(j.permute(2, 3, 4, 0, 1).double(), vectors.movedim(0, -1).double())
    torch.testing.assert_close(
        push_forward(vectors.double(), j.double()), wanted.movedim(-1, 0), rtol=1e-9, atol=1e-9
    )


def test_normals_are_still_pulled_back_by_the_transpose():
    vectors, j = torch.from_numpy(random_vectors()), torch.randn(3, 3)
    wanted = torch.einsum("ij,izyx->jzyx", j, vectors)
    torch.testing.assert_close(pull_back(vectors, j), wanted / wanted.norm(dim=0))


@pytest.mark.parametrize("order", ["xyz", "zyx"])
def test_stored_codes_become_components(order):
    stored = np.random.default_rng(0).integers(1, 60000, (3, *SHAPE)).astype(np.uint16)
    stored[:, 1, 2, 3] = 0
    stored[:, 2, 3, 4] = (0, 0, 5)
    target = VectorTarget(
        vector_order=order, encoding={"scale": 0.01, "offset": -300, "zero_code": 0}
    )
    label, valid = target.read_label(stored)
    wanted = (stored * 0.01 - 300)[:: -1 if order == "xyz" else 1]
    assert np.argwhere(~valid).tolist() == [[0, 1, 2, 3]]
    assert (label[:, 1, 2, 3] == 0).all()
    np.testing.assert_allclose(label, np.where(valid, wanted, 0), atol=1e-4)


def test_zero_is_a_vector_and_nan_is_none():
    stored = random_vectors()
    stored[:, 0, 0, 0] = 0
    stored[1, 2, 3, 4] = np.nan
    stored[2, 3, 3, 3] = np.inf
    _, valid = VectorTarget().read_label(stored)
    assert np.argwhere(~valid).tolist() == [[0, 2, 3, 4], [0, 3, 3, 3]]
    _, valid = VectorTarget(loss_only_on_label=True).read_label(stored)
    assert not valid[0, 0, 0, 0]


def test_the_cosine_looks_at_directions_alone_and_where_there_is_one():
    torch.manual_seed(0)
    label = torch.randn(2, 3, *SHAPE)
    label[:, :, 0] = 0
    valid = torch.rand(2, 1, *SHAPE) > 0.3
    target = VectorTarget(loss={"cosine": 1})
    assert target.compute_loss(5 * label + 0.0, label, valid) < 1e-5
    logits = torch.randn(2, 3, *SHAPE, requires_grad=True)
    target.compute_loss(logits, label, valid).backward()
    counted = valid & (torch.arange(SHAPE[0]).view(-1, 1, 1) > 0)
    assert (logits.grad.abs().sum(1, keepdim=True) > 0).equal(counted)
    angles = torch.nn.functional.cosine_similarity(logits, label, dim=1).unsqueeze(1)
    both = VectorTarget(loss={"cosine": 2, "l1": 0.5})
    wanted = (
        2 * (1 - angles[counted]).mean()
        + 0.5 * (logits - label).abs()[valid.expand_as(label)].mean()
    )
    torch.testing.assert_close(
        both.compute_loss(logits, label, valid), wanted, atol=1e-4, rtol=1e-4
    )


def test_metrics_by_hand():
    prediction = torch.tensor([[3.0, 4, 0], [0, 0, 2], [1, 1, 1], [9, 9, 9]]).T.reshape(
        1, 3, 1, 1, 4
    )
    label = torch.tensor([[0.0, 0, 0], [0, 2, 0], [2, 2, 2], [0, 0, 0]]).T.reshape(1, 3, 1, 1, 4)
    valid = torch.tensor([True, True, True, False]).view(1, 1, 1, 1, 4)
    target = VectorTarget()
    found = target.summarise(target.measure(prediction, label, valid))
    wanted = {"endpoint_error": (5 + math.sqrt(8) + math.sqrt(3)) / 3, "angle_deg": 45}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    shares = {"angle_median_deg": 0, "angle_p90_deg": 90, "angle_p95_deg": 90}
    assert {name: found[name] for name in shares} == pytest.approx(shares, abs=0.05001)
    assert found.keys() == wanted.keys() | shares.keys()
    nothing = target.summarise(target.measure(prediction, label, torch.zeros_like(valid)))
    assert all(math.isnan(v) for v in nothing.values())


@pytest.mark.parametrize("units", ["physical", "voxels"])
def test_derived_vectors_lead_to_the_centre_of_their_instance(units):
    target = VectorTarget(derive="cells", max_extent=(3, 4, 5), units=units)
    margin = target.source_margin(SPACING)
    assert margin == (3, 4, 5)
    ids = np.zeros(SHAPE, np.float32)
    ids[1:4, 2:4, 3:6] = 2
    source = torch.from_numpy(np.pad(ids, [(m, m) for m in margin]))[None]
    known = torch.from_numpy(np.pad(np.ones(SHAPE, bool), [(m, m) for m in margin]))[None]
    label, valid = target.derive_label(source, known, SPACING)
    side = np.array(SPACING if units == "physical" else (1, 1, 1)).reshape(3, 1, 1, 1)
    centre = np.array([2, 2.5, 4]).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(label, (centre - places()) * side * (ids > 0), atol=1e-6)
    assert valid.all()


def test_pictures_show_direction_as_colour_and_length_as_brightness():
    slices = np.zeros((3, 4, 5), np.float32)
    slices[2, 1, 1], slices[2, 2, 2] = 4, 2
    slices[0, 3, 3] = np.nan
    picture = VectorTarget().picture(slices)
    np.testing.assert_allclose(picture[1, 1], (1, 0.5, 0.5))
    np.testing.assert_allclose(picture[2, 2], (0.5, 0.25, 0.25))
    assert (picture[0, 0] == 0).all()
    known = VectorTarget(output_range=[-8, 8]).picture(slices)
    np.testing.assert_allclose(known[1, 1], (0.5, 0.25, 0.25))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"derive": "cells"}, 'give "max_extent" in voxels'),
        ({"derive": "cells", "max_extent": 5, "encoding": {"scale": 0.5}}, "has no encoding"),
        ({"max_extent": 5}, "of use with derive only"),
        ({"keep_cut": True}, "of use with derive only"),
        ({"derive": "cells", "max_extent": 5, "transforms_as": "gradient"}, "is no gradient"),
        ({"output_range": [1, 1]}, r"must be \[low, high\], got \[1"),
        ({"loss": "axial_cosine"}, 'no loss "axial_cosine" for this kind'),
        ({"channels": 2}, "greater than or equal to 3"),
    ],
)
def test_what_does_not_fit_is_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        VectorTarget(**keys)


def test_integers_need_a_range():
    with pytest.raises(ValueError, match=r'as uint8 \(integers need "output_range"'):
        VectorTarget().output_channels(np.dtype("uint8"))
    assert VectorTarget(output_range=[-9, 9]).output_channels(np.dtype("uint8")) == 3
