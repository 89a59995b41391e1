"""Changes of values: brightness, contrast, gamma, histogram, noise, blur, sharpness, resolution."""

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn import functional as F

from vcmodels.augment.apply import SMALLEST_SPAN, draw_count, draw_factor, value_range
from vcmodels.augment.base import (
    Amounts,
    Counts,
    Factors,
    Fractions,
    IntensityAugmentation,
    ordered,
)
from vcmodels.augment.geometric import Axes
from vcmodels.augment.resample import gaussian
from vcmodels.geometry.symmetries import AXES
from vcmodels.section import Fraction

TABLE = 1024
"""Pieces of the histogram's curve; between them it is straight."""


class Brightness(IntensityAugmentation):
    """Add one number to the image."""

    name: Literal["brightness"] = "brightness"
    p: Fraction = 0.15
    shift: Amounts = (0.0, 0.25)
    """Least and largest shift, up or down, in units of the normalised image."""

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        shift = rng.uniform(*self.shift) * rng.choice((-1, 1))
        return image + shift


class Contrast(IntensityAugmentation):
    """Stretch or squeeze the values of each channel about its mean."""

    name: Literal["contrast"] = "contrast"
    p: Fraction = 0.15
    factor: Factors = (0.75, 1.33)
    """Lowest and highest factor, drawn evenly on a log scale."""

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        factor = draw_factor(self.factor, rng)
        mean = image.mean((1, 2, 3), keepdim=True)
        return torch.lerp(mean, image, factor)


class Gamma(IntensityAugmentation):
    """Raise the values, scaled to 0..1, to a power; mean and deviation of each channel are kept."""

    name: Literal["gamma"] = "gamma"
    p: Fraction = 0.3
    exponent: Factors = (0.7, 1.5)
    """Lowest and highest power, drawn evenly on a log scale."""
    invert: Fraction = 0.25
    """How often the negative of the image is treated, so that bright and dark change roles."""

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        exponent = draw_factor(self.exponent, rng)
        sign = -1.0 if rng.random() < self.invert else 1.0
        low, span = value_range(image)
        start = low if sign > 0 else low + span
        # Rounding may leave the lowest voxel just below 0, whose power is NaN.
        changed = ((image - start) * (sign / span)).clamp_min_(0).pow_(exponent)
        (spread, middle), (wanted, mean) = (_moments(values) for values in (changed, image))
        scale = sign * wanted / spread.clamp_min(SMALLEST_SPAN)
        return changed.sub_(middle).mul_(scale).add_(mean)


class HistogramShift(IntensityAugmentation):
    """Bend the histogram: map the values of each channel by a random curve that keeps their order.

    Evenly spaced control points between the lowest and the highest value are moved, and joined by a
    monotone cubic (Fritsch and Carlson 1980; MONAI's `RandHistogramShift` joins by lines).
    """

    name: Literal["histogram_shift"] = "histogram_shift"
    p: Fraction = 0.1
    points: Counts = (3, 8)
    """Fewest and most control points between the ends, which stay."""
    strength: Fractions = (0.2, 0.8)
    """How far they move at most, as a fraction of half their distance."""

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        curve = self._curve(rng)
        slope = torch.from_numpy(np.diff(curve, append=curve[-1])).to(image.device)
        low, span = value_range(image)
        place = (image - low) * (TABLE / span)
        piece = place.int().clamp_(0, TABLE)
        start = torch.from_numpy(curve).to(image.device)[piece]
        return slope[piece].mul_(place.sub_(piece)).add_(start).mul_(span).add_(low)

    def _curve(self, rng: np.random.Generator) -> np.ndarray:
        """The curve from 0 to 1 at `TABLE + 1` even places, float32."""
        from scipy.interpolate import PchipInterpolator  # late: it takes 0.3 s of every start

        inner = draw_count(self.points, rng)
        places = np.linspace(0, 1, inner + 2)
        reach = rng.uniform(*self.strength) / (2 * (inner + 1))
        moved = places.copy()
        moved[1:-1] += rng.uniform(-reach, reach, inner)
        return PchipInterpolator(places, moved)(np.linspace(0, 1, TABLE + 1)).astype(np.float32)


def _moments(image: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean of each channel: (C, Z, Y, X) -> twice (C, 1, 1, 1).

    `torch.std_mean` takes 5 ms for 96^3 voxels on one core, this 0.5.
    """
    mean = image.mean((1, 2, 3), keepdim=True)
    return (image - mean).square_().mean((1, 2, 3), keepdim=True).sqrt_(), mean


Dose = Annotated[float, Field(ge=1, le=1e9)]
Doses = Annotated[tuple[Dose, Dose], AfterValidator(ordered)]
"""Lowest and highest count, at least 1."""


class Noise(IntensityAugmentation):
    """Add Gaussian noise."""

    name: Literal["noise"] = "noise"
    p: Fraction = 0.1
    deviation: Amounts = (0.0, 0.2)
    """Standard deviation of the noise, in units of the normalised image."""

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        noise = white(image, rng)
        return noise.mul_(rng.uniform(*self.deviation)).add_(image)


class ShotNoise(IntensityAugmentation):
    """Count photons or electrons: Poisson noise, stronger where the image is brighter.

    The darkest voxel of a channel stands for none, the brightest for `counts`. Each count is drawn
    exactly, which takes 45 ms for 96^3 voxels on one core.
    """

    name: Literal["shot_noise"] = "shot_noise"
    p: Fraction = 0.1
    counts: Doses = (100.0, 2000.0)
    """Fewest and most counts at the brightest voxel, drawn evenly on a log scale; fewer are noisier."""

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        low, span = value_range(image)
        step = span / draw_factor(self.counts, rng)
        expected = ((image - low) / step).clamp_min_(0)
        # NumPy's: torch's counts differ from device to device.
        drawn = torch.from_numpy(rng.poisson(expected.cpu().numpy()))
        return drawn.to(image).mul_(step).add_(low)


class Speckle(IntensityAugmentation):
    """Multiply by Gaussian noise about 1: stronger where the image is brighter.

    The factor acts on the height above the darkest voxel of the channel, which stays as it is.
    """

    name: Literal["speckle"] = "speckle"
    p: Fraction = 0.1
    deviation: Amounts = (0.0, 0.05)
    """Standard deviation of the factor; 0.05 is a twentieth of the height."""

    def change(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        noise = white(image, rng).mul_(rng.uniform(*self.deviation))
        lowest = image.amin((1, 2, 3), keepdim=True)
        return noise.mul_(image - lowest).add_(image)


def white(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Standard normal float32 noise of the image's shape, on its device.

    Drawn on the CPU, so that it is the same on every device: 3 ms for 96^3 on one core (NumPy: 8).
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    return torch.empty(image.shape).normal_(generator=generator).to(image.device)


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
