"""Half-open boxes on the (z, y, x) voxel grid, and the levels of a pyramid."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import TypeVar

Value = TypeVar("Value")
Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
"""Length of a voxel along (z, y, x), in whatever unit goes with it."""


def triple(values: Iterable[Value]) -> tuple[Value, Value, Value]:
    """Three values, along (z, y, x), as a tuple of known length."""
    z, y, x = values
    return z, y, x


def divide(shape: Shape, divisor: Shape) -> Shape:
    """`shape // divisor` along (z, y, x)."""
    return triple(n // d for n, d in zip(shape, divisor, strict=True))


def grow_shape(shape: Shape, margin: Shape) -> Shape:
    """The shape of a box that has `margin` voxels more on both sides of each axis."""
    return triple(n + 2 * m for n, m in zip(shape, margin, strict=True))


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """The voxels `origin <= (z, y, x) < origin + shape`; the origin may be negative."""

    origin: Shape
    shape: Shape

    @classmethod
    def between(cls, start: Sequence[int], end: Sequence[int]) -> "Box":
        """The box from `start` (included) to `end` (excluded); empty axes get length 0."""
        (z0, y0, x0), (z1, y1, x1) = start, end
        return cls((z0, y0, x0), (max(z1 - z0, 0), max(y1 - y0, 0), max(x1 - x0, 0)))

    @property
    def end(self) -> Shape:
        """The first voxel past the box along each axis."""
        (z, y, x), (depth, height, width) = self.origin, self.shape
        return z + depth, y + height, x + width

    @property
    def pairs(self) -> list[list[int]]:
        """[start, end) along each axis, as a `bbox` in JSON."""
        return [list(pair) for pair in zip(self.origin, self.end, strict=True)]

    @property
    def voxels(self) -> int:
        """How many voxels the box holds."""
        return prod(self.shape)

    def slices(self, within: "Box | None" = None) -> tuple[slice, slice, slice]:
        """Slices of this box in an array whose voxel 0 is `within.origin` (the volume's if None)."""
        base = within.origin if within else (0, 0, 0)
        return triple(
            slice(o - b, o - b + n) for o, b, n in zip(self.origin, base, self.shape, strict=True)
        )

    def cut(self, axis: int, start: int, end: int) -> "Box":
        """The box from `start` to `end` along one axis, and as it is along the others."""
        low, high = list(self.origin), list(self.end)
        low[axis], high[axis] = start, end
        return Box.between(low, high)

    def intersect(self, other: "Box") -> "Box":
        """The voxels in both; `voxels == 0` when there are none."""
        start = [max(a, b) for a, b in zip(self.origin, other.origin, strict=True)]
        end = [min(a, b) for a, b in zip(self.end, other.end, strict=True)]
        return Box.between(start, end)

    def contains(self, other: "Box") -> bool:
        """Whether every voxel of `other` lies in this box."""
        return self.intersect(other) == other

    def grow(self, margin: Sequence[int]) -> "Box":
        """This box with `margin` voxels more on both sides of each axis."""
        start = [o - m for o, m in zip(self.origin, margin, strict=True)]
        end = [e + m for e, m in zip(self.end, margin, strict=True)]
        return Box.between(start, end)

    def with_layer(self) -> "Box":
        """This box and the layer of voxels that follows it along each axis."""
        return Box(self.origin, triple(n + 1 for n in self.shape))


def units_touching(box: Box, unit: Shape) -> tuple[range, range, range]:
    """Along each axis, the numbers of the units that a box touches; unit 0 starts at voxel 0."""
    triples = zip(box.origin, box.end, unit, strict=True)
    return triple(range(start // n, -(-end // n)) for start, end, n in triples)


def unit_box(index: Sequence[int], unit: Shape) -> Box:
    """All voxels of the unit of this number along each axis."""
    return Box(triple(i * n for i, n in zip(index, unit, strict=True)), unit)


_TWICE = 1.999
"""Spacings are read from decimal texts: a ratio of 2 may come out a little less."""


def level_factors(
    extent: Shape, spacing: Spacing, chunks: Shape, count: int | None
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
    return triple(ceil(n / f) for n, f in zip(extent, factor, strict=True))


def coarse_box(box: Box, factor: Shape) -> Box:
    """The voxels of a level that a box of a finer one has a part in."""
    start = [o // f for o, f in zip(box.origin, factor, strict=True)]
    return Box.between(start, coarse_extent(box.end, factor))


def fine_box(box: Box, factor: Shape) -> Box:
    """The voxels of the finer level under a box; they may reach past its end."""
    start = [o * f for o, f in zip(box.origin, factor, strict=True)]
    return Box.between(start, [e * f for e, f in zip(box.end, factor, strict=True)])


PIECE_VOXELS = 1 << 26  # a shard larger than this is read in parts, to bound the memory


def cut_block(block: Box, chunk: Shape, most: int = PIECE_VOXELS) -> Iterator[Box]:
    """Cut a shard that is too large to read at once into slabs, then bars, of whole chunks."""
    steps = list(block.shape)
    for axis in range(3):
        others = max(prod(steps) // max(steps[axis], 1), 1)
        fitting = max(most // (others * chunk[axis]), 1) * chunk[axis]
        steps[axis] = min(steps[axis], fitting)
    ranges = (range(o, e, s) for o, e, s in zip(block.origin, block.end, steps, strict=True))
    for z, y, x in product(*ranges):
        yield Box((z, y, x), triple(steps)).intersect(block)
