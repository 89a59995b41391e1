"""Masked sums in float64 on the CPU, and ratios of them."""

import math

import torch
from torch import Tensor


def masked_sum(values: Tensor, valid: Tensor) -> Tensor:
    """Sum of (B, K, Z, Y, X) `values` over the valid voxels and K: scalar float64 on the CPU."""
    kept = torch.where(
        valid, values.detach(), torch.zeros((), dtype=values.dtype, device=values.device)
    )
    if not kept.is_floating_point() or kept.device.type == "mps":  # MPS has no float64.
        return kept.sum().cpu().double()
    return kept.sum(dtype=torch.float64).cpu()


def ratio(part: float | Tensor, whole: float | Tensor) -> float:
    """`part / whole`; NaN, not an error, when `whole` is 0."""
    return float(part) / float(whole) if float(whole) else math.nan
