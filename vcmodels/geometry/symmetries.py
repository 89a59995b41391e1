"""The 48 symmetries of the cube: signed permutations of (z, y, x), exact on voxels and vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from vcmodels.geometry.boxes import Shape, triple

Scalar = TypeVar("Scalar", bound=np.generic)

AXES: Final = ("z", "y", "x")
"""The names of the axes of arrays, in their order."""
SPACING_TOLERANCE = 0.01
"""Axes whose voxel lengths differ by more than this fraction are not exchanged."""


@dataclass(frozen=True, slots=True)
class Symmetry:
    """Exchange axes, then mirror: output axis k is input axis `permutation[k]`, mirrored or not.

    Attributes:
        permutation: for each output axis (z, y, x), the input axis it is taken from.
        flips: for each *output* axis, whether it runs backwards.
    """

    permutation: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    def __call__(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """A view of `array` with its last three axes (z, y, x) turned; leading axes stay."""
        lead = array.ndim - 3
        axes = (*range(lead), *(lead + axis for axis in self.permutation))
        mirror = (slice(None, None, -1 if flip else 1) for flip in self.flips)
        return array.transpose(axes)[(..., *mirror)]

    def __matmul__(self, first: "Symmetry") -> "Symmetry":
        """`first`, then this one: `(a @ b)(array)` equals `a(b(array))`.

        The sampling maps chain the other way: `(a @ b).matrix == b.matrix @ a.matrix`.
        """
        flips = [
            flip != first.flips[axis]
            for flip, axis in zip(self.flips, self.permutation, strict=True)
        ]
        return Symmetry(triple(first.permutation[axis] for axis in self.permutation), triple(flips))

    def __str__(self) -> str:
        """The input axis and its sign for each output axis, such as `-y+z+x`."""
        return "".join(
            f"{'-' if flip else '+'}{AXES[axis]}"
            for axis, flip in zip(self.permutation, self.flips, strict=True)
        )

    @property
    def matrix(self) -> NDArray[np.int64]:
        """J (3, 3): the Jacobian of the sampling map, output position -> input position.

        `output(o) = input(J o + constant)`, so the chain rule turns a gradient (or any vector that
        is normal to a surface) into `J^T n`, read at the voxel that moved. J is orthogonal.
        """
        matrix = np.zeros((3, 3), dtype=np.int64)
        for output, (source, flip) in enumerate(zip(self.permutation, self.flips, strict=True)):
            matrix[source, output] = -1 if flip else 1
        return matrix

    @property
    def inverse(self) -> "Symmetry":
        """The symmetry that undoes this one."""
        source = [self.permutation.index(axis) for axis in range(3)]
        return Symmetry(triple(source), triple(self.flips[axis] for axis in source))

    @property
    def is_identity(self) -> bool:
        """Whether nothing moves."""
        return self == IDENTITY

    def turned_shape(self, shape: Shape) -> Shape:
        """The shape that an array of `shape` (z, y, x) has afterwards."""
        return triple(shape[axis] for axis in self.permutation)

    def is_lawful(self, spacing: Sequence[float]) -> bool:
        """Whether the turned voxels keep their shape: only axes of equal spacing are exchanged."""
        return all(
            have_equal_spacing(spacing, output, source)
            for output, source in enumerate(self.permutation)
        )


IDENTITY = Symmetry()
CUBE_SYMMETRIES = tuple(
    Symmetry((a, b, c), (i, j, k))
    for (a, b, c), (i, j, k) in product(permutations(range(3)), product((False, True), repeat=3))
)
"""All 48, reflections included; the identity is the first."""


def have_equal_spacing(spacing: Sequence[float], first: int, second: int) -> bool:
    """Whether two axes have the same spacing, to within 1 %."""
    one, other = spacing[first], spacing[second]
    return abs(one - other) <= SPACING_TOLERANCE * max(one, other)


def mirror(axis: int) -> Symmetry:
    """The mirror image along one axis."""
    return Symmetry(flips=(axis == 0, axis == 1, axis == 2))


def quarter_turn(first: int, second: int) -> Symmetry:
    """The turn by 90 degrees from axis `first` towards `second`, as `np.rot90(axes=(first, second))`.

    Raises:
        ValueError: the two axes are the same or none of (z, y, x).
    """
    if {first, second} - {0, 1, 2} or first == second:
        raise ValueError(f"a plane needs two different axes of 0, 1, 2, got {first} and {second}")
    source = [0, 1, 2]
    source[first], source[second] = second, first
    return Symmetry(triple(source), (first == 0, first == 1, first == 2))


def generated_group(generators: Sequence[Symmetry]) -> tuple[Symmetry, ...]:
    """Every symmetry that products of `generators` reach, the identity included, sorted."""
    group, fresh = {IDENTITY}, {IDENTITY}
    while fresh:
        fresh = {generator @ old for generator in generators for old in fresh} - group
        group |= fresh
    return tuple(sorted(group, key=lambda symmetry: (symmetry.permutation, symmetry.flips)))
