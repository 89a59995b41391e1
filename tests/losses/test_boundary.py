import numpy as np
import pytest
import torch
from scipy import ndimage

from vcmodels.losses.shape import boundary, distance_to_boundary

SHAPE = (6, 7, 8)


def by_brute_force(mask, valid, clip):
    """The definition, pair by pair."""
    found = np.full(mask.shape, float(clip), np.float32)
    for place in np.ndindex(mask.shape):
        others = np.argwhere(valid & (mask != mask[place]))
        if len(others):
            found[place] = min(clip, np.sqrt(((others - place) ** 2).sum(1)).min() - 0.5)
    return found


@pytest.mark.parametrize("clip", [1, 3, 10])
def test_the_distance_is_that_to_the_nearest_valid_voxel_of_the_other_side(clip):
    random = np.random.default_rng(0)
    mask, valid = random.random(SHAPE) > 0.95, random.random(SHAPE) > 0.4
    arrays = (torch.from_numpy(a)[None, None] for a in (mask, valid))
    found = distance_to_boundary(*arrays, clip)[0, 0]
    np.testing.assert_allclose(found, by_brute_force(mask, valid, clip), rtol=1e-6)


def test_the_distance_is_that_of_scipy_where_all_is_valid():
    random = np.random.default_rng(1)
    mask = ndimage.gaussian_filter(random.normal(size=(20, 24, 28)), 2) > 0
    outside, inside = (ndimage.distance_transform_edt(side) for side in (~mask, mask))
    wanted = np.minimum(outside + inside - 0.5, 6)
    given = torch.from_numpy(mask)[None, None]
    found = distance_to_boundary(given, torch.ones_like(given), 6)[0, 0]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_the_loss_by_hand():
    # Distances 1.5, 0.5 | 0.5, 1.5, clipped at 1; the last voxel is not valid.
    label = torch.tensor([1.0, 1, 0, 0, 0]).view(1, 1, 1, 1, 5)
    probability = torch.tensor([0.75, 0.5, 0.25, 0.5, 0.9]).view(1, 1, 1, 1, 5)
    valid = torch.tensor([True, True, True, True, False]).view(1, 1, 1, 1, 5)
    wanted = (0.25 * 1 + 0.5 * 0.5 + 0.25 * 0.5 + 0.5 * 1) / 4
    assert boundary(torch.logit(probability), label, valid, clip=1).item() == pytest.approx(wanted)


def test_the_gradient_is_that_of_the_papers_signed_integral():
    torch.manual_seed(0)
    logits = torch.randn(2, 1, *SHAPE, dtype=torch.float64, requires_grad=True)
    label = torch.zeros(2, 1, *SHAPE)
    label[:, :, 2:4, 2:5, 3:] = 1
    valid = torch.ones_like(label, dtype=torch.bool)
    distance = distance_to_boundary(label > 0, valid, 10).double()
    signed = torch.where(label > 0, -distance, distance) / 10
    wanted = torch.autograd.grad((signed * logits.sigmoid()).mean(), logits)
    found = torch.autograd.grad(boundary(logits, label, valid), logits)
    torch.testing.assert_close(found, wanted)


def test_a_perfect_prediction_costs_nothing_and_a_far_error_more_than_a_near_one():
    label = torch.zeros(1, 1, 12, 7, 8)
    label[:, :, :3] = 1
    valid = torch.ones_like(label, dtype=torch.bool)
    costs = []
    for plane in (None, 3, 6, 10):
        predicted = label.clone()
        if plane is not None:
            predicted[:, :, plane] = 1
        costs.append(boundary(100 * (2 * predicted - 1), label, valid).item())
    assert costs[0] == 0
    assert costs == sorted(set(costs))
