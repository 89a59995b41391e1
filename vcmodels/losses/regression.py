"""Losses on values: absolute, squared and smooth L1 errors."""

from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from vcmodels.losses.masking import masked_inputs, masked_mean


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
