"""Pearson's correlation of two fields, from sums that add."""

import math

from torch import Tensor

from vcmodels.metrics.sums import masked_sum

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
