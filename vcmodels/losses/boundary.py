"""The boundary loss: errors cost their distance from the boundary of the label."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from vcmodels.losses.classes import region_pair
from vcmodels.losses.masking import keep_valid, masked_mean


def boundary(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    weight: Tensor | None = None,
    clip: Annotated[int, Field(ge=1, le=64)] = 10,
) -> Tensor:
    """Mean of |P - T| times the distance from the boundary of T, as a share of `clip` voxels.

    Averaged over the classes but the background too. This is the paper's mean of the signed
    distance times P, less its least value: the gradient is the same, and a perfect prediction
    costs 0. Beside a loss on regions: alone it is nearly flat close to the boundary.

    Args:
        logits: (B, C, Z, Y, X); half types are computed in float32.
        label: (B, C, Z, Y, X) float32 in [0, 1] takes the sigmoid of each channel (foreground
            above 0.5); for C > 1, (B, 1, Z, Y, X) class indices 0..C-1 the softmax. Anything where
            not valid; what lies there has no boundary with its neighbours.
        valid: (B, V, Z, Y, X) bool, V being 1 or the channels of the label.
        weight: (B, 1, 1, 1, 1) or (B, 1, Z, Y, X), 0 or more: how much samples or voxels count.
        clip: distance in voxels beyond which all errors cost alike, also where no boundary is near.

    Returns:
        Scalar float32 in [0, 1]; 0 with zero gradient when no voxel is valid.

    Paper: Kervadec et al. 2019, "Boundary loss for highly unbalanced segmentation"
    (arXiv:1812.07032).
    """
    probability, soft = region_pair(logits, label, valid)
    is_inside = soft > 0.5
    distance = distance_to_boundary(is_inside, valid, clip)
    errors = torch.where(is_inside, 1 - probability, probability)
    return masked_mean(keep_valid(errors * distance / clip, valid), valid, weight)


def distance_to_boundary(mask: Tensor, valid: Tensor, clip: int) -> Tensor:
    """Voxels from each centre to the face of the nearest valid voxel on the other side.

    Exact up to `clip`: the distance between centres less half a voxel, at most `clip`.

    Args:
        mask: (B, K, Z, Y, X) bool.
        valid: (B, V, Z, Y, X) bool, V being 1 or K.
        clip: 1 or more, in voxels.

    Returns:
        (B, K, Z, Y, X) float32 in [0.5, clip].
    """
    sides = torch.stack([valid & mask, valid & ~mask])
    squared = torch.where(sides, 0.0, torch.inf)
    # The lower envelope of parabolas, axis by axis (Felzenszwalb & Huttenlocher 2012), within the
    # window in which a distance can be less than `clip`: no step depends on the data.
    for axis in (-1, -2, -3):
        squared = _spread_along(squared, axis, clip)
    to_inside, to_outside = squared.sqrt()
    return (torch.where(mask, to_outside, to_inside) - 0.5).clamp(max=clip)


def _spread_along(squared: Tensor, axis: int, reach: int) -> Tensor:
    """The minimum over offsets o within `reach` along an axis of the value there plus o^2."""
    length = squared.shape[axis]
    reach = min(reach, length - 1)
    padding = [0, 0] * (-axis - 1) + [reach, reach]
    padded = F.pad(squared, padding, value=torch.inf)
    best = squared
    for offset in range(1, reach + 1):
        for start in (reach - offset, reach + offset):
            best = torch.minimum(best, padded.narrow(axis, start, length) + offset**2)
    return best
