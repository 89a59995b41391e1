from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vcmodels.losses.shape import LINES, gap, gap_weight

SHAPE = (7, 8, 9)
EVERYWHERE = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)


def by_brute_force(mask, width):
    """The definition, voxel by voxel and line by line."""
    found = np.zeros(mask.shape, np.float32)

    def distance(place, step):
        count, here = 0, np.array(place)
        while True:
            count, here = count + 1, here + step
            if (here < 0).any() or (here >= mask.shape).any():
                return np.inf
            if mask[tuple(here)]:
                return count * np.linalg.norm(step)

    steps = [np.array(s) for s in product((-1, 0, 1), repeat=3) if any(s)]
    for place in map(tuple, np.argwhere(~mask)):
        narrowest = min(distance(place, s) + distance(place, -s) - 1 for s in steps)
        found[place] = 1 / narrowest if narrowest <= width else 0
    return found


@pytest.mark.parametrize("width", [1, 2, 5, 16])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_the_weight_is_that_of_brute_force(width, share):
    masks = np.random.default_rng(width).random((2, *SHAPE)) < share
    found = gap_weight(torch.from_numpy(masks)[None], width)[0]
    for mask, weight in zip(masks, found, strict=True):
        np.testing.assert_allclose(weight, by_brute_force(mask, width), rtol=1e-6)


def test_the_lines_are_all_neighbours_once():
    assert len(LINES) == 13
    both = {*LINES, *(tuple(-u for u in line) for line in LINES)}
    assert len(both) == 26


def slabs(*starts, thickness=2, shape=(1, 1, 20, 6, 7)):
    mask = torch.zeros(shape)
    for start in starts:
        mask[:, :, start : start + thickness] = 1
    return mask


def test_gaps_of_any_width_weigh_as_their_area_and_wider_ones_nothing():
    weight = gap_weight(slabs(0, 3, 8, 17) > 0, 5)  # gaps of 1, 3 and 7 voxels
    across = weight[0, 0, :, 3, 3]
    assert across.tolist() == pytest.approx([0, 0, 1, 0, 0, *[1 / 3] * 3, *[0] * 12])
    assert weight.sum() == pytest.approx(2 * 6 * 7)


def test_a_perfect_prediction_costs_nothing_and_a_merger_what_the_gap_does():
    label = slabs(2, 6, 9)
    sure = 30 * (2 * label - 1)
    assert gap(sure, label, EVERYWHERE.expand(label.shape)) < 1e-6
    merged = torch.full_like(label, 3.0)
    cost = gap(merged, label, EVERYWHERE.expand(label.shape))
    assert cost.item() == pytest.approx(F.softplus(torch.tensor(3.0)).item())


@pytest.mark.parametrize("area", [(1, 1), (6, 7)], ids=str)
def test_a_small_gap_and_masks_without_one_do_not_lessen_the_mean(area):
    label = torch.cat([slabs(2, 6, shape=(1, 1, 20, *area)), slabs(3, shape=(1, 1, 20, *area))], 1)
    logits = torch.full_like(label, 3.0, requires_grad=True)
    cost = gap(logits, label, EVERYWHERE.expand(1, 1, *label.shape[2:]))
    assert cost.item() == pytest.approx(F.softplus(torch.tensor(3.0)).item())
    cost.backward()
    assert (logits.grad[:, 1] == 0).all()


def test_only_gaps_get_a_gradient_and_it_points_to_the_background():
    label = slabs(2, 6)
    logits = torch.randn(
        label.shape, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    gap(logits, label, EVERYWHERE.expand(label.shape)).backward()
    inside = torch.zeros_like(label, dtype=torch.bool)
    inside[:, :, 4:6] = True
    assert (logits.grad[inside] > 0).all()
    assert (logits.grad[~inside] == 0).all()


def test_two_classes_are_two_masks():
    label = torch.randint(0, 3, (1, 1, *SHAPE), generator=torch.Generator().manual_seed(1)).float()
    logits = torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(2))
    valid = EVERYWHERE.expand(1, 1, *SHAPE)
    found, probability = gap(logits, label, valid, width=3), logits.softmax(1)
    costs = []
    for k in (1, 2):
        share = torch.from_numpy(by_brute_force((label[0, 0] == k).numpy(), 3))
        cost = -(1 - probability[0, k]).log()
        costs.append((share * cost).sum() / share.sum())
    torch.testing.assert_close(found, torch.stack(costs).mean())
