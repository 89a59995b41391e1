"""Mirrors and quarter turns, which are exact; rotation, scaling, shear, warps and compression."""

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, cos, log, radians, sin
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from vcmodels.augment.base import (
    Axis,
    ElasticAugmentation,
    ExactAugmentation,
    Factors,
    LinearAugmentation,
)
from vcmodels.augment.transform import FOLDING_LIMIT, Lattice, centred, control_points
from vcmodels.geometry.boxes import Shape, Spacing
from vcmodels.geometry.symmetries import (
    AXES,
    IDENTITY,
    Symmetry,
    generated_group,
    have_equal_spacing,
    mirror,
    quarter_turn,
)
from vcmodels.section import Fraction


def _different(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    if len(set(axes)) < len(axes):
        raise ValueError(f"axes {', '.join(axes)} name one axis twice")
    return axes


Axes = Annotated[tuple[Axis, ...], AfterValidator(_different)]
Plane = Annotated[tuple[Axis, Axis], AfterValidator(_different)]


class Flip(ExactAugmentation):
    """Mirror along each of some axes, each with probability `p` on its own."""

    name: Literal["flip"] = "flip"
    p: Fraction = 0.5
    """Probability for each axis."""
    axes: Axes = ("z", "y", "x")
    """Axes that may be mirrored, by name or as 0, 1, 2."""

    def sample_symmetry(self, rng: np.random.Generator, spacing: Spacing) -> Symmetry:
        del spacing
        symmetry = IDENTITY
        for axis in self.axes:
            if self.happens(rng):
                symmetry = mirror(AXES.index(axis)) @ symmetry
        return symmetry

    def moves(self, spacing: Spacing) -> tuple[Symmetry, ...]:
        del spacing
        return generated_group([mirror(AXES.index(axis)) for axis in self.axes if self.p])


class QuarterTurn(ExactAugmentation):
    """Turn by multiples of 90 degrees: one of all turns that the planes reach, except none.

    A plane whose two axes differ in spacing is turned by 180 degrees only.
    """

    name: Literal["quarter_turn"] = "quarter_turn"
    p: Fraction = 0.5
    planes: tuple[Plane, ...] = (("z", "y"), ("z", "x"), ("y", "x"))
    """Planes of rotation; the three together reach the 24 orientations of a cube."""

    def sample_symmetry(self, rng: np.random.Generator, spacing: Spacing) -> Symmetry:
        if not self.happens(rng):
            return IDENTITY
        turns = _turns(self.planes, tuple(spacing))
        return turns[rng.integers(len(turns))] if turns else IDENTITY

    def moves(self, spacing: Spacing) -> tuple[Symmetry, ...]:
        return (IDENTITY, *(_turns(self.planes, tuple(spacing)) if self.p else ()))


@lru_cache(maxsize=64)
def _turns(planes: tuple[Plane, ...], spacing: Spacing) -> tuple[Symmetry, ...]:
    """Every turn that the planes reach on voxels of this spacing, the identity left out."""
    generators: list[Symmetry] = []
    for first, second in planes:
        a, b = AXES.index(first), AXES.index(second)
        turn = quarter_turn(a, b)
        generators.append(turn if have_equal_spacing(spacing, a, b) else turn @ turn)
    return tuple(turn for turn in generated_group(generators) if not turn.is_identity)


FLAT = 3.0
"""A plane whose voxels, or whose patch, are longer than this one way is not rotated by default.

nnU-Net switches to rotations in the plane at the same ratio (Isensee et al. 2021, Nature Methods).
"""

PLANES = ((1, 2), (0, 2), (0, 1))
"""The two axes of the plane across z, y and x."""

Angle = Annotated[float, Field(ge=0, le=180)]


class Affine(LinearAugmentation):
    """Rotate and scale about the centre of the patch, in physical space."""

    name: Literal["affine"] = "affine"
    p: Fraction = 0.3
    rotation_degrees: Angle | tuple[Angle, Angle, Angle] = 30.0
    """Largest angle either way: one for all axes, or one for each of the axes of rotation z, y, x.

    One number leaves out the planes whose voxels or patch are over 3 times longer one way.
    """
    scaling: Factors = (0.8, 1.25)
    """Lowest and highest magnification; above 1 things grow. Drawn evenly on a log scale."""
    per_axis_scaling: bool = False
    """Draw the magnification for each axis on its own."""

    def sample_matrix(self, rng: np.random.Generator, shape: Shape, spacing: Spacing) -> np.ndarray:
        limits = np.asarray(self._angles(shape, spacing))
        matrix = np.eye(3)
        for axis, angle in enumerate(rng.uniform(-limits, limits)):
            matrix = matrix @ rotation(axis, angle)
        low, high = (log(end) for end in self.scaling)
        zoom = np.exp(rng.uniform(low, high, size=3 if self.per_axis_scaling else 1))
        return matrix / zoom

    def _angles(self, shape: Shape, spacing: Spacing) -> Sequence[float]:
        if isinstance(self.rotation_degrees, tuple):
            return self.rotation_degrees
        return [0.0 if flat else self.rotation_degrees for flat in flat_planes(shape, spacing)]


class Shear(LinearAugmentation):
    """Slant: each axis is shifted in proportion to the place along each other, in physical space.

    Planes whose voxels or patch are over 3 times longer one way are left as they are.
    """

    name: Literal["shear"] = "shear"
    p: Fraction = 0.2
    slope: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Largest shift per unit of distance, either way; 0.1 slants by 6 degrees."""

    def sample_matrix(self, rng: np.random.Generator, shape: Shape, spacing: Spacing) -> np.ndarray:
        # Below 0.5 the diagonal dominates every row, so that nothing is turned inside out.
        matrix = np.eye(3) + rng.uniform(-self.slope, self.slope, size=(3, 3)) * (1 - np.eye(3))
        for (a, b), flat in zip(PLANES, flat_planes(shape, spacing), strict=True):
            if flat:
                matrix[a, b] = matrix[b, a] = 0
        return matrix


class Elastic(ElasticAugmentation):
    """Deform smoothly: control points are moved at random, a cubic B-spline fills between them."""

    name: Literal["elastic"] = "elastic"
    p: Fraction = 0.1
    spacing: Annotated[float, Field(ge=4, le=4096)] = 24.0
    """Distance between control points, in voxels (of the finest axis)."""
    amplitude: Annotated[float, Field(ge=0, le=4096)] = 8.0
    """Largest displacement of a control point along each axis, in voxels (of the finest axis).

    The field between them moves about half as far. At most 0.4 of `spacing`, or it could fold.
    """

    @model_validator(mode="after")
    def _cannot_fold(self) -> Self:
        if self.amplitude > FOLDING_LIMIT * self.spacing:
            raise ValueError(
                f"amplitude {self.amplitude:g} could fold the field: with spacing "
                f"{self.spacing:g} it can be at most {FOLDING_LIMIT * self.spacing:g}"
            )
        return self

    def sample_lattice(self, rng: np.random.Generator, shape: Shape, spacing: Spacing) -> Lattice:
        finest = min(spacing)
        z, y, x = (finest / side for side in spacing)
        distance = (self.spacing * z, self.spacing * y, self.spacing * x)
        points = control_points(shape, distance)
        offsets = rng.uniform(-1, 1, size=(3, *points)) * self.amplitude
        scaled = offsets * np.array([z, y, x])[:, None, None, None]
        return Lattice(scaled.astype(np.float32), distance)


class Compress(ElasticAugmentation):
    """Press layers together and pull them apart, by turns, along one direction.

    Along it the patch is divided into stretches, each with a factor of its own; between them the
    factor changes smoothly, and never leaves the limits, so that nothing folds. Sheets across the
    direction come closer and grow thinner, or the other way round.
    """

    name: Literal["compress"] = "compress"
    p: Fraction = 0.2
    factor: Factors = (0.6, 2.0)
    """Lowest and highest factor; above 1 layers come closer. Drawn evenly on a log scale."""
    spacing: Annotated[float, Field(ge=4, le=4096)] = 16.0
    """Length of a stretch, in voxels (of the finest axis)."""
    direction: Literal["random"] | Axis = "random"
    """`random`, any direction alike, or along one axis."""

    def sample_lattice(self, rng: np.random.Generator, shape: Shape, spacing: Spacing) -> Lattice:
        way = self._direction(rng)
        side = np.asarray(spacing) / min(spacing)
        z, y, x = self.spacing / side
        counts = control_points(shape, (z, y, x))
        place = [self.spacing * centred(n) for n in counts]
        along = sum(np.meshgrid(*(w * p for w, p in zip(way, place, strict=True)), indexing="ij"))
        # A slope of the spline is a mean of slopes between control points, which are means of
        # factors less 1: J = 1 + way (way * slopes)^T, whose determinant lies within the factors.
        low, high = (log(end) for end in self.factor)
        half = ceil(np.abs(along).max() / self.spacing) + 1
        factors = np.exp(rng.uniform(low, high, size=2 * half))
        knots = self.spacing * np.arange(-half, half + 1)
        moved = np.concatenate([[0.0], np.cumsum(self.spacing * (factors - 1))])
        shift = np.interp(along, knots, moved - moved[half])
        offsets = (way / side)[:, None, None, None] * shift
        return Lattice(offsets.astype(np.float32), (z, y, x))

    def _direction(self, rng: np.random.Generator) -> np.ndarray:
        """A unit vector along (z, y, x), in physical space."""
        if self.direction != "random":
            return np.eye(3)[AXES.index(self.direction)]
        drawn = rng.normal(size=3)
        return drawn / np.linalg.norm(drawn)


def flat_planes(shape: Shape, spacing: Spacing) -> tuple[bool, ...]:
    """Which of the planes across z, y and x have voxels or a patch over `FLAT` times longer one way.

    Also those in which the patch is one voxel thick.
    """
    ratios = [(spacing[a] / spacing[b], shape[a] / shape[b]) for a, b in PLANES]
    return tuple(
        1 in (shape[a], shape[b])
        or max(voxel, 1 / voxel, voxel * count, 1 / (voxel * count)) > FLAT
        for (a, b), (voxel, count) in zip(PLANES, ratios, strict=True)
    )


def rotation(axis: int, degrees: float) -> np.ndarray:
    """The rotation matrix (3, 3) about one axis of (z, y, x), float64."""
    first, second = (other for other in range(3) if other != axis)
    c, s = cos(radians(degrees)), sin(radians(degrees))
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = c
    matrix[first, second], matrix[second, first] = -s, s
    return matrix
