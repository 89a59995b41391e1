"""Losses on the shape of regions: their boundary, their skeleton and the gaps between them.

Skeletons are morphological (what openings of growing radius remove), computed with pooling on the
device. Voxels that are not valid are treated like the outside of the patch: they neither erode
their neighbours nor belong to a skeleton.
"""

from itertools import product
from math import inf, sqrt
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from vcmodels.losses.masked import (
    keep_valid,
    masked_inputs,
    masked_mean,
    region_pair,
    split_weight,
    weigh,
)
from vcmodels.losses.overlap import SMOOTH, SPACE


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
    costs 0. Use it with a loss on regions: it is nearly flat close to the boundary.

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


Iterations = Annotated[int, Field(ge=0, le=64)]
TUBE_RADIUS = 2
"""Voxels by which the skeleton of a label is thickened (Kirchhoff et al. 2024, algorithm 1)."""


def cldice(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    weight: Tensor | None = None,
    iterations: Iterations = 3,
) -> Tensor:
    """1 - the harmonic mean of the share of P's skeleton in T and of T's skeleton in P.

    Averaged over the classes but the background. The mean of both shares is no measure of
    thickness: use it with `soft_dice`.

    Args:
        logits: (B, C, Z, Y, X); half types are computed in float32.
        label: (B, C, Z, Y, X) float32 in [0, 1] takes the sigmoid of each channel; for C > 1,
            (B, 1, Z, Y, X) class indices 0..C-1 the softmax. Anything where not valid.
        valid: (B, V, Z, Y, X) bool, V being 1 or the channels of the label.
        weight: (B, 1, 1, 1, 1) or (B, 1, Z, Y, X), 0 or more: how much samples or voxels count.
        iterations: erosions; the radius in voxels of the thickest structure, or more.

    Returns:
        Scalar float32; 0 with zero gradient when no voxel is valid.

    Paper: Shit et al. 2021, "clDice - a novel topology-preserving loss function for tubular
    structure segmentation" (arXiv:2003.07311), algorithms 1 and 2.
    """
    probability, soft = region_pair(logits, label, valid)
    relative, scale = split_weight(valid, weight)
    of_prediction, _ = soft_skeleton(probability, valid, iterations)
    of_label, _ = soft_skeleton(soft, valid, iterations)
    precision = _share(of_prediction, soft, relative)
    recall = _share(of_label, probability, relative)
    return (1 - 2 * precision * recall / (precision + recall)).mean() * scale


def skeleton_recall(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    weight: Tensor | None = None,
    iterations: Iterations = 8,
) -> Tensor:
    """1 - the share of T's thickened skeleton that is in P.

    Averaged over the classes but the background. Arguments as for `cldice`; here `iterations` costs
    little, for only the label has its skeleton made, and what is thicker counts whole.

    The paper thins with scikit-image while the data are read. Here the hard label gets the skeleton of
    `cldice`: it is made on the device, of the augmented label, knows what is not valid
    and needs no further library. It need not be connected where a structure changes its thickness;
    thickened by 2 voxels it is.

    Paper: Kirchhoff et al. 2024, "Skeleton Recall Loss for connectivity conserving and resource
    efficient segmentation of thin tubular structures" (arXiv:2404.03010).
    """
    probability, soft = region_pair(logits, label, valid)
    relative, scale = split_weight(valid, weight)
    tube = tubed_skeleton((soft > 0.5).to(soft.dtype), valid, iterations)
    return (1 - _share(tube, probability, relative)).mean() * scale


def gap(
    logits: Tensor,
    label: Tensor,
    valid: Tensor,
    *,
    weight: Tensor | None = None,
    width: Annotated[int, Field(ge=1, le=16)] = 5,
) -> Tensor:
    """Mean of -log(1 - P) in the gaps of T, up to `width` voxels wide; all widths weigh alike.

    A gap is what of the background lies between foreground on both sides: it keeps neighbouring
    sheets or objects apart, and without it one voxel in many is of little cost. Each voxel weighs
    1 / its width, so that a gap counts by its area. Averaged over the classes that have a gap, the
    background left out. Use it with a loss on regions: it pulls towards the background only.

    The paper weighs the borders between cells by exp(-(d1 + d2)^2 / 2 sigma^2), d1 and d2 being the
    distances to the two nearest. That needs ids, and one rolled sheet is one object: here d1 and d2
    are the distances to the foreground on both sides along one line (see `gap_weight`).

    Args:
        logits: (B, C, Z, Y, X); half types are computed in float32.
        label: (B, C, Z, Y, X) float32 in [0, 1] takes the sigmoid of each channel (foreground
            above 0.5); for C > 1, (B, 1, Z, Y, X) class indices 0..C-1 the softmax. Anything where
            not valid; what lies there is no foreground.
        valid: (B, V, Z, Y, X) bool, V being 1 or the channels of the label.
        weight: (B, 1, 1, 1, 1) or (B, 1, Z, Y, X), 0 or more: how much samples or voxels count.
        width: of the widest gap that counts, in voxels.

    Returns:
        Scalar float32; 0 with zero gradient when no voxel is valid, or there is no gap.

    Paper: Ronneberger et al. 2015, "U-Net: Convolutional Networks for Biomedical Image
    Segmentation" (arXiv:1505.04597), equation 2.
    """
    _, soft = region_pair(logits, label, valid)
    relative, scale = split_weight(valid, weight)
    shares = weigh(keep_valid(gap_weight(soft > 0.5, width), valid), relative)
    logits, label = masked_inputs(logits, label, valid)
    total, whole = ((shares * _background_cost(logits, label)).sum(SPACE), shares.sum(SPACE))
    has_gap = whole > 0
    means = total / torch.where(has_gap, whole, 1.0)
    return means.sum() / has_gap.sum().clamp(min=1) * scale


