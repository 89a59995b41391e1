"""The contract of an augmentation: one block of the task file's `augment` list, one class.

Four families: exact moves (voxels are only renamed), linear maps and elastic lattices (one
resampling for all of them together), and changes of the image's values.
"""

from abc import abstractmethod
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor

from vcmodels.augment.transform import Lattice
from vcmodels.geometry.boxes import Shape, Spacing
from vcmodels.geometry.symmetries import Symmetry
from vcmodels.section import Fraction, Section

Number = TypeVar("Number", int, float)


def ordered(ends: tuple[Number, Number]) -> tuple[Number, Number]:
    """Refuse a range whose low end exceeds its high end."""
    if ends[0] > ends[1]:
        raise ValueError(f"the low end {ends[0]:g} exceeds the high end {ends[1]:g}")
    return ends


def _named(axis: object) -> object:
    """0, 1, 2 mean z, y, x; anything else is left to the field's own check."""
    if isinstance(axis, int) and not isinstance(axis, bool) and 0 <= axis <= 2:
        return "zyx"[axis]
    return axis


Factors = Annotated[
    tuple[Annotated[float, Field(gt=0, le=100)], Annotated[float, Field(gt=0, le=100)]],
    AfterValidator(ordered),
]
"""Lowest and highest factor, both above 0."""
Amounts = Annotated[
    tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]],
    AfterValidator(ordered),
]
"""Lowest and highest amount, neither below 0."""
Fractions = Annotated[tuple[Fraction, Fraction], AfterValidator(ordered)]
"""Lowest and highest fraction, in [0, 1]."""
Count = Annotated[int, Field(ge=1, le=1000)]
Counts = Annotated[tuple[Count, Count], AfterValidator(ordered)]
"""Fewest and most."""
Axis = Annotated[Literal["z", "y", "x"], BeforeValidator(_named)]


class Augmentation(Section):
    """What every augmentation has: how often it is used."""

    p: Fraction
    """Probability that a sample gets it; 0 is never, 1 always."""

    def happens(self, rng: np.random.Generator) -> bool:
        """Draw whether this sample gets it."""
        return bool(rng.random() < self.p)


class ExactAugmentation(Augmentation):
    """A move that maps voxels onto voxels."""

    @abstractmethod
    def sample_symmetry(self, rng: np.random.Generator, spacing: Spacing) -> Symmetry:
        """The move of one sample; `p` is honoured here."""

    @abstractmethod
    def moves(self, spacing: Spacing) -> tuple[Symmetry, ...]:
        """All that `sample_symmetry` may give on voxels of this spacing, and the identity."""


class LinearAugmentation(Augmentation):
    """A linear map about the centre of the patch."""

    @abstractmethod
    def sample_matrix(self, rng: np.random.Generator, shape: Shape, spacing: Spacing) -> np.ndarray:
        """The Jacobian (3, 3) float64 of the sampling map in physical units, axes (z, y, x).

        Args:
            rng: the only source of randomness.
            shape: voxels along (z, y, x) that are resampled.
            spacing: length of a voxel along (z, y, x), in any one unit.
        """


class ElasticAugmentation(Augmentation):
    """A smooth displacement given by control points."""

    @abstractmethod
    def sample_lattice(self, rng: np.random.Generator, shape: Shape, spacing: Spacing) -> Lattice:
        """The control points of one sample; arguments as for `sample_matrix`."""


class IntensityAugmentation(Augmentation):
    """A change of the image's values that leaves every voxel, and so all labels, in place."""

    per_channel: bool = False
    """Draw again for each input channel; else all channels change alike."""

    @abstractmethod
    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """The changed image.

        Args:
            image: (C, Z, Y, X) float32 on any device, normalised: values about zero mean and unit
                deviation. Never written to.
            rng: the only source of randomness; what it draws does not depend on the device.

        Returns:
            The same shape, dtype and device.
        """
