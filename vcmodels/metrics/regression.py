"""Errors of regressed values and of directions, and Pearson's correlation, from sums that add."""

import math

import torch
from torch import Tensor

from vcmodels.metrics.overlap import masked_sum

CLOSE_DEG = 10.0
"""A direction within this angle of the label counts as close."""


def error_sums(prediction: Tensor, label: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Sums of |d|, d^2 and the count of values, for d = prediction - label.

    Args:
        prediction: (B, C, Z, Y, X) float32.
        label: (B, C, Z, Y, X) float32.
        valid: (B, V, Z, Y, X) bool, V being 1 or C.

    Returns:
        `absolute`, `squared`, `values`: scalars, float64, on the CPU.
    """
    error = prediction - label
    return {
        "absolute": masked_sum(error.abs(), valid),
        "squared": masked_sum(error.square(), valid),
        "values": masked_sum(valid.expand_as(label), valid),
    }


def endpoint_sums(prediction: Tensor, label: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Sum of |prediction - label|, the length of the difference of two vectors.

    Args:
        prediction: (B, 3, Z, Y, X) float32.
        label: (B, 3, Z, Y, X) float32.
        valid: (B, 1, Z, Y, X) bool.

    Returns:
        `distance`, `voxels`: scalars, float64, on the CPU.
    """
    distance = (prediction - label).square().sum(1, keepdim=True).sqrt()
    return {"distance": masked_sum(distance, valid), "voxels": masked_sum(valid, valid)}


def angles_deg(prediction: Tensor, label: Tensor, *, axial: bool) -> Tensor:
    """Angle between two vectors of any length, in degrees.

    Args:
        prediction: (B, 3, Z, Y, X) float32.
        label: (B, 3, Z, Y, X) float32.
        axial: take the angle between the axes, in [0, 90]; otherwise [0, 180].

    Returns:
        (B, 1, Z, Y, X) float32; 90 where one of the vectors is zero, which says nothing.
    """
    # atan2 and not acos: the arc cosine loses half the digits near 0 degrees.
    across = torch.linalg.cross(prediction, label, dim=1).square().sum(1, keepdim=True).sqrt()
    along = (prediction * label).sum(1, keepdim=True)
    angle = torch.rad2deg(torch.atan2(across, along.abs() if axial else along))
    return torch.where((across == 0) & (along == 0), 90.0, angle)


def angle_sums(
    prediction: Tensor, label: Tensor, valid: Tensor, *, axial: bool
) -> dict[str, Tensor]:
    """Sums for the mean angle and the share of close directions; arguments as for `angles_deg`.

    Returns:
        `degrees`, `close` (within CLOSE_DEG), `voxels`: scalars, float64, on the CPU.
    """
    angle = angles_deg(prediction, label, axial=axial)
    return {
        "degrees": masked_sum(angle, valid),
        "close": masked_sum(angle <= CLOSE_DEG, valid),
        "voxels": masked_sum(valid, valid),
    }


FLATTEST = 1e-10
"""Variance, as a share of the mean square, below which a field counts as constant."""


def moment_sums(prediction: Tensor, label: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Sums of first and second moments over channels and valid voxels.

    Args:
        prediction: (B, C, Z, Y, X) float32.
        label: (B, C, Z, Y, X) float32.
        valid: (B, V, Z, Y, X) bool, V being 1 or C.

    Returns:
        `p`, `t`, `pp`, `tt`, `pt`, `n`, for prediction p, label t and the count of values n:
        scalars, float64, on the CPU.
    """
    return {
        "p": masked_sum(prediction, valid),
        "t": masked_sum(label, valid),
        "pp": masked_sum(prediction.square(), valid),
        "tt": masked_sum(label.square(), valid),
        "pt": masked_sum(prediction * label, valid),
        "n": masked_sum(valid.expand_as(label), valid),
    }


def correlation(sums: dict[str, Tensor]) -> float:
    """Pearson's r of what `moment_sums` counted; NaN where one of the two is constant."""
    n, p, t, pp, tt, pt = (float(sums[key]) for key in ("n", "p", "t", "pp", "tt", "pt"))
    if n == 0:
        return math.nan
    spread_p, spread_t = pp - p * p / n, tt - t * t / n
    if spread_p <= FLATTEST * pp or spread_t <= FLATTEST * tt:
        return math.nan
    return (pt - p * t / n) / math.sqrt(spread_p * spread_t)
