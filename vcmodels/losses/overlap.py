"""Losses on the overlap of prediction and label: Dice, Jaccard, Tversky and variants.

All compare sums over what they are given: training gives them one sample at a time, and weighs the
samples by their valid voxels.

The overlap of a probability p and a target t is min(p, t). For a hard target that is the usual
product p t; for a smoothed one it is what puts the minimum of the loss at p = t, where the product
would still drive p to 0 or 1 (Wang et al. 2023, "Dice Semimetric Losses", arXiv:2303.16296).
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from vcmodels.losses.masked import NotNegative, region_pair, split_weight, weigh

SMOOTH = 1.0
"""Voxels added above and below the fraction: a class that is absent and not predicted scores 1."""
SLOPE_FLOOR = 1e-6
"""Added under the root of `focal_tversky`, whose slope at a perfect score would be infinite."""
SPACE = (0, 2, 3, 4)


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
        logits: (B, C, Z, Y, X); half types are computed in float32.
        label: (B, C, Z, Y, X) float32 in [0, 1] takes the sigmoid of each channel; for C > 1,
            (B, 1, Z, Y, X) class indices 0..C-1 the softmax. Anything where not valid.
        valid: (B, V, Z, Y, X) bool, V being 1 or the channels of the label.
        weight: (B, 1, 1, 1, 1) or (B, 1, Z, Y, X), 0 or more: how much samples or voxels count.
        label_smoothing: as in `bce` and `ce`.
        include_background: count class 0 of class indices too.

    Returns:
        Scalar float32; 0 with zero gradient when no voxel is valid.

    Paper: Milletari et al. 2016, "V-Net" (arXiv:1606.04797), section 3, with the plain sums of
    Drozdzal et al. 2016 (arXiv:1608.04117) in the denominator.
    """
    relative, scale = split_weight(valid, weight)
    pair = region_pair(logits, label, valid, label_smoothing, include_background)
    overlap, predicted, labelled = _sums(*pair, relative)
    return (1 - (2 * overlap + SMOOTH) / (predicted + labelled + SMOOTH)).mean() * scale


def soft_jaccard(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    include_background: bool = False,
) -> Tensor:
    """1 - |P and T| / |P or T|, averaged over the classes; arguments as for `soft_dice`.

    Paper: Rahman & Wang 2016, "Optimizing Intersection-Over-Union in Deep Neural Networks for Image
    Segmentation" (ISVC).
    """
    relative, scale = split_weight(valid, weight)
    pair = region_pair(logits, label, valid, label_smoothing, include_background)
    return (1 - _tversky_index(*pair, relative, alpha=1.0, beta=1.0)).mean() * scale


def tversky(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    alpha: NotNegative = 0.3,
    beta: NotNegative = 0.7,
    include_background: bool = False,
) -> Tensor:
    """1 - hits / (hits + alpha false positives + beta false negatives), averaged over the classes.

    Dice is alpha = beta = 0.5 (but for its smoothing), Jaccard 1 and 1. Other arguments as for
    `soft_dice`.

    Paper: Salehi et al. 2017, "Tversky loss function for image segmentation using 3D fully
    convolutional deep networks" (arXiv:1706.05721), with its best alpha and beta.
    """
    relative, scale = split_weight(valid, weight)
    pair = region_pair(logits, label, valid, label_smoothing, include_background)
    return (1 - _tversky_index(*pair, relative, alpha, beta)).mean() * scale


def focal_tversky(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    alpha: NotNegative = 0.3,
    beta: NotNegative = 0.7,
    gamma: Annotated[float, Field(ge=1, le=3)] = 4 / 3,
    include_background: bool = False,
) -> Tensor:
    """(1 - Tversky index)^(1 / gamma), averaged over the classes; arguments as for `tversky`.

    A class that is almost right keeps a steep slope. In the paper alpha is the weight of the
    false *negatives*; here it weighs the false positives in both losses.

    Paper: Abraham & Khan 2019, "A novel focal Tversky loss function with improved attention U-Net
    for lesion segmentation" (arXiv:1810.07842).
    """
    relative, scale = split_weight(valid, weight)
    pair = region_pair(logits, label, valid, label_smoothing, include_background)
    missed = 1 - _tversky_index(*pair, relative, alpha, beta)
    power = (missed + SLOPE_FLOOR) ** (1 / gamma) - SLOPE_FLOOR ** (1 / gamma)
    return power.mean() * scale


def generalised_dice(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Dice of all classes in one fraction, each weighted by 1 / (its labelled voxels)^2.

    The background is one of the classes, of a mask too. A class without a labelled voxel counts as
    much as the rarest that has one (as in NiftyNet and MONAI). Arguments as for `soft_dice`.

    Paper: Sudre et al. 2017, "Generalised Dice overlap as a deep learning loss function for highly
    unbalanced segmentations" (arXiv:1707.03237).
    """
    relative, scale = split_weight(valid, weight)
    probability, soft = region_pair(logits, label, valid, label_smoothing, background=True)
    sums = torch.stack(_sums(probability, soft, relative))
    if label.shape[1] == logits.shape[1]:  # masks: (3, K) for the foreground, then the rest
        inside = valid.to(soft.dtype).expand_as(soft)
        rest = _sums(inside - probability, inside - soft, relative)
        overlap, predicted, labelled = torch.stack([sums, torch.stack(rest)], -1)
    else:  # one group that holds all classes
        overlap, predicted, labelled = sums.unsqueeze(1)
    # Relative to the rarest: the factor cancels, and SMOOTH stays a voxel of that class.
    is_there = labelled > 0
    rarest = torch.where(is_there, labelled, torch.inf).amin(-1, keepdim=True)
    factor = torch.where(is_there, (rarest / labelled.clamp(min=1e-30)).square(), 1.0)
    above, below = 2 * factor * overlap, factor * (predicted + labelled)
    return (1 - (above.sum(-1) + SMOOTH) / (below.sum(-1) + SMOOTH)).mean() * scale


def _sums(
    probability: Tensor, soft: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Per class |P and T|, |P| and |T| over batch and space: three (K,) tensors."""
    parts = (torch.minimum(probability, soft), probability, soft)
    overlap, predicted, labelled = (weigh(part, weight).sum(SPACE) for part in parts)
    return overlap, predicted, labelled


def _tversky_index(
    probability: Tensor, soft: Tensor, weight: Tensor | None, alpha: float, beta: float
) -> Tensor:
    """(K,) in (0, 1]."""
    overlap, predicted, labelled = _sums(probability, soft, weight)
    errors = alpha * (predicted - overlap) + beta * (labelled - overlap)
    return (overlap + SMOOTH) / (overlap + errors + SMOOTH)
