"""Fields of instance ids: affinities, boundaries, centres and the way to them.

A *piece* is a connected set of voxels (by faces, edges or corners) with one id: an id that stands in
two places has two pieces, and two centres. A piece whose box is longer than `longest` along an axis
has no centre, and its voxels do not count. Nor do those of a piece that ends at unknown voxels, for
the rest of it is not seen; `keep_cut` takes what is seen for the whole.

This is what makes the fields local, so that a patch with a margin of m voxels gives the crop of the
whole. A piece that does not reach the outermost layer of the patch with its margin is a piece of
the whole volume, and all its neighbours are there; one that does is left out. That is
right, for it cannot have a say in the patch: a piece of the patch that also reaches the layer is
longer than m, so m >= `longest` is enough for the way to the centre. For the heat, the centre of a
piece that reaches the layer is at least m - longest + 1 voxels away from the patch, if it is not too
long anyway, so m >= longest + reach is enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, sqrt

import numpy as np
import torch
from torch import Tensor

from vcmodels.fields.distance import Labelled, Lengths, Voxels, inner, voxels_within

Offset = tuple[int, int, int]


def longest_offset(offsets: Sequence[Offset]) -> Voxels:
    """The farthest that any offset goes along (z, y, x), in voxels."""
    z, y, x = (max(map(abs, axis)) for axis in zip((0, 0, 0), *offsets, strict=True))
    return z, y, x


def affinities(ids: Tensor, known: Tensor, offsets: Sequence[Offset]) -> Labelled:
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
) -> Labelled:
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


REACH = 3.0
"""Where the Gaussian of a centre ends, in sigmas along each axis; it is 0.011 there."""


def heat_reach(sigma: Lengths) -> Voxels:
    """Voxels along (z, y, x) over which a centre spreads, for a sigma in voxels."""
    z, y, x = (ceil(REACH * s) for s in sigma)
    return z, y, x


def centre_heat(
    ids: Tensor,
    known: Tensor,
    sigma: Lengths,
    longest: Voxels,
    margin: Voxels,
    *,
    keep_cut: bool = False,
) -> Labelled:
    """The largest of the Gaussians around the centres of all pieces.

    Args:
        ids: (1, Z + 2m, Y + 2m, X + 2m): whole numbers, 0 for the background.
        known: the same shape, bool.
        sigma: of the Gaussians along (z, y, x), in voxels.
        longest: voxels along (z, y, x); a longer piece has no centre.
        margin: m along (z, y, x), at least `longest` plus `heat_reach(sigma)`.
        keep_cut: whether a piece that ends at unknown voxels has a centre.

    Returns:
        heat: (1, Z, Y, X) float32 in [0, 1], 1 at a centre that falls on a voxel; 0 where not valid.
        valid: (1, Z, Y, X) bool: known, and in no piece without a centre.
    """
    pieces = _find_pieces(ids, known, longest, keep_cut)
    inside = _inside(ids.shape[1:], margin)
    heat = np.zeros(pieces.numbers[inside].shape, np.float32)
    for low, mean in zip(pieces.low - np.asarray(margin), pieces.mean, strict=True):
        _add_gaussian(heat, low, mean, sigma)
    valid = pieces.valid(inside)
    return _tensor(np.where(valid, heat, 0), ids), _tensor(valid, ids)


def centre_offsets(
    ids: Tensor, known: Tensor, longest: Voxels, margin: Voxels, *, keep_cut: bool = False
) -> Labelled:
    """The way from each voxel of a piece to the centre of that piece.

    Args:
        ids: as for `centre_heat`; and so are the others, but `margin` is at least `longest`.
        known: as above.
        longest: as above.
        margin: as above.
        keep_cut: as above.

    Returns:
        offsets: (3, Z, Y, X) float32 along (z, y, x), in voxels; 0 outside of pieces.
        valid: (1, Z, Y, X) bool: known, and in no piece without a centre.
    """
    pieces = _find_pieces(ids, known, longest, keep_cut)
    inside = _inside(ids.shape[1:], margin)
    numbers = pieces.numbers[inside]
    low, mean = np.zeros((2, 3, len(pieces.is_lost)))
    low[:, pieces.kept], mean[:, pieces.kept] = pieces.low.T, pieces.mean.T
    has_centre = ~pieces.is_lost[numbers] & (numbers > 0)
    offsets = np.zeros((3, *numbers.shape), np.float32)
    for axis, place in enumerate(np.ogrid[inside]):
        offsets[axis] = np.where(has_centre, (low[axis][numbers] - place) + mean[axis][numbers], 0)
    return torch.from_numpy(offsets).to(ids.device), _tensor(pieces.valid(inside), ids)


@dataclass(frozen=True)
class _Pieces:
    numbers: np.ndarray
    """(Z, Y, X): the piece of each voxel, from 1 on; 0 for none."""
    known: np.ndarray
    """(Z, Y, X) bool."""
    is_lost: np.ndarray
    """(pieces + 1,) bool: no centre, though a piece."""
    kept: np.ndarray
    """(n,): the pieces that have a centre."""
    low: np.ndarray
    """(n, 3) int: the low corner of their boxes."""
    mean: np.ndarray
    """(n, 3) float64: their centres, from that corner; apart from it, so that no rounding depends
    on where the piece lies."""

    def valid(self, inside: tuple[slice, ...]) -> np.ndarray:
        """Known voxels of pieces that have a centre, and of none, in a part."""
        return self.known[inside] & ~self.is_lost[self.numbers[inside]]


def _find_pieces(ids: Tensor, known: Tensor, longest: Voxels, keep_cut: bool) -> _Pieces:
    # Late: both are slow to import, and most tasks derive nothing.
    from scipy.ndimage import find_objects
    from skimage.measure import label as label_regions

    seen = known[0].cpu().numpy()
    values = np.where(seen, ids[0].cpu().numpy(), 0).astype(np.int32)
    numbers = np.asarray(label_regions(values, background=0, connectivity=3))
    boxes = find_objects(numbers)
    is_lost = np.zeros(len(boxes) + 1, bool)
    extents = np.array([[s.stop - s.start for s in box] for box in boxes]).reshape(-1, 3)
    is_lost[1:] = (extents > longest).any(1)
    for axis in range(3):
        is_lost[np.take(numbers, (0, -1), axis)] = True
    if not keep_cut and not seen.all():
        is_lost[numbers[_grown(~seen)]] = True
    is_lost[0] = False
    kept = np.flatnonzero(~is_lost[1:]) + 1
    low = np.array([[s.start for s in boxes[k - 1]] for k in kept], int).reshape(-1, 3)
    mean = np.array([mean_place(numbers[boxes[k - 1]] == k) for k in kept]).reshape(-1, 3)
    return _Pieces(numbers, seen, is_lost, kept, low, mean)


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and the 26 neighbours of its voxels: one step along each axis in turn."""
    grown = mask.copy()
    for axis in range(3):
        before = np.moveaxis(grown.copy(), axis, 0)
        along = np.moveaxis(grown, axis, 0)
        along[1:] |= before[:-1]
        along[:-1] |= before[1:]
    return grown


