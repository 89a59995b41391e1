"""The keys of a radius, and the voxels that lie within it."""

from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from vcmodels.errors import FaultError, TaskError
from vcmodels.geometry.boxes import Shape, Spacing, triple
from vcmodels.postprocess.lengths import (
    SLACK,
    in_micrometers,
    reach_of,
    refuse_both,
    require_length,
)
from vcmodels.postprocess.sizing import PositiveNumber
from vcmodels.section import Section

MOST_REACH = 64
"""Voxels along an axis; more would be read over and over."""


class RadiusKeys(Section):
    """A radius, in voxels or in micrometers."""

    radius: Annotated[float, Field(ge=1, le=MOST_REACH)] | None = None
    """In voxels, the same number along each axis."""
    radius_um: PositiveNumber | None = None
    """In micrometers: fewer voxels along an axis of longer ones."""

    @model_validator(mode="after")
    def _check_one_radius(self) -> Self:
        refuse_both("radius", self.radius, self.radius_um)
        if self.radius is None and self.radius_um is None:
            raise FaultError('"radius" is missing', 'give "radius", in voxels, or "radius_um"')
        return self

    def check_radius(self, spacing: Spacing, unit: str | None) -> None:
        """Refuse a radius that is less than a voxel, or too many.

        Raises:
            TaskError: of `radius_um`.
        """
        if self.radius_um is None:
            return
        require_length("radius_um", unit)
        sides = in_micrometers(spacing, unit)
        if not 1 <= max(reach_of(self.radius_um, sides)) <= MOST_REACH:
            found = f"{self.radius_um:g} is less than a voxel or more than {MOST_REACH}: {sides}"
            least, most = min(sides), MOST_REACH * min(sides)
            raise TaskError("radius_um", found, f"give a number from {least:g} to {most:g}")

    def scaled(self, spacing_um: Spacing) -> tuple[float, Spacing]:
        """The radius, and the length of a voxel in its unit."""
        if self.radius_um is not None:
            return self.radius_um, spacing_um
        assert self.radius is not None, "one of the two is given"
        return self.radius, (1.0, 1.0, 1.0)

    def reach(self, spacing_um: Spacing) -> Shape:
        """How many voxels along (z, y, x) the radius is."""
        return reach_of(*self.scaled(spacing_um))


def ball(radius: float, spacing: Spacing) -> np.ndarray:
    """The voxels whose centres are within a radius of that of the middle one.

    Args:
        radius: in the unit of the spacing.
        spacing: length of a voxel along (z, y, x).

    Returns:
        (2 Z + 1, 2 Y + 1, 2 X + 1) bool, for a reach of (Z, Y, X).
    """
    reach = reach_of(radius, spacing)
    grids = np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij")
    squares = [(grid * side) ** 2 for grid, side in zip(grids, spacing, strict=True)]
    return np.add.reduce(squares) <= (radius * (1 + SLACK)) ** 2


def offsets_of(footprint: np.ndarray) -> list[Shape]:
    """Where the true voxels of a footprint lie in it, counted from its low corner."""
    return [triple(at) for at in np.argwhere(footprint).tolist()]
