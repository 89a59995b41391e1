"""Counts of right and wrong voxels, and Dice, IoU, precision and recall of them."""

import math

import torch
from torch import Tensor


def masked_sum(values: Tensor, valid: Tensor) -> Tensor:
    """Sum of (B, K, Z, Y, X) `values` over the valid voxels and K: scalar float64 on the CPU."""
    kept = torch.where(
        valid, values.detach(), torch.zeros((), dtype=values.dtype, device=values.device)
    )
    if not kept.is_floating_point() or kept.device.type == "mps":  # MPS has no float64.
        return kept.sum().cpu().double()
    return kept.sum(dtype=torch.float64).cpu()


def ratio(part: float | Tensor, whole: float | Tensor) -> float:
    """`part / whole`; NaN, not an error, when `whole` is 0."""
    return float(part) / float(whole) if float(whole) else math.nan


def confusion(predicted: Tensor, labelled: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Voxels that are predicted, labelled, and both.

    Args:
        predicted: (B, 1, Z, Y, X) bool.
        labelled: (B, 1, Z, Y, X) bool.
        valid: (B, 1, Z, Y, X) bool.

    Returns:
        `hits`, `predicted`, `labelled`, `voxels`: scalars, float64, on the CPU.
    """
    return {
        "hits": masked_sum(predicted & labelled, valid),
        "predicted": masked_sum(predicted, valid),
        "labelled": masked_sum(labelled, valid),
        "voxels": masked_sum(valid, valid),
    }


def class_confusion(
    predicted: Tensor, labelled: Tensor, valid: Tensor, classes: int
) -> dict[str, Tensor]:
    """`confusion` for each class at once.

    Args:
        predicted: (B, 1, Z, Y, X) int64 class indices.
        labelled: (B, 1, Z, Y, X) int64 class indices; anything where `valid` is false.
        valid: (B, 1, Z, Y, X) bool.
        classes: how many classes there are.

    Returns:
        `hits`, `predicted`, `labelled`: (classes,); `voxels`: scalar; all float64 on the CPU.
    """

    def count(index: Tensor, where: Tensor) -> Tensor:
        kept = torch.where(where, index, classes).flatten()
        return torch.bincount(kept, minlength=classes + 1)[:classes].cpu().double()

    return {
        "hits": count(labelled, valid & (predicted == labelled)),
        "predicted": count(predicted, valid),
        "labelled": count(labelled, valid),
        "voxels": masked_sum(valid, valid),
    }


def dice(hits: Tensor, predicted: Tensor, labelled: Tensor) -> float:
    """2 |P and T| / (|P| + |T|); NaN when both are empty."""
    return ratio(2 * hits, predicted + labelled)


def iou(hits: Tensor, predicted: Tensor, labelled: Tensor) -> float:
    """|P and T| / |P or T|; NaN when both are empty."""
    return ratio(hits, predicted + labelled - hits)
