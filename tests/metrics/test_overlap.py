import math

import numpy as np
import pytest
import torch

from vcmodels.metrics.overlap import (
    accuracy,
    confusion,
    dice,
    iou,
    likeliest_class,
    masked_sum,
    precision,
    ratio,
    recall,
    specificity,
    tally,
)

SHAPE = (6, 7, 8)
COUNTS = ("hits", "predicted", "labelled")


def counted(predicted, labelled, valid):
    """The voxels of one class, by NumPy."""
    parts = (predicted & labelled & valid, predicted & valid, labelled & valid)
    return [float(part.sum()) for part in parts]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("valid_channels", [1, 3])
def test_confusion_of_masks_counts_valid_voxels_of_background_and_foreground(
    channels, valid_channels
):
    rng = np.random.default_rng(0)
    share = rng.random((2, channels, *SHAPE)).astype(np.float32)
    share[0, 0, 0, 0, 0] = 0.5
    label = rng.random((2, channels, *SHAPE)) > 0.4
    valid = rng.random((2, min(channels, valid_channels), *SHAPE)) > 0.4
    tensors = (torch.from_numpy(a) for a in (share, label.astype(np.float32), valid))
    found = confusion(*tensors)
    whole = np.broadcast_to(valid, label.shape)
    assert [found[key][1].item() for key in COUNTS] == counted(share > 0.5, label, whole)
    assert [found[key][0].item() for key in COUNTS] == counted(share <= 0.5, ~label, whole)
    assert found["voxels"] == whole.sum()
    assert all(x.dtype == torch.float64 for x in found.values())


def test_confusion_of_classes_is_that_of_each_class():
    rng = np.random.default_rng(0)
    scores = rng.random((2, 6, *SHAPE)).astype(np.float32)
    index, label = scores.argmax(1, keepdims=True), rng.integers(0, 5, (2, 1, *SHAPE))
    valid = rng.random((2, 1, *SHAPE)) > 0.4
    label[0, 0, 0, 0, 0], valid[0, 0, 0, 0, 0] = -1000, False
    tensors = (torch.from_numpy(a) for a in (scores, label.astype(np.float32), valid))
    found = confusion(*tensors)
    for c in range(6):
        assert [found[key][c].item() for key in COUNTS] == counted(index == c, label == c, valid)
    assert found["voxels"] == valid.sum()
    assert accuracy(found) == (index == label)[valid].mean()


def test_figures_by_hand():
    sums = {"hits": [9.0, 2.0, 0.0], "predicted": [9.0, 3.0, 0.0], "labelled": [12.0, 4.0, 0.0]}
    sums = {key: torch.tensor(values) for key, values in sums.items()}
    sums["voxels"] = torch.tensor(16.0)
    wanted = {dice: 4 / 7, iou: 2 / 5, precision: 2 / 3, recall: 1 / 2}
    for figure, value in wanted.items():
        found, absent = figure(sums)
        assert found == value
        assert math.isnan(absent)
    assert accuracy(sums) == 11 / 16
    assert specificity(sums) == [11 / 12, 1]
    all_labelled = sums | {"labelled": torch.tensor([0.0, 16.0, 0.0])}
    assert math.isnan(specificity(all_labelled)[0])
    assert math.isnan(ratio(0, 0))


def test_the_likeliest_class_is_the_first_largest_that_is_a_number():
    scores = torch.tensor([[0.2, 0.1, 0.7], [0.5, 0.5, 0.0], [math.nan, 0.3, 0.4], [math.nan] * 3])
    found = likeliest_class(scores.T.reshape(3, 1, 1, 4))
    assert found.flatten().tolist() == [2, 0, 2, 0]
    assert found.shape == (1, 1, 1, 4)


def test_sums_do_not_lose_small_values_in_large_ones():
    values = torch.full((1, 1, 64, 64, 65), 0.1)
    values[0, 0, 0, 0, 0] = 1e6
    wanted = 1e6 + (values.numel() - 1) * float(torch.tensor(0.1))
    assert abs(float(masked_sum(values, values > 0)) - wanted) < 1e-6


def test_a_sum_ignores_nan_that_is_not_valid():
    values = torch.tensor([1.0, math.nan]).view(1, 1, 1, 1, 2)
    assert masked_sum(values, values == values) == 1


def test_a_tally_counts_valid_ids_once_or_as_often_as_they_stand_for():
    ids = torch.tensor([0, 2, 2, 99, 1]).view(1, 1, 1, 1, 5)
    valid = torch.tensor([True, True, True, False, False]).view(1, 1, 1, 1, 5)
    assert tally(ids, valid, 4).tolist() == [1, 0, 2, 0]
    counts = torch.tensor([3, 1, 5, 0, 2]).view(1, 1, 1, 1, 5)
    assert tally(ids, counts, 4).tolist() == [3, 2, 6, 0]
    assert masked_sum(ids.float(), counts) == 2 + 10 + 2
