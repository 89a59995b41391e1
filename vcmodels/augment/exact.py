"""Mirrors and quarter turns: voxels move to voxels, nothing is interpolated."""

from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator

from vcmodels.augment.base import Axis, ExactAugmentation
from vcmodels.augment.transform import Spacing
from vcmodels.geometry.symmetries import (
    IDENTITY,
    Symmetry,
    generated_group,
    have_equal_spacing,
    mirror,
    quarter_turn,
)
from vcmodels.section import Fraction

AXES = "zyx"


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


@lru_cache(maxsize=64)
def _turns(planes: tuple[Plane, ...], spacing: Spacing) -> tuple[Symmetry, ...]:
    """Every turn that the planes reach on voxels of this spacing, the identity left out."""
    generators: list[Symmetry] = []
    for first, second in planes:
        a, b = AXES.index(first), AXES.index(second)
        turn = quarter_turn(a, b)
        generators.append(turn if have_equal_spacing(spacing, a, b) else turn @ turn)
    return tuple(turn for turn in generated_group(generators) if not turn.is_identity)
