import math

import numpy as np
import torch

from vcmodels.metrics.overlap import class_confusion, confusion, dice, iou, masked_sum, ratio

SHAPE = (6, 7, 8)


def test_confusion_counts_valid_voxels_only():
    rng = np.random.default_rng(0)
    p, t, v = (rng.random((2, 1, *SHAPE)) > 0.4 for _ in range(3))
    found = confusion(*map(torch.from_numpy, (p, t, v)))
    wanted = {"hits": (p & t & v), "predicted": p & v, "labelled": t & v, "voxels": v}
    assert {k: float(x) for k, x in found.items()} == {k: w.sum() for k, w in wanted.items()}
    assert all(x.dtype == torch.float64 for x in found.values())


def test_class_confusion_is_confusion_of_each_class():
    rng = np.random.default_rng(0)
    p, t = (torch.from_numpy(rng.integers(0, 5, (2, 1, *SHAPE))) for _ in range(2))
    v = torch.from_numpy(rng.random((2, 1, *SHAPE)) > 0.4)
    t[~v] = p[~v]
    t[0, 0, 0, 0, 0], v[0, 0, 0, 0, 0] = -1000, False
    found = class_confusion(p, t, v, 6)
    for c in range(6):
        wanted = confusion(p == c, t == c, v)
        assert {k: float(x[c]) for k, x in found.items() if k != "voxels"} == {
            k: float(x) for k, x in wanted.items() if k != "voxels"
        }
    assert found["voxels"] == v.sum()


def test_dice_and_iou_by_hand():
    counts = torch.tensor(2.0), torch.tensor(3.0), torch.tensor(4.0)
    assert dice(*counts) == 4 / 7
    assert iou(*counts) == 2 / 5
    nothing = torch.zeros(3).unbind()
    assert math.isnan(dice(*nothing))
    assert math.isnan(iou(*nothing))
    assert math.isnan(ratio(0, 0))


def test_sums_do_not_lose_small_values_in_large_ones():
    values = torch.full((1, 1, 64, 64, 65), 0.1)
    values[0, 0, 0, 0, 0] = 1e6
    wanted = 1e6 + (values.numel() - 1) * float(torch.tensor(0.1))
    assert abs(float(masked_sum(values, values > 0)) - wanted) < 1e-6


def test_a_sum_ignores_nan_that_is_not_valid():
    values = torch.tensor([1.0, math.nan]).view(1, 1, 1, 1, 2)
    assert masked_sum(values, values == values) == 1
