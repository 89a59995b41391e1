"""Errors of values, of vectors and of directions, and Pearson's correlation, from sums that add.

Percentiles come from histograms: of angles in steps of 0.1 degrees, of errors in steps of less than
1 % of themselves.
"""

import math

import numpy as np
import torch
from torch import Tensor

from vcmodels.metrics.base import Curve
from vcmodels.metrics.curves import rounded
from vcmodels.metrics.overlap import count_valid, masked_sum, ratio, tally

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
        "values": count_valid(valid, label),
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
    return {"right": masked_sum(right, valid), "values": count_valid(valid, label)}


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
    directed, angle = _directed(label, valid), angles_deg(prediction, label)
    return {
        "degrees": masked_sum(angle, directed),
        "close": masked_sum(angle <= CLOSE_DEG, directed),
        "directed": masked_sum(directed, directed),
    }


def _directed(label: Tensor, valid: Tensor) -> Tensor:
    """The valid voxels whose label has a direction."""
    return valid & (label.square().sum(1, keepdim=True) > SHORTEST_LABEL**2)


def mean_angle(sums: dict[str, Tensor]) -> float:
    """Mean angle in degrees, of `angle_sums`."""
    return ratio(sums["degrees"], sums["directed"])


def close_share(sums: dict[str, Tensor]) -> float:
    """The share of directions within CLOSE_DEG, of `angle_sums`."""
    return ratio(sums["close"], sums["directed"])


LEAST_EXPONENT, MOST_EXPONENT = -32, 32
"""Errors are counted apart from 2^-32 to 2^32; smaller ones count as 0."""
MANTISSA_BITS = 7
"""Of a float32, to which errors are cut for counting: 128 steps for each power of two."""
ERROR_BINS = ((MOST_EXPONENT - LEAST_EXPONENT) << MANTISSA_BITS) + 1
ANGLE_STEP_DEG = 0.1
ANGLE_BINS = round(180 / ANGLE_STEP_DEG)


def error_counts(prediction: Tensor, label: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """How often each size of |prediction - label| occurs, over channels and valid voxels.

    Arguments as for `error_sums`.

    Returns:
        `counts`: (ERROR_BINS,) float64 on the CPU, for the sizes of `error_sizes`.
    """
    error = (prediction - label).abs().float().contiguous()
    # The bits of a positive float are in the order of its value: cut, they are a histogram with
    # steps that grow with the value.
    bits = error.view(torch.int32) >> (23 - MANTISSA_BITS)
    first = (127 + LEAST_EXPONENT) << MANTISSA_BITS
    return {"counts": tally((bits - first + 1).clamp(0, ERROR_BINS - 1), valid, ERROR_BINS)}


def error_sizes() -> np.ndarray:
    """(ERROR_BINS,): 0, then the middle of each step, at most 1 / 256 of the error off."""
    steps = np.arange(ERROR_BINS - 1)
    power, part = steps >> MANTISSA_BITS, steps & ((1 << MANTISSA_BITS) - 1)
    middle = 1 + (part + 0.5) / (1 << MANTISSA_BITS)
    return np.concatenate([[0.0], middle * 2.0 ** (power + LEAST_EXPONENT)])


def error_quantile(sums: dict[str, Tensor], share: float) -> float:
    """The error that this share of the values does not exceed, of `error_counts`, to 0.4 % of itself.

    NaN without values.
    """
    return _quantile(sums["counts"].numpy(), error_sizes(), share)


def _quantile(counts: np.ndarray, values: np.ndarray, share: float) -> float:
    """The least of the ascending values that this share of the counts does not exceed."""
    total = np.cumsum(counts)
    if not total[-1]:
        return math.nan
    wanted = share * total[-1] * (1 - 1e-12)  # 0.9 x 10 may be rounded to above 9
    return float(values[np.searchsorted(total, wanted)])


def error_histogram(sums: dict[str, Tensor]) -> dict[str, Curve]:
    """The shares of errors by size, up to the one that 99 % do not exceed."""
    counts, sizes = sums["counts"].numpy(), error_sizes()
    most = _quantile(counts, sizes, 0.99)
    return {"Errors": _bars(counts, sizes, most if most > 0 else 1.0, "absolute error")}


BARS = 36


def _bars(counts: np.ndarray, values: np.ndarray, most: float, label: str) -> Curve:
    """`BARS` bars of equal width from 0 to `most`: their middles and their shares of all counts."""
    shares = counts / max(counts.sum(), 1)
    heights, edges = np.histogram(values, BARS, (0.0, most), weights=shares)
    middles = (edges[1:] + edges[:-1]) / 2
    return Curve(rounded(middles), rounded(heights), label, "share", "bars")


def angle_counts(prediction: Tensor, label: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """How often each angle occurs, where the label has a direction.

    Arguments as for `angle_sums`.

    Returns:
        `counts`: (ANGLE_BINS,) float64 on the CPU, in steps of ANGLE_STEP_DEG from 0 degrees.
    """
    step = (angles_deg(prediction, label) / ANGLE_STEP_DEG).int().clamp(max=ANGLE_BINS - 1)
    return {"counts": tally(step, _directed(label, valid), ANGLE_BINS)}


def _angles() -> np.ndarray:
    """The middle of each step, in degrees."""
    return (np.arange(ANGLE_BINS) + 0.5) * ANGLE_STEP_DEG


def angle_quantile(sums: dict[str, Tensor], share: float) -> float:
    """The angle that this share of the directions does not exceed, to 0.05 degrees; NaN without any."""
    return _quantile(sums["counts"].numpy(), _angles(), share)


def angle_histogram(sums: dict[str, Tensor]) -> dict[str, Curve]:
    """The shares of the angles by size; axes are at most 90 degrees apart."""
    counts = sums["counts"].numpy()
    is_wide = bool(counts[_angles() > 90 + ANGLE_STEP_DEG].any())
    return {"Angles": _bars(counts, _angles(), 180.0 if is_wide else 90.0, "angle (degrees)")}


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
    # float32 rounds the square of 30,000 by up to 32: the variance of CT values would be noise.
    if prediction.device.type != "mps":  # which has no float64
        prediction, label = prediction.double(), label.double()
    return {
        "p": masked_sum(prediction, valid),
        "t": masked_sum(label, valid),
        "pp": masked_sum(prediction.square(), valid),
        "tt": masked_sum(label.square(), valid),
        "pt": masked_sum(prediction * label, valid),
        "n": count_valid(valid, label),
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


def determination(sums: dict[str, Tensor]) -> float:
    """R2 of what `moment_sums` counted: 1 - sum of (p - t)^2 / sum of (t - mean t)^2, at most 1.

    NaN where the label is constant. 0 is what its mean would get; less is worse than that.
    """
    n, t, pp, tt, pt = (float(sums[key]) for key in ("n", "t", "pp", "tt", "pt"))
    if n == 0 or tt - t * t / n <= FLATTEST * tt:
        return math.nan
    return 1 - (pp - 2 * pt + tt) / (tt - t * t / n)
