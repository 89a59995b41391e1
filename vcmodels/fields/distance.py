"""Euclidean distances to the surface between labels, exact up to a reach.

A voxel is a box, and the surface of a label is made of the faces between its voxels and others. The
distance of a voxel is measured from its centre to the nearest such face: half a voxel at a flat
surface, on both sides of it, so that a signed distance passes through zero at the surface.

Axis by axis as in Felzenszwalb and Huttenlocher 2012, "Distance transforms of sampled functions"
(Theory of Computing 8), with a window in the place of the lower envelope: nothing beyond the reach
has a say, and a patch with that margin gives the crop of the whole.
"""

from math import floor

import torch
from torch import Tensor

Lengths = tuple[float, float, float]
Voxels = tuple[int, int, int]
Labelled = tuple[Tensor, Tensor]
"""A label, (L, Z, Y, X) float32, and where it is known: (V, Z, Y, X) bool, V being 1 or L."""

UNKNOWN = -1.0
"""Stands for the id of a voxel that is ignored or outside of the volume."""
_SLACK = 1e-5
"""Lengths that differ by less than this share of a voxel are one length, however rounded."""


def voxels_within(reach: float, spacing: Lengths) -> Voxels:
    """How far away along (z, y, x), in voxels, a voxel's box may be at most `reach` away."""
    z, y, x = (floor(reach / side + 0.5 + _SLACK) for side in spacing)
    return z, y, x


def known_distance(ids: Tensor, known: Tensor, spacing: Lengths, reach: float) -> Labelled:
    """`surface_distance`, and where it is certain.

    A distance is certain when it is less than that to the nearest unknown voxel, or nothing unknown
    is within the reach: whatever is there could not change it.

    Args:
        ids: (1, Z + 2m, Y + 2m, X + 2m) float, 0 or more; m is `voxels_within(reach, spacing)`.
        known: the same shape, bool.
        spacing: length of a voxel along (z, y, x).
        reach: in the same unit.

    Returns:
        (1, Z, Y, X) float32 in (0, reach], 0 where not certain; (1, Z, Y, X) bool.
    """
    if known.all():
        distance = surface_distance(ids, spacing, reach)
        return distance, torch.ones_like(distance, dtype=torch.bool)
    distance = surface_distance(torch.where(known, ids, UNKNOWN), spacing, reach)
    # A face of an unknown voxel gives the same number in both, to the bit.
    to_unknown = surface_distance(known, spacing, reach)
    # The square root of `reach * reach` may be rounded to a little less than `reach`.
    certain = (distance < to_unknown) | (to_unknown >= reach * (1 - 1e-6))
    certain &= inner(known, voxels_within(reach, spacing))
    return torch.where(certain, distance, 0.0), certain


def surface_distance(ids: Tensor, spacing: Lengths, reach: float) -> Tensor:
    """The distance from each voxel's centre to the nearest voxel with another id, at most `reach`.

    One field does for any number of ids. A step along an axis to a voxel of another id would take
    the distance that *that* voxel has, which says nothing here; but it costs at least the step, and
    the nearest change of id along the axis, which is looked up on its own, is no farther.

    Args:
        ids: (..., Z + 2m, Y + 2m, X + 2m), m being `voxels_within(reach, spacing)`.
        spacing: length of a voxel along (z, y, x).
        reach: more than 0, in the same unit.

    Returns:
        (..., Z, Y, X) float32.
    """
    margin = voxels_within(reach, spacing)
    cap = reach * reach
    squared: Tensor | None = None
    for axis in (-1, -2, -3):
        costs = [min(((k - 0.5) * spacing[axis]) ** 2, cap) for k in range(1, margin[axis] + 1)]
        here = _to_change(ids, axis, costs, cap)
        if squared is not None:
            _lower_by_steps(here, squared, axis, costs)
        squared = here
        ids = ids.narrow(axis, margin[axis], here.shape[axis])
    assert squared is not None
    return squared.sqrt_().clamp_(max=reach)


def inner(field: Tensor, margin: Voxels) -> Tensor:
    """The field without its margin: (..., Z + 2m, Y + 2m, X + 2m) -> (..., Z, Y, X), a view."""
    for axis, m in zip((-3, -2, -1), margin, strict=True):
        field = field.narrow(axis, m, field.shape[axis] - 2 * m)
    return field


def _to_change(ids: Tensor, axis: int, costs: list[float], cap: float) -> Tensor:
    """The cost of the nearest change of id along an axis; `cap` where there is none."""
    margin, length = len(costs), ids.shape[axis] - 2 * len(costs)
    shape = list(ids.shape)
    shape[axis] = length
    nearest = torch.full(shape, cap, dtype=torch.float32, device=ids.device)
    if not margin:
        return nearest
    steps = ids.shape[axis] - 1
    changes = ids.narrow(axis, 1, steps) != ids.narrow(axis, 0, steps)
    for k in range(margin, 0, -1):
        before = changes.narrow(axis, margin - k, length)
        after = changes.narrow(axis, margin + k - 1, length)
        nearest.masked_fill_(before | after, costs[k - 1])
    return nearest


def _lower_by_steps(best: Tensor, squared: Tensor, axis: int, costs: list[float]) -> None:
    """Lower `best`, in place, to the least of a step along the axis and what lies there."""
    margin, length = len(costs), best.shape[axis]
    torch.minimum(best, squared.narrow(axis, margin, length), out=best)
    step = torch.empty_like(best)
    for k, cost in enumerate(costs, 1):
        before = squared.narrow(axis, margin - k, length)
        torch.minimum(before, squared.narrow(axis, margin + k, length), out=step)
        torch.minimum(best, step.add_(cost), out=best)
