"""What losses share: float32 arithmetic, means over valid voxels, probabilities class by class."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

NotNegative = Annotated[float, Field(ge=0)]


def full_precision(values: Tensor) -> Tensor:
    """Half types as float32, so that a loss under autocast is not summed in 8 or 11 bits."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def keep_valid(values: Tensor, valid: Tensor) -> Tensor:
    """`values`, with 0 and exactly zero gradient where `valid` is false (even if not finite).

    A product with the mask would not do: 0 * inf is NaN, forwards and backwards.

    Args:
        values: (B, K, Z, Y, X).
        valid: (B, V, Z, Y, X) bool, V being 1 or K.
    """
    return torch.where(valid, values, values.new_zeros(()))


def masked_inputs(logits: Tensor, label: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in full precision and the label in their dtype, both 0 where not valid.

    Masked before any arithmetic: whatever lies there, infinities included, has no effect on the
    loss, and its gradient is exactly zero.

    Args:
        logits: (B, C, Z, Y, X).
        label: (B, L, Z, Y, X).
        valid: (B, V, Z, Y, X) bool, V being 1, or C and L.
    """
    logits = full_precision(logits)
    return keep_valid(logits, valid), keep_valid(label.to(logits.dtype), valid)


def weigh(values: Tensor, weight: Tensor | None) -> Tensor:
    """`values` times the weight of their sample or voxel; as they are when None."""
    return values if weight is None else values * weight.to(values.dtype)


def masked_mean(values: Tensor, valid: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of (B, K, Z, Y, X) `values` over K and the valid voxels; 0 when there are none.

    The weighted sum is divided by the *count* of valid voxels and not by the sum of weights: a
    batch that holds nothing but pseudo-labels of weight 0.1 pulls a tenth as hard.

    Args:
        values: (B, K, Z, Y, X).
        valid: (B, V, Z, Y, X) bool, V being 1 or K.
        weight: (B, 1, 1, 1, 1) or (B, 1, Z, Y, X), 0 or more; 1 when None.
    """
    # A masked sum over dense tensors: a gather by boolean index is slower on the CPU and its
    # data-dependent shape breaks torch.compile's graph.
    count = (valid.sum() * (values.shape[1] // valid.shape[1])).clamp(min=1)
    return keep_valid(weigh(values, weight), valid).sum() / count


def split_weight(valid: Tensor, weight: Tensor | None) -> tuple[Tensor | None, Tensor | float]:
    """`weight` as (a relative weight of mean 1 over the valid voxels, that mean).

    For a loss that is a ratio of weighted sums, where a common factor would cancel: the sums take
    the relative weight and the ratio is multiplied by the mean, so that a batch of weight 0.1
    pulls exactly a tenth as hard.

    Args:
        valid: (B, V, Z, Y, X) bool.
        weight: (B, 1, 1, 1, 1) or (B, 1, Z, Y, X), 0 or more; 1 when None.

    Returns:
        (B, V, Z, Y, X), 0 where not valid, and a scalar; None and 1 when `weight` is None.
    """
    if weight is None:
        return None, 1.0
    weight = keep_valid(full_precision(weight), valid)
    mean = masked_mean(weight, valid)
    # All weights are 0 where their mean is: what is divided by then does not matter.
    return weight / mean.clamp(min=torch.finfo(weight.dtype).tiny), mean


def region_pair(
    logits: Tensor, label: Tensor, valid: Tensor, smoothing: float = 0.0, background: bool = False
) -> tuple[Tensor, Tensor]:
    """Probability and target of each class, two (B, K, Z, Y, X) in [0, 1]; 0 where not valid.

    Args:
        logits: (B, C, Z, Y, X); half types are computed in float32.
        label: (B, C, Z, Y, X) in [0, 1]: masks, each with the sigmoid of its channel, K = C. For
            C > 1, (B, 1, Z, Y, X) class indices 0..C-1 with the softmax, K = C - 1 or C.
        valid: (B, V, Z, Y, X) bool, V being 1 or the channels of the label.
        smoothing: a in [0, 1]: y becomes (1 - a) y + a / 2, one-hot (1 - a) onehot + a / C.
        background: keep class 0 of class indices.
    """
    logits, label = masked_inputs(logits, label, valid)
    classes = logits.shape[1]
    if label.shape[1] == classes:
        probability, soft = logits.sigmoid(), label * (1 - smoothing) + smoothing / 2
    else:
        first = 0 if background else 1
        probability = logits.softmax(1)[:, first:]
        index = torch.arange(first, classes, device=logits.device).view(1, -1, 1, 1, 1)
        soft = (label == index).to(logits.dtype) * (1 - smoothing) + smoothing / classes
    return keep_valid(probability, valid), keep_valid(soft, valid)
