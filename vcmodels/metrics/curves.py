"""Figures over all thresholds at once, from histograms of probabilities that add.

The probabilities are counted in `BINS` equal steps, apart where the label is true and where it is
not. Stored codes of 8 bits fall into steps of their own: figures of them are exact. Of floats those
within a step of 1 / 1020 are taken as equal; the exact figure lies between those of the best and
the worst order within the steps.
"""

import math

import numpy as np
import torch
from torch import Tensor

from vcmodels.metrics.base import Curve
from vcmodels.metrics.overlap import likeliest_class, ratio, tally

BINS = 4 * 255 + 1
"""Steps of a probability; code c of uint8 is in the middle of step 4c."""
POINTS = 100
"""Of a curve, along x: more are not seen."""


def probability_sums(prediction: Tensor, label: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """How often each probability occurs, where the label is false and where it is true.

    Masks of several channels are counted together; a class is one against the rest.

    Args:
        prediction: (B, C, Z, Y, X) float32 probabilities; NaN counts as 0, what lies outside of
            [0, 1] as its nearer end.
        label: (B, C, Z, Y, X) masks in [0, 1]; or for C > 1 (B, 1, Z, Y, X) class indices.
        valid: (B, V, Z, Y, X) bool, or numbers of voxels, V being 1 or the channels of the label.

    Returns:
        `counts`: (K, 2, BINS) for the K classes, the background too; K is 1 for masks.
        `likeliest`: (2, BINS), probabilities of the likeliest class, where it is wrong and where it
        is right; for masks those of the foreground, as in `counts`.
        Both float64 on the CPU.
    """
    if label.shape[1] == prediction.shape[1]:
        counts = _histogram(prediction, label > 0.5, valid)
        return {"counts": counts[None], "likeliest": counts}
    index, wanted = likeliest_class(prediction), label.long()
    classes = (
        _histogram(one.unsqueeze(1), wanted == c, valid)
        for c, one in enumerate(prediction.unbind(1))
    )
    best = prediction.gather(1, index)
    return {
        "counts": torch.stack([*classes]),
        "likeliest": _histogram(best, index == wanted, valid),
    }


def _histogram(probability: Tensor, is_true: Tensor, valid: Tensor) -> Tensor:
    """(2, BINS): how often each step occurs where `is_true` is false, and where it is true."""
    step = (probability.detach().nan_to_num(0.0).clamp(0, 1) * (BINS - 1)).round().int()
    return tally(step + BINS * is_true, valid, 2 * BINS).view(2, BINS)


def foreground(sums: dict[str, Tensor]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each class but the background, or of the masks: `false` and `true` (BINS,) counts."""
    counts = sums["counts"] if len(sums["counts"]) == 1 else sums["counts"][1:]
    return [(false, true) for false, true in counts.numpy()]


def _above(counts: np.ndarray) -> np.ndarray:
    """How many are in each step or above, from the highest step down."""
    return np.cumsum(counts[::-1])


def average_precision(sums: dict[str, Tensor]) -> list[float]:
    """Average precision of each class: the sum over thresholds of precision times the recall gained.

    Without interpolation, equal probabilities being one threshold, as in scikit-learn's
    `average_precision_score`; NaN when nothing is labelled.
    """
    return [_average_precision(*counts) for counts in foreground(sums)]


def _average_precision(false: np.ndarray, true: np.ndarray) -> float:
    hits, every = _above(true), _above(true + false)
    precision = np.divide(hits, every, out=np.zeros_like(hits), where=every > 0)
    return ratio(float((precision * true[::-1]).sum()), float(hits[-1]))


def roc_area(sums: dict[str, Tensor]) -> list[float]:
    """The area under the ROC curve of each class; NaN when nothing is labelled, or all.

    That is how often a labelled voxel has a higher probability than another, ties counting half.
    """
    return [_roc_area(*counts) for counts in foreground(sums)]


def _roc_area(false: np.ndarray, true: np.ndarray) -> float:
    below = np.cumsum(false) - false / 2
    return ratio(float((true * below).sum()), float(true.sum() * false.sum()))


def best_dice(sums: dict[str, Tensor]) -> list[float]:
    """The Dice of each class at its best threshold; NaN when nothing is labelled."""
    return [_best_dice(*counts)[0] for counts in foreground(sums)]


def best_threshold(sums: dict[str, Tensor]) -> list[float]:
    """The threshold of the best Dice of each class: what lies above it is predicted.

    Of several the nearest to a half, below 0 where all should be; NaN when nothing is labelled.
    """
    return [_best_dice(*counts)[1] for counts in foreground(sums)]


def _best_dice(false: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    if not true.any():
        return math.nan, math.nan
    found, thresholds = _dice_over_threshold(false, true)
    best = found.max()
    nearest = np.abs(thresholds - 0.5)
    return float(best), float(thresholds[np.where(found == best, nearest, math.inf).argmin()])


def _dice_over_threshold(false: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Dice of what is above each threshold, and the thresholds: between steps, upwards."""
    hits, every = _above(true)[::-1], _above(true + false)[::-1]
    thresholds = (np.arange(BINS) - 0.5) / (BINS - 1)
    return 2 * hits / np.maximum(every + true.sum(), 1), thresholds


def threshold_curves(sums: dict[str, Tensor]) -> dict[str, list[Curve]]:
    """Precision over recall, ROC, and Dice over the threshold, of each class.

    Empty where nothing is labelled, or for ROC all.
    """
    every = foreground(sums)
    return {
        "Precision and recall": [_precision_recall(*counts) for counts in every],
        "ROC": [_roc(*counts) for counts in every],
        "Dice by threshold": [_dice_curve(*counts) for counts in every],
    }


def _precision_recall(false: np.ndarray, true: np.ndarray) -> Curve:
    hits, every = _above(true), _above(true + false)
    known = every > 0 if true.any() else np.zeros(BINS, bool)
    recall = hits[known] / max(true.sum(), 1)
    return thinned(recall, hits[known] / every[known], "recall", "precision")


def _roc(false: np.ndarray, true: np.ndarray) -> Curve:
    is_known = true.any() and false.any()
    across = np.concatenate([[0.0], _above(false) / max(false.sum(), 1)] if is_known else [[]])
    up = np.concatenate([[0.0], _above(true) / max(true.sum(), 1)] if is_known else [[]])
    return thinned(across, up, "false positive rate", "true positive rate")


def _dice_curve(false: np.ndarray, true: np.ndarray) -> Curve:
    found, thresholds = _dice_over_threshold(false, true)
    known = slice(None) if true.any() else slice(0)
    return thinned(thresholds[known].clip(0, 1), found[known], "threshold", "Dice")


def thinned(x: np.ndarray, y: np.ndarray, x_label: str, y_label: str) -> Curve:
    """A line through the last point in each of `POINTS` parts of [0, 1], and the first of all."""
    part = np.ceil(x * POINTS).astype(int)
    kept = np.append(part[1:] != part[:-1], True)[: len(x)]
    kept[:1] = True
    return Curve(rounded(x[kept]), rounded(y[kept]), x_label, y_label)


def rounded(values: np.ndarray) -> tuple[float, ...]:
    """For a picture: five digits."""
    return tuple(float(f"{value:.5g}") for value in values)
