"""Changes of the image's values: noise, blur, brightness, contrast, gamma, resolution, blanks.

From albumentations come the two that are right for a float volume. Its other intensity transforms
either work slice by slice (blur, downscale) or fail on volumes (noise, brightness, contrast), so
those are a few lines of NumPy, SciPy and torch.
"""

import os
from collections.abc import Sequence
from math import exp, log
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from vcmodels.augment.base import (
    Amounts,
    Augmentation,
    Factors,
    Fractions,
    IntensityAugmentation,
    ordered,
)
from vcmodels.section import Fraction

if TYPE_CHECKING:
    from albumentations.core.transforms_interface import BasicTransform

Zoom = Annotated[float, Field(gt=0, le=1)]
Zooms = Annotated[tuple[Zoom, Zoom], AfterValidator(ordered)]
"""Lowest and highest part that is left, above 0."""
Count = Annotated[int, Field(ge=1, le=1000)]
Counts = Annotated[tuple[Count, Count], AfterValidator(ordered)]
"""Fewest and most."""


class Noise(IntensityAugmentation):
    """Add Gaussian noise."""

    name: Literal["noise"] = "noise"
    p: Fraction = 0.1
    deviation: Amounts = (0.0, 0.2)
    """Standard deviation of the noise, in units of the normalised image."""

    def change(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        deviation = np.float32(rng.uniform(*self.deviation))
        return image + deviation * rng.standard_normal(image.shape, dtype=np.float32)


class Blur(IntensityAugmentation):
    """Blur with a Gaussian, equally along all three axes."""

    name: Literal["blur"] = "blur"
    p: Fraction = 0.15
    sigma: Amounts = (0.5, 1.0)
    """Standard deviation of the Gaussian in voxels."""

    def change(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        sigma = rng.uniform(*self.sigma)
        return gaussian_filter(image, sigma, axes=(1, 2, 3), mode="nearest", truncate=3)


class Brightness(IntensityAugmentation):
    """Add one number to the image."""

    name: Literal["brightness"] = "brightness"
    p: Fraction = 0.15
    shift: Amounts = (0.0, 0.25)
    """Least and largest shift, up or down, in units of the normalised image."""

    def change(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        shift = rng.uniform(*self.shift) * rng.choice((-1, 1))
        return image + np.float32(shift)


class Contrast(IntensityAugmentation):
    """Stretch or squeeze the values of each channel about its mean."""

    name: Literal["contrast"] = "contrast"
    p: Fraction = 0.15
    factor: Factors = (0.75, 1.33)
    """Lowest and highest factor, drawn evenly on a log scale."""

    def change(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        factor = np.float32(_draw_factor(self.factor, rng))
        mean = image.mean(axis=(1, 2, 3), keepdims=True)
        return (image - mean) * factor + mean


class Gamma(IntensityAugmentation):
    """Raise the values, scaled to 0..1, to a power; mean and deviation of each channel are kept."""

    name: Literal["gamma"] = "gamma"
    p: Fraction = 0.3
    exponent: Factors = (0.7, 1.5)
    """Lowest and highest power, drawn evenly on a log scale."""
    invert: Fraction = 0.25
    """How often the negative of the image is treated, so that bright and dark change roles."""

    def change(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        exponent = _draw_factor(self.exponent, rng)
        sign = np.float32(-1 if rng.random() < self.invert else 1)
        over = (1, 2, 3)
        signed = image * sign
        low = signed.min(axis=over, keepdims=True)
        span = np.maximum(signed.max(axis=over, keepdims=True) - low, 1e-6)
        library = _albumentations()
        # Its unit is a hundredth; equal limits leave it nothing to draw.
        power = library.RandomGamma((100 * exponent, 100 * exponent), p=1)
        curved = _on_volume(power, (signed - low) / span, rng)
        mean, deviation = (
            curved.mean(axis=over, keepdims=True),
            curved.std(axis=over, keepdims=True),
        )
        scale = signed.std(axis=over, keepdims=True) / np.maximum(deviation, 1e-6)
        return ((curved - mean) * scale + signed.mean(axis=over, keepdims=True)) * sign


class LowResolution(IntensityAugmentation):
    """Simulate a coarser scan: pick every so many voxels, then interpolate linearly between."""

    name: Literal["low_resolution"] = "low_resolution"
    p: Fraction = 0.15
    zoom: Zooms = (0.5, 1.0)
    """Lowest and highest fraction of the resolution that is left."""

    def change(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        zoom = rng.uniform(*self.zoom)
        shape = image.shape[1:]
        coarse = [max(1, round(n * zoom)) for n in shape]
        batch = torch.tensor(image)[None]
        picked = F.interpolate(batch, size=coarse, mode="nearest-exact")
        return F.interpolate(picked, size=shape, mode="trilinear")[0].numpy()


class BlankBoxes(IntensityAugmentation):
    """Set boxes to 0, the mean of a normalised image, as missing chunks and occlusions are."""

    name: Literal["blank_boxes"] = "blank_boxes"
    p: Fraction = 0.1
    count: Counts = (1, 3)
    """Fewest and most boxes."""
    size: Fractions = (0.05, 0.25)
    """Shortest and longest side of a box, as a fraction of the patch along that axis."""

    def change(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        library = _albumentations()
        boxes = library.CoarseDropout3D(self.count, self.size, self.size, self.size, fill=0, p=1)
        return _on_volume(boxes, image, rng)


def apply_intensity(
    augmentations: Sequence[Augmentation], image: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Change the values of one image by the intensity augmentations in the list, in its order.

    Args:
        augmentations: the task's list; geometric ones are passed over.
        image: (C, Z, Y, X) float32, normalised. Never written to.
        rng: the only source of randomness.

    Returns:
        (C, Z, Y, X) float32; `image` itself when nothing was drawn.
    """
    for augmentation in augmentations:
        if isinstance(augmentation, IntensityAugmentation) and augmentation.happens(rng):
            image = augmentation.change(image, rng)
    return image


def _draw_factor(ends: tuple[float, float], rng: np.random.Generator) -> float:
    """A factor between two, evenly on a log scale: halving is as likely as doubling."""
    return exp(rng.uniform(log(ends[0]), log(ends[1])))


def _albumentations() -> Any:  # noqa: ANN401  a module
    """The library, imported at first use: it takes seconds and asks the network for updates."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def _on_volume(
    transform: "BasicTransform", image: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Run an albumentations transform on (C, Z, Y, X); its randomness comes from `rng` alone."""
    transform.set_random_state(rng, Random(int(rng.integers(2**63))))
    volume = np.ascontiguousarray(np.moveaxis(image, 0, -1))
    changed = transform(volume=volume)["volume"]
    return np.ascontiguousarray(np.moveaxis(changed, -1, 0), dtype=np.float32)
