"""The value transforms of a list, run in its order, and what they share.

All are plain torch, so that they run where the image is. Of albumentations 2.0.8's volume
transforms only `RandomGamma`, `CoarseDropout3D` and `ShotNoise` are neither slice by slice nor
broken; they take 1.2 (with two channels 5), 3 and 2 times as long as the few lines here, and
`ShotNoise` assumes sRGB.
"""

from collections.abc import Sequence
from math import exp, log

import numpy as np
import torch
from torch import Tensor

from vcmodels.augment.base import Augmentation, IntensityAugmentation

SMALLEST_SPAN = 1e-6
"""A channel whose values span less than this is constant."""


@torch.no_grad()
def apply_intensity(
    augmentations: Sequence[Augmentation], image: Tensor, rng: np.random.Generator
) -> Tensor:
    """Change the values of one image by the intensity augmentations in the list, in its order.

    Args:
        augmentations: the task's list; geometric ones are passed over.
        image: (C, Z, Y, X) float32, normalised, on any device. Never written to.
        rng: the only source of randomness.

    Returns:
        (C, Z, Y, X) float32; `image` itself when nothing was drawn.
    """
    for augmentation in augmentations:
        if isinstance(augmentation, IntensityAugmentation) and augmentation.happens(rng):
            if augmentation.per_channel and len(image) > 1:
                parts = [augmentation.change(channel[None], rng) for channel in image]
                image = torch.cat(parts)
            else:
                image = augmentation.change(image, rng)
    return image


def draw_factor(ends: tuple[float, float], rng: np.random.Generator) -> float:
    """A factor between two, evenly on a log scale: halving is as likely as doubling."""
    return exp(rng.uniform(log(ends[0]), log(ends[1])))


def draw_count(ends: tuple[int, int], rng: np.random.Generator) -> int:
    """A whole number from the first to the last, both included."""
    return int(rng.integers(ends[0], ends[1] + 1))


def value_range(image: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest value of each channel and its distance to the highest, at least `SMALLEST_SPAN`.

    (C, Z, Y, X) -> twice (C, 1, 1, 1).
    """
    # One by one: `aminmax` along a dimension takes 2 ms for 96^3 voxels on one core, this 0.1.
    ends = torch.stack([torch.stack(torch.aminmax(channel)) for channel in image])
    low, high = ends[..., None, None, None].unbind(1)
    return low, (high - low).clamp_min(SMALLEST_SPAN)
