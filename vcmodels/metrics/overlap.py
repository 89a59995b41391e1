"""Counts of right and wrong voxels, the shares of them such as Dice, and where regions lie."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vcmodels.fields.instances import mean_place
from vcmodels.geometry.boxes import Spacing


def masked_sum(values: Tensor, valid: Tensor) -> Tensor:
    """Sum of (B, K, Z, Y, X) `values` over the valid voxels and K: scalar float64 on the CPU.

    `valid` is bool, or int64: the number of voxels that each stands for.
    """
    if valid.dtype != torch.bool:
        return torch.where(valid > 0, values.double() * valid, 0.0).sum().cpu()
    kept = torch.where(
        valid, values.detach(), torch.zeros((), dtype=values.dtype, device=values.device)
    )
    if not kept.is_floating_point() or kept.device.type == "mps":  # MPS has no float64.
        return kept.sum().cpu().double()
    return kept.sum(dtype=torch.float64).cpu()


def count_valid(valid: Tensor, label: Tensor) -> Tensor:
    """How many values of a label count: of each channel, where `valid` has one for all."""
    every = torch.ones((), dtype=torch.bool, device=label.device)
    return masked_sum(every.expand_as(label), valid)


def tally(ids: Tensor, valid: Tensor, count: int) -> Tensor:
    """How often each of the ids 0 ... count - 1 occurs in the valid voxels.

    Args:
        ids: (B, K, Z, Y, X), whole numbers below `count` where valid.
        valid: of a shape that broadcasts to theirs; as for `masked_sum`.
        count: of the ids.

    Returns:
        (count,) float64 on the CPU.
    """
    kept = torch.where(valid > 0, ids, count).flatten()
    weights = None if valid.dtype == torch.bool else valid.expand_as(ids).flatten().double()
    return torch.bincount(kept, weights, minlength=count + 1)[:count].cpu().double()


def ratio(part: float | Tensor, whole: float | Tensor) -> float:
    """`part / whole`; NaN, not an error, when `whole` is 0."""
    return float(part) / float(whole) if float(whole) else math.nan


def likeliest_class(scores: Tensor) -> Tensor:
    """The class of the largest of (..., C, Z, Y, X): (..., 1, Z, Y, X) int64; NaN never wins.

    A running maximum: `argmax` over the channel axis takes 10 times as long on the CPU.
    """
    best = torch.full_like(scores.select(-4, 0), -torch.inf)
    index = torch.zeros_like(best, dtype=torch.int64)
    for c, score in enumerate(scores.unbind(-4)):
        index.masked_fill_(score > best, c)
        best = torch.fmax(best, score)
    return index.unsqueeze(-4)


def confusion(prediction: Tensor, label: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Voxels of each class that are predicted, labelled, and both.

    A mask has two classes, the background and what is above a half; masks of several channels are
    counted together.

    Args:
        prediction: (B, C, Z, Y, X) float32 probabilities.
        label: (B, C, Z, Y, X) masks in [0, 1]; or for C > 1 (B, 1, Z, Y, X) class indices.
        valid: (B, V, Z, Y, X) bool, or numbers of voxels, V being 1 or the channels of the label.

    Returns:
        `hits`, `predicted`, `labelled`: (classes,); `voxels`: scalar; all float64 on the CPU.
    """
    if label.shape[1] == prediction.shape[1]:
        return _mask_confusion(prediction > 0.5, label > 0.5, valid)
    classes = prediction.shape[1]
    index, wanted = likeliest_class(prediction), label.long()
    return {
        "hits": tally(wanted, valid * (index == wanted), classes),
        "predicted": tally(index, valid, classes),
        "labelled": tally(wanted, valid, classes),
        "voxels": count_valid(valid, wanted),
    }


def _mask_confusion(predicted: Tensor, labelled: Tensor, valid: Tensor) -> dict[str, Tensor]:
    hits = masked_sum(predicted & labelled, valid)
    found, wanted = masked_sum(predicted, valid), masked_sum(labelled, valid)
    voxels = count_valid(valid, labelled)
    return {
        "hits": torch.stack([voxels - found - wanted + hits, hits]),
        "predicted": torch.stack([voxels - found, found]),
        "labelled": torch.stack([voxels - wanted, wanted]),
        "voxels": voxels,
    }


def dice(sums: dict[str, Tensor]) -> list[float]:
    """2 |P and T| / (|P| + |T|) of each class but the background; NaN when both are empty."""
    return [ratio(2 * both, p + t) for both, p, t in _foreground(sums)]


def iou(sums: dict[str, Tensor]) -> list[float]:
    """|P and T| / |P or T| of each class but the background; NaN when both are empty."""
    return [ratio(both, p + t - both) for both, p, t in _foreground(sums)]


def precision(sums: dict[str, Tensor]) -> list[float]:
    """|P and T| / |P| of each class but the background; NaN when nothing is predicted."""
    return [ratio(both, p) for both, p, _ in _foreground(sums)]


def recall(sums: dict[str, Tensor]) -> list[float]:
    """|P and T| / |T| of each class but the background; NaN when nothing is labelled."""
    return [ratio(both, t) for both, _, t in _foreground(sums)]


def specificity(sums: dict[str, Tensor]) -> list[float]:
    """The share of what is not labelled that is not predicted, by class; NaN when all is labelled."""
    every = sums["voxels"]
    return [ratio(every - p - t + both, every - t) for both, p, t in _foreground(sums)]


def accuracy(sums: dict[str, Tensor]) -> float:
    """The share of the voxels whose class is right, background included; NaN without voxels."""
    return ratio(sums["hits"].sum(), sums["voxels"])


def _foreground(sums: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """`hits`, `predicted` and `labelled` of each class but the background."""
    counts = (sums[key][1:].unbind() for key in ("hits", "predicted", "labelled"))
    return zip(*counts, strict=True)


def regions(
    prediction: np.ndarray, label: np.ndarray, valid: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The predicted and the labelled region of each mask, or of each class but the background.

    Args:
        prediction: (C, Z, Y, X) float32 probabilities.
        label: (C, Z, Y, X) masks in [0, 1]; or for C > 1 (1, Z, Y, X) class indices.
        valid: (V, Z, Y, X) bool, V being 1 or the channels of the label; no region goes beyond.

    Yields:
        Two (Z, Y, X) bool.
    """
    if len(label) == len(prediction):
        masks = zip(prediction, label, np.broadcast_to(valid, label.shape), strict=True)
        yield from (((p > 0.5) & v, (t > 0.5) & v) for p, t, v in masks)
        return
    index = likeliest_class(torch.from_numpy(prediction)).numpy()
    for c in range(1, len(prediction)):
        yield ((index == c) & valid)[0], ((label == c) & valid)[0]


def centroid_distance(
    prediction: np.ndarray, label: np.ndarray, valid: np.ndarray, spacing: Spacing
) -> dict[str, list[float]]:
    """How far the centre of each predicted region lies from the centre of the labelled one.

    In the unit of the spacing; NaN where one of the two regions is empty. Arguments as for
    `regions`, and the length of a voxel along (z, y, x).
    """
    pairs = regions(prediction, label, valid)
    distances = [math.dist(centroid(p, spacing), centroid(t, spacing)) for p, t in pairs]
    return {"centroid_distance": distances}


def centroid(region: np.ndarray, spacing: Spacing) -> tuple[float, float, float]:
    """The centre of mass of a (Z, Y, X) bool region from the centre of voxel (0, 0, 0); NaN if empty."""
    if not region.any():
        return math.nan, math.nan, math.nan
    z, y, x = mean_place(region)
    return z * spacing[0], y * spacing[1], x * spacing[2]
