"""Faults of single slices, as in stacks of sections and in scans taken slice by slice."""

from abc import abstractmethod
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from vcmodels.augment.base import Axis, Counts, IntensityAugmentation, ordered
from vcmodels.augment.exact import AXES
from vcmodels.augment.filters import gaussian
from vcmodels.augment.intensity import draw_count
from vcmodels.augment.resolution import Sigmas
from vcmodels.section import Fraction

Shift = Annotated[int, Field(ge=0, le=8)]
Shifts = Annotated[tuple[Shift, Shift], AfterValidator(ordered)]
"""Smallest and largest shift, in voxels."""


class SliceAugmentation(IntensityAugmentation):
    """A fault of a few slices across one axis, drawn anew for each of them."""

    count: Counts = (1, 3)
    """Fewest and most slices."""
    axis: Axis = "z"
    """The axis that the slices are stacked along."""

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        changed = image.clone()
        stack = changed.movedim(1 + AXES.index(self.axis), 0)
        count = min(draw_count(self.count, rng), len(stack))
        for place in rng.choice(len(stack), count, replace=False).tolist():
            stack[place] = self.spoil(stack[place], rng)
        return changed

    @abstractmethod
    def spoil(self, picture: Tensor, rng: np.random.Generator) -> Tensor:
        """The faulty slice: (C, H, W) float32 -> the same shape, or 0 for all of it."""


class MissingSlices(SliceAugmentation):
    """Set slices to 0, the mean of a normalised image, as lost sections are."""

    name: Literal["missing_slices"] = "missing_slices"
    p: Fraction = 0.1

    def spoil(self, picture: Tensor, rng: np.random.Generator) -> Tensor:
        del rng
        return torch.zeros_like(picture)


class ShiftedSlices(SliceAugmentation):
    """Shift slices in their plane, as sections that were aligned badly; borders are repeated.

    Only the image moves: the label is where the structure really is. Keep the shift below the width
    of what is labelled.
    """

    name: Literal["shifted_slices"] = "shifted_slices"
    p: Fraction = 0.1
    shift: Shifts = (1, 2)
    """Smallest and largest shift along each of the two axes of the plane, in voxels."""

    def spoil(self, picture: Tensor, rng: np.random.Generator) -> Tensor:
        for axis in (1, 2):
            offset = draw_count(self.shift, rng) * int(rng.choice((-1, 1)))
            extent = picture.shape[axis]
            source = (torch.arange(extent, device=picture.device) - offset).clamp_(0, extent - 1)
            picture = picture.index_select(axis, source)
        return picture


class BlurredSlices(SliceAugmentation):
    """Blur slices in their plane, as sections out of focus."""

    name: Literal["blurred_slices"] = "blurred_slices"
    p: Fraction = 0.1
    sigma: Sigmas = (1.0, 3.0)
    """Standard deviation of the Gaussian in voxels."""

    def spoil(self, picture: Tensor, rng: np.random.Generator) -> Tensor:
        sigma = rng.uniform(*self.sigma)
        return gaussian(picture[:, None], (0.0, sigma, sigma))[:, 0]
