"""What every loss shares: float32 arithmetic and a mean over the valid voxels only."""

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
        valid: (B, 1, Z, Y, X) bool.
    """
    return torch.where(valid, values, values.new_zeros(()))


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of (B, K, Z, Y, X) `values` over K and the valid voxels; 0 when there are none."""
    # A masked sum over dense tensors: a gather by boolean index is slower on the CPU and its
    # data-dependent shape breaks torch.compile's graph.
    count = (valid.sum() * values.shape[1]).clamp(min=1)
    return keep_valid(values, valid).sum() / count
