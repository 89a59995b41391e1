"""The levels of a multiscale pyramid: how much coarser each is along (z, y, x)."""

from math import ceil

from vcmodels.geometry.boxes import Box, Shape

_TWICE = 1.999
"""Spacings are read from decimal texts: a ratio of 2 may come out a little less."""


def level_factors(
    extent: Shape, spacing: tuple[float, float, float], chunks: Shape, count: int | None
) -> tuple[Shape, ...]:
    """How many voxels of level 0 make one of each level, along (z, y, x); that of level 0 included.

    From one level to the next an axis is halved, unless its voxels are already twice as long as the
    shortest ones (thin sections catch up first), or it is one voxel long.

    Args:
        extent: of level 0.
        spacing: length of its voxels.
        chunks: of the arrays.
        count: how many coarser levels; None: until one chunk holds a level. No more than make sense.
    """
    factors: list[Shape] = [(1, 1, 1)]
    while count is None or len(factors) <= count:
        now = factors[-1]
        lengths = coarse_extent(extent, now)
        if max(lengths) == 1:
            break
        if count is None and all(n <= c for n, c in zip(lengths, chunks, strict=True)):
            break
        sizes = [s * f for s, f in zip(spacing, now, strict=True)]
        finest = min(size for size, n in zip(sizes, lengths, strict=True) if n > 1)
        z, y, x = (
            2 * f if n > 1 and size < _TWICE * finest else f
            for f, n, size in zip(now, lengths, sizes, strict=True)
        )
        factors.append((z, y, x))
    return tuple(factors)


def coarse_extent(extent: Shape, factor: Shape) -> Shape:
    """Length of a level; the last voxel of an axis may stand for fewer than `factor`."""
    z, y, x = (ceil(n / f) for n, f in zip(extent, factor, strict=True))
    return z, y, x


def coarse_box(box: Box, factor: Shape) -> Box:
    """The voxels of a level that a box of a finer one has a part in."""
    start = [o // f for o, f in zip(box.origin, factor, strict=True)]
    return Box.between(start, coarse_extent(box.end, factor))


def fine_box(box: Box, factor: Shape) -> Box:
    """The voxels of the finer level under a box; they may reach past its end."""
    start = [o * f for o, f in zip(box.origin, factor, strict=True)]
    return Box.between(start, [e * f for e, f in zip(box.end, factor, strict=True)])
