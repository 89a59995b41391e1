"""Losses that are a mean over voxels: cross-entropies and regression errors."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vcmodels.losses.masking import full_precision, keep_valid, masked_mean


def bce(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean binary cross-entropy over the valid voxels.

    Args:
        logits: (B, K, Z, Y, X), before the sigmoid; half types are computed in float32.
        label: (B, K, Z, Y, X) float32 in [0, 1]; any finite value where `valid` is false.
        valid: (B, V, Z, Y, X) bool, V being 1 or K.
        weight: (B, 1, 1, 1, 1) or (B, 1, Z, Y, X), 0 or more: how much samples or voxels count.
        label_smoothing: a in [0, 1]; y becomes (1 - a) y + a / 2, which is the multi-class
            definition (see `ce`) for two classes.

    Returns:
        Scalar float32; 0 with zero gradient when no voxel is valid.
    """
    logits = full_precision(logits)
    soft = label.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    return masked_mean(
        F.binary_cross_entropy_with_logits(logits, soft, reduction="none"), valid, weight
    )


def ce(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy of the softmax over the valid voxels.

    Args:
        logits: (B, C, Z, Y, X), before the softmax; half types are computed in float32.
        label: (B, 1, Z, Y, X) float32 class indices 0..C-1; any finite value where not valid.
        valid: (B, 1, Z, Y, X) bool.
        weight: as for `bce`.
        label_smoothing: a in [0, 1]; the one-hot target becomes (1 - a) onehot + a / C
            (Szegedy et al. 2016, "Rethinking the Inception architecture", section 7).

    Returns:
        Scalar float32; 0 with zero gradient when no voxel is valid.
    """
    index = torch.where(valid, label, -1.0).squeeze(1).long()
    losses = F.cross_entropy(
        full_precision(logits),
        index,
        ignore_index=-1,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return masked_mean(losses.unsqueeze(1), valid, weight)


def l1(logits: Tensor, label: Tensor, valid: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Mean absolute error over channels and valid voxels.

    Args:
        logits: (B, C, Z, Y, X), the prediction itself; half types are computed in float32.
        label: (B, C, Z, Y, X) float32; any finite value where `valid` is false.
        valid: (B, V, Z, Y, X) bool, V being 1 or C.
        weight: as for `bce`.

    Returns:
        Scalar float32; 0 with zero gradient when no voxel is valid.
    """
    return masked_mean(_difference(logits, label, valid).abs(), valid, weight)


def l2(logits: Tensor, label: Tensor, valid: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Mean squared error over channels and valid voxels; arguments as for `l1`."""
    return masked_mean(_difference(logits, label, valid).square(), valid, weight)


def smooth_l1(
    logits: Tensor, label: Tensor, valid: Tensor, *, weight: Tensor | None = None
) -> Tensor:
    """Mean of d^2 / 2 where |d| < 1 and |d| - 1/2 beyond; arguments as for `l1`.

    The Huber loss with its corner at 1 (Girshick 2015, "Fast R-CNN", equation 3): outliers of a
    hand-made label pull no harder than their sign.
    """
    error = _difference(logits, label, valid)
    loss = F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none")
    return masked_mean(loss, valid, weight)


def _difference(logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
    """Prediction minus label, 0 where not valid: masked first, for the square may overflow."""
    logits = full_precision(logits)
    return keep_valid(logits - label.to(logits.dtype), valid)
