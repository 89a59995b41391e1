"""Losses on the overlap of prediction and label: soft Dice and soft Jaccard.

Both compare sums over the whole batch ("batch Dice"): a patch with little foreground counts by its
voxels and not as much as a full one. Soft Dice: Milletari et al. 2016, "V-Net", section 3, here
with the plain sums p + t of Drozdzal et al. 2016 (arXiv:1608.04117) in the denominator.

The overlap of a probability p and a target t is min(p, t). For a hard target that is the usual
product p t; for a smoothed one it is what puts the minimum of the loss at p = t, where the product
would still drive p to 0 or 1 (Wang et al. 2023, "Dice Semimetric Losses", arXiv:2303.16296).
"""

import torch
from torch import Tensor

from vcmodels.losses.masking import full_precision, keep_valid, mean_weight, weigh

SMOOTH = 1.0
"""Voxels added above and below the fraction: a class that is absent and not predicted scores 1."""


def soft_dice(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    include_background: bool = False,
) -> Tensor:
    """1 - 2 |P and T| / (|P| + |T|), averaged over the classes.

    Args:
        logits: (B, C, Z, Y, X). C = 1 takes the sigmoid and scores the foreground; C > 1 takes the
            softmax. Half types are computed in float32.
        label: (B, 1, Z, Y, X) float32: in [0, 1] for C = 1, class indices 0..C-1 otherwise; any
            finite value where `valid` is false.
        valid: (B, 1, Z, Y, X) bool.
        weight: (B, 1, 1, 1, 1) or (B, 1, Z, Y, X), 0 or more: how much samples or voxels count.
        label_smoothing: as in `bce` (C = 1) and `ce`.
        include_background: count class 0 too when C > 1.

    Returns:
        Scalar float32; 0 with zero gradient when no voxel is valid.
    """
    overlap, sizes = _sums(logits, label, valid, weight, label_smoothing, include_background)
    loss = (1 - (2 * overlap + SMOOTH) / (sizes + SMOOTH)).mean()
    return loss * mean_weight(valid, weight)


def soft_jaccard(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    include_background: bool = False,
) -> Tensor:
    """1 - |P and T| / |P or T|, averaged over the classes; arguments as for `soft_dice`."""
    overlap, sizes = _sums(logits, label, valid, weight, label_smoothing, include_background)
    loss = (1 - (overlap + SMOOTH) / (sizes - overlap + SMOOTH)).mean()
    return loss * mean_weight(valid, weight)


def _sums(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    weight: Tensor | None,
    smoothing: float,
    background: bool,
) -> tuple[Tensor, Tensor]:
    """Per class, the overlap and the sizes |P| + |T| over batch and space: two (K,) tensors."""
    logits = full_precision(logits)
    classes = logits.shape[1]
    if classes == 1:
        probability = logits.sigmoid()
        soft = label.to(logits.dtype) * (1 - smoothing) + smoothing / 2
    else:
        first = 0 if background else 1
        probability = logits.softmax(1)[:, first:]
        index = torch.arange(first, classes, device=logits.device).view(1, -1, 1, 1, 1)
        soft = (label == index).to(logits.dtype) * (1 - smoothing) + smoothing / classes
    probability, soft = (weigh(keep_valid(values, valid), weight) for values in (probability, soft))
    space = (0, 2, 3, 4)
    return torch.minimum(probability, soft).sum(space), (probability + soft).sum(space)
