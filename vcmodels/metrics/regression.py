"""Errors of values, of vectors and of directions, and Pearson's correlation, from sums that add."""

import math

import torch
from torch import Tensor

from vcmodels.metrics.overlap import masked_sum, ratio

CLOSE_DEG = 10.0
"""A direction within this angle of the label counts as close."""
SHORTEST_LABEL = 1e-6
"""A labelled vector below this length has no direction."""


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


def mean_absolute(sums: dict[str, Tensor]) -> float:
    """Mean of |d| over channels and voxels, of `error_sums`."""
    return ratio(sums["absolute"], sums["values"])


def root_mean_square(sums: dict[str, Tensor]) -> float:
    """Root of the mean of d^2 over channels and voxels, of `error_sums`."""
    return ratio(sums["squared"], sums["values"]) ** 0.5


def sign_sums(prediction: Tensor, label: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """`right`, the values that are positive where the label is, or neither, and `values`, all.

    Arguments and dtypes as for `error_sums`.
    """
    right = (prediction > 0) == (label > 0)
    return {"right": masked_sum(right, valid), "values": masked_sum(valid.expand_as(label), valid)}


def sign_accuracy(sums: dict[str, Tensor]) -> float:
    """The share of values on the right side of 0, of `sign_sums`."""
    return ratio(sums["right"], sums["values"])


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


def endpoint_error(sums: dict[str, Tensor]) -> float:
    """Mean length of the difference, of `endpoint_sums`."""
    return ratio(sums["distance"], sums["voxels"])


def angles_deg(prediction: Tensor, label: Tensor) -> Tensor:
    """Angle between two vectors of any length, in degrees.

    Args:
        prediction: (B, 3, Z, Y, X) float32.
        label: (B, 3, Z, Y, X) float32.

    Returns:
        (B, 1, Z, Y, X) float32 in [0, 180]; 90 where one of the vectors is zero, which says nothing.
    """
    # atan2 and not acos: the arc cosine loses half the digits near 0 degrees.
    across = torch.linalg.cross(prediction, label, dim=1).square().sum(1, keepdim=True).sqrt()
    along = (prediction * label).sum(1, keepdim=True)
    angle = torch.rad2deg(torch.atan2(across, along))
    return torch.where((across == 0) & (along == 0), 90.0, angle)


def angle_sums(prediction: Tensor, label: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Sums for the mean angle and the share of close directions, where the label has a direction.

    A prediction without one counts as 90 degrees off.

    Args:
        prediction: (B, 3, Z, Y, X) float32.
        label: (B, 3, Z, Y, X) float32.
        valid: (B, 1, Z, Y, X) bool.

    Returns:
        `degrees`, `close` (within CLOSE_DEG), `directed` (voxels): scalars, float64, on the CPU.
    """
    directed = valid & (label.square().sum(1, keepdim=True) > SHORTEST_LABEL**2)
    angle = angles_deg(prediction, label)
    return {
        "degrees": masked_sum(angle, directed),
        "close": masked_sum(angle <= CLOSE_DEG, directed),
        "directed": masked_sum(directed, directed),
    }


def mean_angle(sums: dict[str, Tensor]) -> float:
    """Mean angle in degrees, of `angle_sums`."""
    return ratio(sums["degrees"], sums["directed"])


def close_share(sums: dict[str, Tensor]) -> float:
    """The share of directions within CLOSE_DEG, of `angle_sums`."""
    return ratio(sums["close"], sums["directed"])


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
