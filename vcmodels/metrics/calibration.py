"""Whether probabilities are what they say, and the temperature that makes them so."""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from vcmodels.metrics.base import Curve
from vcmodels.metrics.curves import BINS, probability_sums, rounded
from vcmodels.metrics.overlap import ratio

CONFIDENCE_BINS = 15
"""Bins of equal width, as many as Guo et al. take."""
_WIDTH = (BINS - 1) // CONFIDENCE_BINS
STEPS = np.arange(BINS) / (BINS - 1)
"""The probability of each step of `probability_sums`."""


def calibration_error(sums: dict[str, Tensor]) -> float:
    """The expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 5).

    Of classes by the probability of the likeliest one; of masks by the probability of the
    foreground, against how often the label is true. The mean over 15 bins (low, high] of equal width
    of |share that is right - mean probability|, weighted by their voxels. Exact for codes of 8 bits; else
    probabilities are rounded to 1 / 1020, also at the edges of bins. NaN without voxels.
    """
    count, confidence, right = _reliability(sums)
    return ratio(float(np.abs(right - confidence).sum()), float(count.sum()))


def _reliability(sums: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each bin: its voxels, the sum of their probabilities, and those that are right."""
    wrong, right = sums["likeliest"].numpy()
    # Step 0 belongs to the first bin: (0, width] has no place for it.
    edges = np.r_[0, np.arange(1, CONFIDENCE_BINS) * _WIDTH + 1]
    every = wrong + right
    count, confidence, hits = (np.add.reduceat(v, edges) for v in (every, every * STEPS, right))
    return count, confidence, hits


def brier(sums: dict[str, Tensor]) -> float:
    """The Brier score: the mean squared difference between probability and label; NaN without voxels.

    Of classes summed over them, the background too (Brier 1950), so between 0 and 2; of masks
    between 0 and 1.
    """
    false, true = sums["counts"].numpy().transpose(1, 0, 2)
    total = (false * STEPS**2 + true * (1 - STEPS) ** 2).sum()
    return ratio(float(total), float(false[0].sum() + true[0].sum()))


def reliability_curve(sums: dict[str, Tensor]) -> dict[str, Curve]:
    """How often predictions are right, over the mean probability of the voxels in each bin."""
    count, confidence, right = _reliability(sums)
    known = count > 0
    x, y = confidence[known] / count[known], right[known] / count[known]
    return {"Reliability": Curve(rounded(x), rounded(y), "probability", "share that is right")}


@dataclass(frozen=True)
class Calibration:
    """The temperature of a head, and what it does."""

    temperature: Annotated[float, Field(gt=0)]
    """Logits are divided by it."""
    error_before: Annotated[float, Field(ge=0, le=1)]
    """The calibration error at temperature 1."""
    error_after: Annotated[float, Field(ge=0, le=1)]
    """The same with the temperature."""

    def __str__(self) -> str:
        return (
            f"ECE {self.error_before:.4f} -> {self.error_after:.4f} at temperature "
            f"{self.temperature:.3g}"
        )


TEMPERATURES = 0.05, 20.0
"""The least and the largest: without a wrong voxel the likelihood has no best one."""


def fit_temperature(logits: Tensor, label: Tensor) -> Calibration:
    """The temperature by which the label is likeliest (Guo et al. 2017, section 4.2).

    Args:
        logits: (N, C) float32 of the voxels that count: of classes; or of masks, C of them.
        label: (N, 1) class indices, or (N, C) masks in [0, 1] as float32.

    Raises:
        ValueError: there is no voxel.
    """
    if not len(logits):
        raise ValueError("no voxel to fit a temperature to")
    from scipy.optimize import minimize_scalar  # late: slow to import, and few fit one

    logits, is_masks = logits.double(), label.shape == logits.shape
    wanted = label.double() if is_masks else label[:, 0].long()
    loss = F.binary_cross_entropy_with_logits if is_masks else F.cross_entropy
    low, high = np.log(TEMPERATURES)
    found: Any = minimize_scalar(  # convex in 1 / T, so that there is one minimum
        lambda t: float(loss(logits / np.exp(t), wanted)), bounds=(low, high), method="bounded"
    )
    temperature = float(np.exp(found.x))
    before, after = (_error(logits / t, label, is_masks=is_masks) for t in (1.0, temperature))
    return Calibration(temperature, before, after)


def _error(logits: Tensor, label: Tensor, *, is_masks: bool) -> float:
    """The calibration error of (N, C) logits."""
    probability = logits.sigmoid() if is_masks else logits.softmax(1)
    shown, wanted = (t.float().T[None, :, :, None, None] for t in (probability, label))
    return calibration_error(probability_sums(shown, wanted, torch.ones_like(wanted[:, :1]) > 0))
