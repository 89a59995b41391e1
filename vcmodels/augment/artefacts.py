"""Faults of scanners, of volumes and of single slices."""

from abc import abstractmethod
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from vcmodels.augment.apply import draw_count
from vcmodels.augment.base import (
    Amounts,
    Axis,
    Counts,
    Factors,
    Fractions,
    IntensityAugmentation,
    ordered,
)
from vcmodels.augment.resample import gaussian
from vcmodels.augment.transform import Lattice, centred, control_points
from vcmodels.augment.values import Sigmas
from vcmodels.geometry.symmetries import AXES
from vcmodels.section import Fraction


class BiasField(IntensityAugmentation):
    """Multiply by a smooth field: the uneven gain of coils, light sheets and detectors.

    The factor acts on the height above the darkest voxel of the channel, which stays as it is. Its
    logarithm is a cubic B-spline on a coarse lattice.
    """

    name: Literal["bias_field"] = "bias_field"
    p: Fraction = 0.15
    factor: Factors = (0.7, 1.4)
    """Lowest and highest gain at a control point, drawn evenly on a log scale."""
    cells: Annotated[int, Field(ge=1, le=16)] = 2
    """Intervals between control points that span the patch along each axis; more are rougher."""

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        z, y, x = image.shape[1:]
        distance = (z / self.cells, y / self.cells, x / self.cells)
        low, high = np.log(self.factor)
        logs = rng.uniform(low, high, size=(1, *control_points((z, y, x), distance)))
        lattice = Lattice(logs.astype(np.float32), distance)
        gain = torch.from_numpy(lattice.displacement([centred(n) for n in (z, y, x)]))
        lowest = image.amin((1, 2, 3), keepdim=True)
        return (image - lowest).mul_(gain.to(image.device).exp_()).add_(lowest)


class Rings(IntensityAugmentation):
    """Add rings about an axis of rotation in or near the patch, as uneven detectors leave in CT."""

    name: Literal["rings"] = "rings"
    p: Fraction = 0.1
    count: Counts = (2, 10)
    """Fewest and most rings."""
    amplitude: Amounts = (0.1, 0.5)
    """How much brighter or darker a ring is at most, in units of the normalised image."""
    width: Factors = (0.5, 1.5)
    """Standard deviation of a ring's profile across, in voxels."""
    reach: Annotated[float, Field(ge=0, le=100)] = 1.0
    """How far outside the patch the centre may lie, in lengths of the patch."""
    axis: Axis = "z"
    """The axis of rotation, along which the rings do not change."""

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        along = 1 + AXES.index(self.axis)
        height, width = (n for axis, n in enumerate(image.shape) if axis not in (0, along))
        start, stop = -self.reach, 1 + self.reach
        centre = rng.uniform(start, stop, size=2) * (height, width)
        distance = np.hypot(
            np.arange(height, dtype=np.float32)[:, None] - np.float32(centre[0]),
            np.arange(width, dtype=np.float32) - np.float32(centre[1]),
        )
        pattern = np.zeros_like(distance)
        for _ in range(draw_count(self.count, rng)):
            radius = np.float32(rng.uniform(distance.min(), distance.max()))
            sigma = np.float32(rng.uniform(*self.width))
            size = np.float32(rng.uniform(*self.amplitude) * rng.choice((-1, 1)))
            pattern += size * np.exp(-0.5 * ((distance - radius) / sigma) ** 2)
        return image + torch.from_numpy(pattern).to(image.device).unsqueeze(along - 1)


class BlankBoxes(IntensityAugmentation):
    """Set boxes to 0, the mean of a normalised image, as missing chunks and occlusions are."""

    name: Literal["blank_boxes"] = "blank_boxes"
    p: Fraction = 0.1
    count: Counts = (1, 3)
    """Fewest and most boxes."""
    size: Fractions = (0.05, 0.25)
    """Shortest and longest side of a box, as a fraction of the patch along that axis."""

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        changed = image.clone()
        for _ in range(draw_count(self.count, rng)):
            box = [slice(None)]
            for extent in image.shape[1:]:
                side = max(1, round(extent * rng.uniform(*self.size)))
                start = int(rng.integers(extent - side + 1))
                box.append(slice(start, start + side))
            changed[tuple(box)] = 0
        return changed


SliceShift = Annotated[int, Field(ge=0, le=8)]
Shifts = Annotated[tuple[SliceShift, SliceShift], AfterValidator(ordered)]
"""Smallest and largest shift, in voxels."""


class SliceAugmentation(IntensityAugmentation):
    """A fault of a few slices across one axis, drawn again for each of them."""

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
