"""Curves that map values to values: brightness, contrast, gamma, histogram."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vcmodels.augment.base import Amounts, Counts, Factors, Fractions, IntensityAugmentation
from vcmodels.augment.intensity import SMALLEST_SPAN, draw_count, draw_factor, value_range
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
