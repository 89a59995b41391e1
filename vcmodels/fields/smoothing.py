"""Gaussian smoothing over the voxels that are known."""

from math import ceil, exp

import torch
from torch import Tensor

from vcmodels.fields.distance import Lengths, Voxels, inner

TRUNCATE = 3.0
"""Where the Gaussian ends, in sigmas: 0.3 % of it lies beyond."""


def gaussian_reach(sigma: Lengths) -> Voxels:
    """Voxels along (z, y, x) that have a say in a smoothed one, for a sigma in voxels."""
    z, y, x = (ceil(TRUNCATE * s - 1e-6) for s in sigma)
    return z, y, x


def smooth(field: Tensor, known: Tensor, sigma: Lengths) -> tuple[Tensor, Tensor]:
    """The Gaussian mean of the known voxels around each one.

    Normalised convolution (Knutsson and Westin 1993, CVPR): unknown voxels have no weight.

    Args:
        field: (C, Z + 2m, Y + 2m, X + 2m) float32, m being `gaussian_reach(sigma)`; finite.
        known: (1, ...) bool of the same extents.
        sigma: along (z, y, x), in voxels.

    Returns:
        (C, Z, Y, X) float32, 0 where nothing is known; (1, Z, Y, X) bool: the voxels that are known
        themselves.
    """
    here = inner(known, gaussian_reach(sigma))
    if known.all():
        return gaussian(field, sigma), here
    share = gaussian(known.float(), sigma)
    mean = gaussian(torch.where(known, field, 0.0), sigma) / share.clamp_min(1e-12)
    return mean, here


def gaussian(field: Tensor, sigma: Lengths) -> Tensor:
    """Gaussian sums: (..., Z + 2m, Y + 2m, X + 2m) float -> (..., Z, Y, X); m as for `smooth`."""
    for axis, width in zip((-1, -2, -3), reversed(sigma), strict=True):
        weights = _gaussian_weights(width)
        reach, length = len(weights) - 1, field.shape[axis] - 2 * (len(weights) - 1)
        total = field.narrow(axis, reach, length) * weights[0]
        for k in range(1, reach + 1):
            # The two sides first: mirrored input then gives the mirrored sums to the bit.
            before, after = (field.narrow(axis, reach + o, length) for o in (-k, k))
            total.add_(before + after, alpha=weights[k])
        field = total
    return field


def _gaussian_weights(sigma: float) -> list[float]:
    """The weights of the middle and of the voxels to one side of it; all of them add up to 1."""
    reach = ceil(TRUNCATE * sigma - 1e-6)
    weights = [exp(-0.5 * (k / sigma) ** 2) if k else 1.0 for k in range(reach + 1)]
    total = 2 * sum(weights) - weights[0]
    return [weight / total for weight in weights]
