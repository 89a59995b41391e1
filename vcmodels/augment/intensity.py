"""The value transforms of a list, run in its order, and what they share.

All are plain NumPy and torch. Of albumentations 2.0.8's volume transforms only `RandomGamma`,
`CoarseDropout3D` and `ShotNoise` are neither slice by slice nor broken; they take 1.2 (with two
channels 5), 3 and 2 times as long as the few lines here, and `ShotNoise` assumes sRGB.
"""

from collections.abc import Sequence
from math import exp, log

import numpy as np

from vcmodels.augment.base import Augmentation, IntensityAugmentation

SMALLEST_SPAN = 1e-6
"""A channel whose values span less than this is constant."""


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
            if augmentation.per_channel and len(image) > 1:
                parts = [augmentation.change(channel[None], rng) for channel in image]
                image = np.concatenate(parts)
            else:
                image = augmentation.change(image, rng)
    return image


def draw_factor(ends: tuple[float, float], rng: np.random.Generator) -> float:
    """A factor between two, evenly on a log scale: halving is as likely as doubling."""
    return exp(rng.uniform(log(ends[0]), log(ends[1])))


def draw_count(ends: tuple[int, int], rng: np.random.Generator) -> int:
    """A whole number from the first to the last, both included."""
    return int(rng.integers(ends[0], ends[1] + 1))


def value_range(channel: np.ndarray) -> tuple[float, float]:
    """The lowest value of a channel and its distance to the highest, at least `SMALLEST_SPAN`."""
    low = float(channel.min())
    return low, max(float(channel.max()) - low, SMALLEST_SPAN)
