"""Half-open boxes on the (z, y, x) voxel grid."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

Shape = tuple[int, int, int]


def grow_shape(shape: Shape, margin: Shape) -> Shape:
    """The shape of a box that has `margin` voxels more on both sides of each axis."""
    return shape[0] + 2 * margin[0], shape[1] + 2 * margin[1], shape[2] + 2 * margin[2]


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
        return (
            self.origin[0] + self.shape[0],
            self.origin[1] + self.shape[1],
            self.origin[2] + self.shape[2],
        )

    @property
    def voxels(self) -> int:
        """How many voxels the box holds."""
        return prod(self.shape)

    def slices(self, within: "Box | None" = None) -> tuple[slice, slice, slice]:
        """Slices of this box in an array whose voxel 0 is `within.origin` (the volume's if None)."""
        base = within.origin if within else (0, 0, 0)
        z, y, x = (
            slice(o - b, o - b + n) for o, b, n in zip(self.origin, base, self.shape, strict=True)
        )
        return z, y, x

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


def blocks_of(box: Box, block: Shape) -> Iterator[Box]:
    """Cut a box at the multiples of `block`, so that chunks of that shape are decoded once.

    An empty box gives itself.
    """
    if not box.voxels:
        yield box
        return
    starts = (range(o // b * b, e, b) for o, e, b in zip(box.origin, box.end, block, strict=True))
    for z, y, x in product(*starts):
        yield Box((z, y, x), block).intersect(box)