def mean_place(mask: np.ndarray) -> list[float]:
    """Mean (z, y, x) of the true voxels of a mask that has some.

    By the voxels in each plane along an axis: three sums, and no array of positions.
    """
    counts = (mask.sum((1, 2)), mask.sum((0, 2)), mask.sum((0, 1)))
    return [float(np.arange(len(c)) @ c) / float(c.sum()) for c in counts]


def _add_gaussian(heat: np.ndarray, low: np.ndarray, mean: np.ndarray, sigma: Lengths) -> None:
    """Raise `heat` (Z, Y, X) to the Gaussian around `low + mean`, where that is larger."""
    where: list[slice] = []
    profiles: list[np.ndarray] = []
    for extent, corner, centre, width in zip(heat.shape, low.tolist(), mean, sigma, strict=True):
        reach = REACH * width + 1e-6  # A voxel at just 3 sigma is in, however that was rounded.
        first = max(corner + ceil(centre - reach), 0)
        last = min(corner + floor(centre + reach), extent - 1)
        if first > last:
            return
        distance = (np.arange(first, last + 1) - corner - centre) / width
        where.append(slice(first, last + 1))
        profiles.append(np.exp(-0.5 * distance**2).astype(np.float32))
    z, y, x = profiles
    part = heat[tuple(where)]
    np.maximum(part, z[:, None, None] * (y[:, None] * x), out=part)


def _inside(shape: Sequence[int], margin: Voxels) -> tuple[slice, ...]:
    return tuple(slice(m, n - m) for n, m in zip(shape, margin, strict=True))


def _tensor(array: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))[None].to(like.device)
