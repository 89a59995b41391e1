"""Normals of surfaces: the direction in which a smoothed field on the voxels falls.

For a mask that is out of it, as the normals of a solid are; for a distance that is larger outside,
give its negative. The two faces of a thin sheet have opposite normals, so which side of a *sheet*
is its outer one cannot follow from a mask: its normals are derived as axes.
"""

from math import ceil, exp

import torch
from torch import Tensor

from vcmodels.fields.distance import Labelled, Lengths, Voxels, inner

TRUNCATE = 3.0
"""Where the Gaussian ends, in sigmas: 0.3 % of it lies beyond."""


def gaussian_reach(sigma: Lengths) -> Voxels:
    """Voxels along (z, y, x) that have a say in a smoothed one, for a sigma in voxels."""
    z, y, x = (ceil(TRUNCATE * s - 1e-6) for s in sigma)
    return z, y, x


def smooth(field: Tensor, known: Tensor, sigma: Lengths) -> Labelled:
    """The Gaussian mean of the known voxels around each one.

    Normalised convolution (Knutsson and Westin 1993, CVPR): unknown voxels have no weight.

    Args:
        field: (C, Z + 2m, Y + 2m, X + 2m) float32, m being `gaussian_reach(sigma)`; finite.
        known: (1, ...) bool of the same extents.
        sigma: along (z, y, x), in voxels.

    Returns:
        (C, Z, Y, X) float32, 0 where nothing is known; (1, Z, Y, X) bool: the voxels that are known
        themselves.
    """
    here = inner(known, gaussian_reach(sigma))
    if known.all():
        return gaussian(field, sigma), here
    share = gaussian(known.float(), sigma)
    mean = gaussian(torch.where(known, field, 0.0), sigma) / share.clamp_min(1e-12)
    return mean, here


def gaussian(field: Tensor, sigma: Lengths) -> Tensor:
    """Gaussian sums: (..., Z + 2m, Y + 2m, X + 2m) float -> (..., Z, Y, X); m as for `smooth`."""
    for axis, width in zip((-1, -2, -3), reversed(sigma), strict=True):
        weights = gaussian_weights(width)
        reach, length = len(weights) - 1, field.shape[axis] - 2 * (len(weights) - 1)
        total = field.narrow(axis, reach, length) * weights[0]
        for k in range(1, reach + 1):
            # The two sides first: mirrored input then gives the mirrored sums to the bit.
            before, after = (field.narrow(axis, reach + o, length) for o in (-k, k))
            total.add_(before + after, alpha=weights[k])
        field = total
    return field


def gaussian_weights(sigma: float) -> list[float]:
    """The weights of the middle and of the voxels to one side of it; all of them add up to 1."""
    reach = ceil(TRUNCATE * sigma - 1e-6)
    weights = [exp(-0.5 * (k / sigma) ** 2) if k else 1.0 for k in range(reach + 1)]
    total = 2 * sum(weights) - weights[0]
    return [weight / total for weight in weights]


FLATTEST = 0.05
"""A smoothed mask has a normal where it changes by more than this over one sigma: within two sigmas
of a flat face (0.054 there)."""

_ENTRIES = ((0, 0), (1, 1), (2, 2), (1, 0), (2, 0), (2, 1))
"""Of a symmetric matrix: zz, yy, xx, yz, xz, xy."""


def sigma_in_voxels(sigma: float, spacing: Lengths) -> Lengths:
    """Of a Gaussian that is round in space; `sigma` counts shortest sides of a voxel."""
    z, y, x = (sigma * min(spacing) / side for side in spacing)
    return z, y, x


def normals_reach(sigma: float, spacing: Lengths, *, axial: bool) -> Voxels:
    """Voxels along (z, y, x) that have a say in a normal."""
    z, y, x = gaussian_reach(sigma_in_voxels(sigma, spacing))
    return (2 * z + 1, 2 * y + 1, 2 * x + 1) if axial else (z + 1, y + 1, x + 1)


def surface_normals(field: Tensor, known: Tensor, sigma: float, spacing: Lengths) -> Labelled:
    """Unit normals: the smoothed field's gradient in space, turned round.

    Args:
        field: (1, Z + 2m, Y + 2m, X + 2m) float32, m being `normals_reach(..., axial=False)`; 1 in
            a mask and 0 outside of it.
        known: the same shape, bool.
        sigma: of the smoothing, in shortest sides of a voxel.
        spacing: length of a voxel along (z, y, x).

    Returns:
        (3, Z, Y, X) float32, components (z, y, x), 0 where not valid; (1, Z, Y, X) bool: known, and
        steeper than `FLATTEST`.
    """
    slope, here = _slope(field, known, sigma, spacing)
    squared = slope.square().sum(0, keepdim=True)
    valid = here & (squared > FLATTEST**2)
    return torch.where(valid, slope / -squared.sqrt(), 0.0), valid


def structure(field: Tensor, known: Tensor, sigma: float, spacing: Lengths) -> Labelled:
    """The structure tensor, whose principal axis is the normal of the surfaces around a voxel.

    The outer products of the gradients are averaged by the same Gaussian, so that both faces of a
    thin sheet agree and its middle has an axis too (Foerstner and Guelch 1987; Bigun and Granlund
    1987, ICCV).

    Args:
        field: as for `surface_normals`, but m is `normals_reach(..., axial=True)`.
        known: the same shape, bool.
        sigma: of both smoothings, in shortest sides of a voxel.
        spacing: length of a voxel along (z, y, x).

    Returns:
        (6, Z, Y, X) float32: zz, yy, xx, yz, xz, xy; (1, Z, Y, X) bool: known, and the faces near
        are steeper than `FLATTEST` in the mean square.
    """
    slope, here = _slope(field, known, sigma, spacing)
    width = sigma_in_voxels(sigma, spacing)
    # One by one: a single field stays in the cache, which takes half as long as all six together.
    products = ((slope[a] * slope[b]).mul_(here[0]) for a, b in _ENTRIES)
    tensor = torch.stack([gaussian(product, width) for product in products])
    valid = inner(here, gaussian_reach(width))
    return tensor, valid & (tensor[:3].sum(0, keepdim=True) > FLATTEST**2)


def _slope(field: Tensor, known: Tensor, sigma: float, spacing: Lengths) -> Labelled:
    """Change of the smoothed field over one sigma, (3, Z, Y, X), and the known voxels."""
    mean, here = smooth(field, known, sigma_in_voxels(sigma, spacing))
    length = sigma * min(spacing)
    steps: list[Tensor] = []
    for axis, side in enumerate(spacing):
        margin = [1, 1, 1]
        margin[axis] = 0
        along = inner(mean[0], (margin[0], margin[1], margin[2]))
        n = along.shape[axis] - 2
        steps.append((along.narrow(axis, 2, n) - along.narrow(axis, 0, n)) * (length / (2 * side)))
    return torch.stack(steps), inner(here, (1, 1, 1))
