"""Noise: of electronics (Gaussian), of counting (Poisson), of coherent light and sound (speckle)."""

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from vcmodels.augment.base import Amounts, IntensityAugmentation, ordered
from vcmodels.augment.intensity import draw_factor, value_range
from vcmodels.section import Fraction

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
