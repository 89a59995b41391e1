"""Blur, sharpening and a coarser scan: changes of what the image resolves."""

from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn import functional as F

from vcmodels.augment.base import Amounts, IntensityAugmentation, ordered
from vcmodels.augment.exact import AXES, Axes
from vcmodels.augment.filters import gaussian
from vcmodels.section import Fraction

Sigma = Annotated[float, Field(ge=0, le=16)]
Sigmas = Annotated[tuple[Sigma, Sigma], AfterValidator(ordered)]
"""Smallest and largest standard deviation of a Gaussian, in voxels."""
Zoom = Annotated[float, Field(gt=0, le=1)]
Zooms = Annotated[tuple[Zoom, Zoom], AfterValidator(ordered)]
"""Lowest and highest part that is left, above 0."""


class Blur(IntensityAugmentation):
    """Blur with a Gaussian."""

    name: Literal["blur"] = "blur"
    p: Fraction = 0.15
    sigma: Sigmas = (0.5, 1.0)
    """Standard deviation of the Gaussian in voxels."""
    per_axis: bool = False
    """Draw it for each axis on its own."""
    axes: Axes = ("z", "y", "x")
    """Axes that are blurred."""

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        sigmas = rng.uniform(*self.sigma, size=3 if self.per_axis else 1)
        chosen = [axis in self.axes for axis in AXES]
        z, y, x = np.where(chosen, sigmas, 0.0).tolist()
        return gaussian(image, (z, y, x))


class Sharpen(IntensityAugmentation):
    """Add the difference from a blurred copy (unsharp mask), as many reconstructions do."""

    name: Literal["sharpen"] = "sharpen"
    p: Fraction = 0.1
    amount: Amounts = (0.2, 1.0)
    """How many times the difference is added."""
    sigma: Sigmas = (0.5, 1.5)
    """Standard deviation of the blur in voxels."""

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        amount, sigma = rng.uniform(*self.amount), rng.uniform(*self.sigma)
        return gaussian(image, (sigma, sigma, sigma)).lerp_(image, 1 + amount)


class LowResolution(IntensityAugmentation):
    """Simulate a coarser scan, then interpolate linearly between its voxels.

    Thick slices are `"axes": ["z"], "take": "mean"`, with a lower `zoom`.
    """

    name: Literal["low_resolution"] = "low_resolution"
    p: Fraction = 0.15
    zoom: Zooms = (0.5, 1.0)
    """Lowest and highest fraction of the resolution that is left."""
    axes: Axes = ("z", "y", "x")
    """Axes that lose resolution."""
    one_axis: bool = False
    """Only one of them does, drawn at random."""
    take: Literal["nearest", "mean"] = "nearest"
    """What a coarse voxel holds: the `nearest` voxel's value, noise and all, or the `mean` of those
    that it covers."""

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        zoom = rng.uniform(*self.zoom)
        axes = (self.axes[rng.integers(len(self.axes))],) if self.one_axis else self.axes
        shape = image.shape[1:]
        coarse = [
            max(1, round(n * zoom)) if axis in axes else n
            for axis, n in zip(AXES, shape, strict=True)
        ]
        mode = "area" if self.take == "mean" else "nearest-exact"
        picked = F.interpolate(image[None], size=coarse, mode=mode)
        return F.interpolate(picked, size=shape, mode="trilinear")[0]
