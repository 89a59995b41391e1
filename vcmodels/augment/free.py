"""Rotation, scaling and elastic deformation: all of one sample's are a single resampling."""

from math import cos, log, radians, sin
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from vcmodels.augment.base import ElasticAugmentation, Factors, LinearAugmentation
from vcmodels.augment.lattice import FOLDING_LIMIT, Lattice, control_points
from vcmodels.augment.transform import Spacing
from vcmodels.geometry.boxes import Shape
from vcmodels.section import Fraction

FLAT = 3.0
"""A plane whose voxels, or whose patch, are longer than this one way is not rotated by default.

nnU-Net switches to rotations in the plane at the same ratio (Isensee et al. 2021, Nature Methods).
"""

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

    def _angles(self, shape: Shape, spacing: Spacing) -> tuple[float, float, float]:
        if isinstance(self.rotation_degrees, tuple):
            return self.rotation_degrees
        limits = [0.0, 0.0, 0.0]
        for axis, (a, b) in enumerate(((1, 2), (0, 2), (0, 1))):
            voxel = spacing[a] / spacing[b]
            patch = voxel * shape[a] / shape[b]
            if max(voxel, 1 / voxel, patch, 1 / patch) <= FLAT:
                limits[axis] = self.rotation_degrees
        return limits[0], limits[1], limits[2]


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


def rotation(axis: int, degrees: float) -> np.ndarray:
    """The rotation matrix (3, 3) about one axis of (z, y, x), float64."""
    first, second = (other for other in range(3) if other != axis)
    c, s = cos(radians(degrees)), sin(radians(degrees))
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = c
    matrix[first, second], matrix[second, first] = -s, s
    return matrix