def _background_cost(logits: Tensor, label: Tensor) -> Tensor:
    """-log(1 - P) of each mask, or of each class but the first: (B, K, Z, Y, X)."""
    classes = logits.shape[1]
    if label.shape[1] == classes:
        return F.softplus(logits)
    every = logits.logsumexp(1)
    others = [[n for n in range(classes) if n != k] for k in range(1, classes)]
    return torch.stack([every - logits[:, rest].logsumexp(1) for rest in others], dim=1)


LINES = tuple(u for u in product((-1, 0, 1), repeat=3) if u > (0, 0, 0))
"""The 13 directions from a voxel to its 26 neighbours, opposite ones once."""


def gap_weight(mask: Tensor, width: int) -> Tensor:
    """1 / the width of the gap that each voxel lies in; 0 for the foreground, and where none is.

    Along a line the width is the distance between the centres of the nearest foreground on both
    sides, less one voxel; of the 13 lines the narrowest counts. Across a gap that none of them
    follows it is up to an eighth too large.

    Args:
        mask: (B, K, Z, Y, X) bool.
        width: of the widest gap, in voxels.

    Returns:
        (B, K, Z, Y, X) float32 in [0, 1].
    """
    padded = F.pad(mask, [width] * 6)
    narrowest = torch.full(mask.shape, inf, device=mask.device)
    for line in LINES:
        length = sqrt(sum(abs(u) for u in line))
        most = int((width + 1) / length - 1)
        ways = [_steps_to(padded, [sign * u for u in line], most, width) for sign in (1, -1)]
        narrowest = torch.minimum(narrowest, (ways[0] + ways[1]) * length - 1)
    narrow = ~mask & (narrowest <= width)
    return torch.where(narrow, 1 / narrowest, 0.0)


def _steps_to(padded: Tensor, step: list[int], most: int, margin: int) -> Tensor:
    """How many steps, up to `most`, lead from each voxel to the first that is true; else infinity.

    `padded` has a margin, on all sides; the result has none.
    """
    shape = [n - 2 * margin for n in padded.shape[2:]]
    steps = torch.full((*padded.shape[:2], *shape), inf, device=padded.device)
    for count in range(most, 0, -1):
        seen = padded
        for axis, (way, length) in enumerate(zip(step, shape, strict=True), start=2):
            seen = seen.narrow(axis, margin + count * way, length)
        steps = torch.where(seen, float(count), steps)
    return steps


def soft_skeleton(region: Tensor, valid: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """The skeleton of a region and what is left of the region after all erosions.

    Args:
        region: (B, K, Z, Y, X) in [0, 1], 0 where not valid; so are both that are returned.
        valid: (B, V, Z, Y, X) bool, V being 1 or K.
        iterations: one less than the erosions.
    """
    skeleton = torch.zeros_like(region)
    for _ in range(iterations + 1):
        smaller = _erode(region, valid)
        removed = F.relu(region - _dilate(smaller, valid))
        skeleton = skeleton + F.relu(removed - skeleton * removed)
        region = smaller
    return skeleton, region


def tubed_skeleton(mask: Tensor, valid: Tensor, iterations: int) -> Tensor:
    """The skeleton of a mask, and what is left of it, thickened by `TUBE_RADIUS` within the mask.

    Args:
        mask: (B, K, Z, Y, X) float in {0, 1}, 0 where not valid.
        valid: (B, V, Z, Y, X) bool, V being 1 or K.
        iterations: as for `soft_skeleton`.
    """
    tube = torch.maximum(*soft_skeleton(mask, valid, iterations))
    for _ in range(TUBE_RADIUS):
        tube = _dilate(tube, valid)
    return tube * mask


def _erode(region: Tensor, valid: Tensor) -> Tensor:
    """Minimum over the 6 neighbours; 0 where not valid."""
    negative = torch.where(valid, -region, -1.0)
    z, y, x = (_largest_along(negative, axis) for axis in (2, 3, 4))
    return torch.where(valid, -torch.maximum(torch.maximum(z, y), x), 0.0)


def _dilate(region: Tensor, valid: Tensor) -> Tensor:
    """Maximum over the 26 neighbours, axis by axis; 0 where not valid."""
    for axis in (2, 3, 4):
        region = _largest_along(region, axis)
    return torch.where(valid, region, 0.0)


def _largest_along(region: Tensor, axis: int) -> Tensor:
    """The largest of a voxel and its two neighbours along an axis."""
    if region.requires_grad:
        size = [3 if a == axis else 1 for a in (2, 3, 4)]
        return F.max_pool3d(region, size, stride=1, padding=[n // 2 for n in size])
    # Where no gradient is needed, 20 times as fast on a CPU as pooling: 2 x 64^3 in 0.5 ms, not 15.
    padding = [1 if a == axis else 0 for a in (4, 3, 2) for _ in range(2)]
    padded, length = F.pad(region, padding, value=-torch.inf), region.shape[axis]
    before, after = padded.narrow(axis, 0, length), padded.narrow(axis, 2, length)
    return torch.maximum(torch.maximum(before, after), region)


def _share(part: Tensor, region: Tensor, weight: Tensor | None) -> Tensor:
    """(K,) share of `part` that lies in `region`, over batch and space."""
    inside, whole = (weigh(values, weight).sum(SPACE) for values in (part * region, part))
    return (inside + SMOOTH) / (whole + SMOOTH)
