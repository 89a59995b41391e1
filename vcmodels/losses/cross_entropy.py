"""Losses on the log-probability of the label: cross-entropies, focal loss, the hardest voxels."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from vcmodels.losses.masked import (
    NotNegative,
    full_precision,
    keep_valid,
    masked_inputs,
    masked_mean,
    weigh,
)

ClassWeights = Annotated[list[NotNegative], Field(min_length=2)] | Literal["counted"] | None


def bce(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    pos_weight: Annotated[float, Field(gt=0)] = 1.0,
) -> Tensor:
    """Mean binary cross-entropy, the foreground counted `pos_weight` times.

    Args:
        logits: (B, K, Z, Y, X), before the sigmoid; half types are computed in float32.
        label: (B, K, Z, Y, X) float32 in [0, 1]; anything where `valid` is false.
        valid: (B, V, Z, Y, X) bool, V being 1 or K.
        weight: (B, 1, 1, 1, 1) or (B, 1, Z, Y, X), 0 or more: how much samples or voxels count.
        label_smoothing: a in [0, 1]; y becomes (1 - a) y + a / 2, which is the multi-class
            definition (see `ce`) for two classes.
        pos_weight: factor of the term of the foreground.

    Returns:
        Scalar float32; 0 with zero gradient when no voxel is valid.
    """
    logits, label = masked_inputs(logits, label, valid)
    return masked_mean(_binary(logits, label, label_smoothing, pos_weight), valid, weight)


def ce(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    class_weights: ClassWeights = None,
) -> Tensor:
    """Mean cross-entropy of the softmax, weighted by `class_weights` of the labelled class.

    With class weights the mean is the one of `torch.nn.CrossEntropyLoss`: the sum over voxels is
    divided by the sum of the weights of their classes, so that a common factor of all classes
    cancels. Training divides by the number of voxels instead (see `mean_class_weight`).

    Args:
        logits: (B, C, Z, Y, X), before the softmax; half types are computed in float32.
        label: (B, 1, Z, Y, X) float32 class indices 0..C-1; anything where not valid.
        valid: (B, 1, Z, Y, X) bool.
        weight: as for `bce`.
        label_smoothing: a in [0, 1]; the one-hot target becomes (1 - a) onehot + a / C
            (Szegedy et al. 2016, "Rethinking the Inception architecture", section 7).
        class_weights: one number for each class; "counted" stands in a task file for numbers
            that are counted before training, and cannot be computed with.

    Returns:
        Scalar float32; 0 with zero gradient when no voxel is valid.

    Raises:
        ValueError: `class_weights` is "counted", or not one number for each class.
    """
    logits, label = masked_inputs(logits, label, valid)
    if class_weights is None:
        return masked_mean(_multiclass(logits, label, label_smoothing), valid, weight)
    factors = _class_factors(class_weights, logits)
    losses = _multiclass(logits, label, label_smoothing, factors)
    total = _weights_of(label, valid, factors).sum()
    tiny = torch.finfo(total.dtype).tiny  # all are 0 where their sum is
    return keep_valid(weigh(losses, weight), valid).sum() / total.clamp(min=tiny)


def mean_class_weight(
    logits: Tensor, label: Tensor, valid: Tensor, *, class_weights: ClassWeights = None
) -> Tensor | float:
    """What `class_weights` are on average over the valid voxels; 1 without any.

    `ce` times this is the weighted sum over the *number* of voxels. Such means of patches, each
    weighed by its voxels, add up to that of all of them, and a patch of one class alone keeps the
    weight of its class, which `ce` of that patch would cancel. Arguments as for `ce`.
    """
    if class_weights is None:
        return 1.0
    factors = _class_factors(class_weights, full_precision(logits))
    label = keep_valid(label.to(factors.dtype), valid)
    return _weights_of(label, valid, factors).sum() / valid.sum().clamp(min=1)


def focal(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    weight: Tensor | None = None,
    gamma: Annotated[float, Field(ge=0, le=10)] = 2.0,
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None,
) -> Tensor:
    """Mean of -(1 - p)^gamma log p, p being the probability of what is labelled.

    `alpha` weighs the foreground (or each class but 0) and 1 - alpha the background; null, neither.
    The paper takes 0.25 with gamma = 2: easy background has been damped already.

    Args:
        logits: (B, C, Z, Y, X); half types are computed in float32.
        label: (B, C, Z, Y, X) float32 in [0, 1] takes the sigmoid of each channel; for C > 1,
            (B, 1, Z, Y, X) class indices 0..C-1 the softmax. Anything where not valid.
        valid: (B, V, Z, Y, X) bool, V being 1 or the channels of the label.
        weight: as for `bce`.
        gamma: how much less a voxel counts that is predicted well; 0 is the cross-entropy.
        alpha: see above.

    Returns:
        Scalar float32; 0 with zero gradient when no voxel is valid.

    Paper: Lin et al. 2017, "Focal Loss for Dense Object Detection" (arXiv:1708.02002), equation 5.
    """
    logits, label = masked_inputs(logits, label, valid)
    front, back = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    # (1 - p)^gamma as exp(gamma log(1 - p)): the power has an infinite slope at p = 1 for gamma < 1.
    if label.shape[1] == logits.shape[1]:
        on, off = F.logsigmoid(logits), F.logsigmoid(-logits)
        losses = -front * label * (gamma * off).exp() * on
        losses = losses - back * (1 - label) * (gamma * on).exp() * off
        return masked_mean(losses, valid, weight)
    index = label.long()
    whole = logits.logsumexp(1, keepdim=True)
    others = logits.scatter(1, index, -torch.inf).logsumexp(1, keepdim=True)
    losses = (gamma * (others - whole)).exp() * (whole - logits.gather(1, index))
    return masked_mean(losses * torch.where(index > 0, front, back), valid, weight)


def topk_ce(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    share: Annotated[float, Field(gt=0, le=1)] = 0.1,
) -> Tensor:
    """Mean cross-entropy of the `share` of the voxels where it is largest, weights included.

    Args:
        logits: (B, C, Z, Y, X); half types are computed in float32.
        label: (B, C, Z, Y, X) float32 in [0, 1] takes the sigmoid of each channel; for C > 1,
            (B, 1, Z, Y, X) class indices 0..C-1 the softmax. Anything where not valid.
        valid: (B, V, Z, Y, X) bool, V being 1 or the channels of the label.
        weight: as for `bce`.
        label_smoothing: as for `bce` and `ce`.
        share: of the valid voxels, rounded down, one at least; in training, of those of each patch.

    Returns:
        Scalar float32; 0 with zero gradient when no voxel is valid.

    Paper: Wu et al. 2016, "Bridging Category-level and Instance-level Semantic Image Segmentation"
    (arXiv:1605.06885); as `TopKLoss` of nnU-Net (Isensee et al. 2021).
    """
    logits, label = masked_inputs(logits, label, valid)
    is_binary = label.shape[1] == logits.shape[1]
    losses = (_binary if is_binary else _multiclass)(logits, label, label_smoothing)
    # Those that are not valid come last, for no loss is negative. Their number is not known to a
    # compiled graph: the k of all voxels are sorted, and the ranks beyond the k of the valid left.
    ranked = torch.where(valid, weigh(losses, weight), -1.0).flatten()
    hardest = ranked.topk(max(1, int(share * ranked.numel()))).values
    count = valid.sum() * (losses.shape[1] // valid.shape[1])
    kept = (count * share).floor().clamp(min=1)
    is_kept = torch.arange(hardest.numel(), device=hardest.device) < kept
    return torch.where(is_kept & (count > 0), hardest, 0.0).sum() / kept


def _binary(logits: Tensor, label: Tensor, smoothing: float, pos_weight: float = 1.0) -> Tensor:
    """(B, K, Z, Y, X) cross-entropies of the sigmoid."""
    soft = label * (1 - smoothing) + smoothing / 2
    factor = None if pos_weight == 1 else logits.new_tensor(pos_weight)
    return F.binary_cross_entropy_with_logits(logits, soft, reduction="none", pos_weight=factor)


def _multiclass(
    logits: Tensor, label: Tensor, smoothing: float, factors: Tensor | None = None
) -> Tensor:
    """(B, 1, Z, Y, X) cross-entropies of the softmax."""
    index = label.squeeze(1).long()
    return F.cross_entropy(
        logits, index, weight=factors, reduction="none", label_smoothing=smoothing
    ).unsqueeze(1)


def _weights_of(label: Tensor, valid: Tensor, factors: Tensor) -> Tensor:
    """(B, 1, Z, Y, X) the weight of the class of each voxel; 0 where not valid."""
    return keep_valid(factors[label.long()], valid)


def _class_factors(class_weights: list[float] | Literal["counted"], logits: Tensor) -> Tensor:
    """(C,) weights of the classes."""
    if class_weights == "counted":
        raise ValueError(
            'class_weights "counted" must be replaced by numbers before training: it stands for '
            "weights that are counted from the labels"
        )
    if len(class_weights) != logits.shape[1]:
        raise ValueError(f"class_weights has {len(class_weights)} for {logits.shape[1]} classes")
    return logits.new_tensor(class_weights)
