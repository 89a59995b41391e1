"""What every loss shares: float32 arithmetic, and means over the valid voxels by their weight."""

import torch
from torch import Tensor


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
    return weigh(keep_valid(values, valid), weight).sum() / count


def mean_weight(valid: Tensor, weight: Tensor | None) -> Tensor | float:
    """Mean weight of the valid voxels: the factor of a loss that is a ratio of weighted sums."""
    if weight is None:
        return 1.0
    return masked_mean(weight.expand(-1, valid.shape[1], -1, -1, -1), valid)
