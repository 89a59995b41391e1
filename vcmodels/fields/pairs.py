"""Fields on pairs of voxels: affinities between partners, and where instances end."""

from collections.abc import Sequence
from math import floor, sqrt

import torch
from torch import Tensor

from vcmodels.fields.distance import Lengths, Voxels, inner, voxels_within

Offset = tuple[int, int, int]


def longest_offset(offsets: Sequence[Offset]) -> Voxels:
    """The farthest that any offset goes along (z, y, x), in voxels."""
    z, y, x = (max(map(abs, axis)) for axis in zip((0, 0, 0), *offsets, strict=True))
    return z, y, x


def affinities(ids: Tensor, known: Tensor, offsets: Sequence[Offset]) -> tuple[Tensor, Tensor]:
    """Whether a voxel and its partner belong to one instance, for each offset.

    Args:
        ids: (1, Z + 2m, Y + 2m, X + 2m), m being `longest_offset(offsets)`; 0 is the background,
            which is no instance.
        known: the same shape, bool.
        offsets: K of them, (z, y, x) voxels from a voxel to its partner.

    Returns:
        (K, Z, Y, X) float32, 0 or 1 (0 where not valid); (K, Z, Y, X) bool: both partners known.
    """
    margin = longest_offset(offsets)
    here, seen = inner(ids, margin)[0], inner(known, margin)[0]
    same: list[Tensor] = []
    valid: list[Tensor] = []
    for offset in offsets:
        partner, both = _moved(ids, offset, margin)[0], seen & _moved(known, offset, margin)[0]
        same.append((here == partner) & (here != 0) & both)
        valid.append(both)
    return torch.stack(same).float(), torch.stack(valid)


def instance_boundaries(
    ids: Tensor, known: Tensor, width: float, spacing: Lengths, *, with_background: bool
) -> tuple[Tensor, Tensor]:
    """Voxels whose centre is within `width` of a voxel (its box) of another instance.

    Args:
        ids: (1, Z + 2m, Y + 2m, X + 2m) float, 0 or more; m is `voxels_within(width, spacing)`.
        known: the same shape, bool.
        width: a length in the unit of the spacing; a layer this thick on each side of a surface.
        spacing: length of a voxel along (z, y, x).
        with_background: whether the background counts as one more instance.

    Returns:
        (1, Z, Y, X) float32, 0 or 1 (0 where not valid); (1, Z, Y, X) bool: known, and a boundary
        or with nothing unknown within `width`.
    """
    margin = voxels_within(width, spacing)
    here, seen = inner(ids, margin), inner(known, margin)
    counts = known if with_background else known & (ids != 0)
    # Another id is near just when the largest or the least of the ids around is not the own one.
    largest = _ball_maximum(torch.where(counts, ids, -torch.inf), width, spacing)
    least = -_ball_maximum(torch.where(counts, -ids, -torch.inf), width, spacing)
    is_boundary = inner(counts, margin) & ((largest != here) | (least != here))
    if known.all():
        return is_boundary.float(), seen
    certain = is_boundary | ~_ball_maximum(~known, width, spacing)
    return is_boundary.float(), seen & certain


def _ball_maximum(field: Tensor, radius: float, spacing: Lengths) -> Tensor:
    """The largest value within `radius` of each voxel, as a stack of runs along x."""
    reach_z, reach_y, reach_x = voxels_within(radius, spacing)
    length = field.shape[-1] - 2 * reach_x
    runs = [field.narrow(-1, reach_x, length)]
    for k in range(1, reach_x + 1):
        ends = (field.narrow(-1, reach_x + o, length) for o in (-k, k))
        runs.append(torch.maximum(runs[-1], torch.maximum(*ends)))
    best: Tensor | None = None
    for z in range(-reach_z, reach_z + 1):
        for y in range(-reach_y, reach_y + 1):
            k = _run_length(radius, spacing, z, y)
            if k is not None:
                part = _moved(runs[k], (z, y, 0), (reach_z, reach_y, 0))
                best = part.clone() if best is None else torch.maximum(best, part, out=best)
    assert best is not None
    return best


def _run_length(radius: float, spacing: Lengths, z: int, y: int) -> int | None:
    """How far along x a voxel (z, y) away is still within the radius; None if nowhere."""
    steps = ((max(abs(o) - 0.5, 0.0) * side) for o, side in zip((z, y), spacing, strict=False))
    left = radius**2 * (1 + 1e-5) - sum(step**2 for step in steps)
    return None if left < 0 else floor(sqrt(left) / spacing[2] + 0.5 + 1e-5)


def _moved(field: Tensor, offset: Sequence[int], margin: Voxels) -> Tensor:
    """The inside of a field as seen from `offset` away: a view."""
    for axis, o, m in zip((-3, -2, -1), offset, margin, strict=True):
        field = field.narrow(axis, m + o, field.shape[axis] - 2 * m)
    return field
