"""Blending weights of overlapping patches, normalised in closed form along each axis.

The weight of a patch at a voxel is the product of three axis weights. Along one axis the weights of
all patches that cover a voxel sum to 1, so their products do so in the volume: no weight volume, no
division and no epsilon, and a corner that one patch alone covers has weight exactly 1.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FLOOR = 1e-3
"""Least raw weight over the greatest. It never shows where patches overlap well, and keeps the
quotient sound at the rim: nnU-Net's gaussian reaches 4e-11 there and loses corners to rounding."""


def raw_window(patch: int) -> npt.NDArray[np.float64]:
    """Hann window without its end points, raised by `FLOOR`: (patch,) float64, all positive."""
    phase = (np.arange(patch) + 0.5) / patch
    return FLOOR + (1 - FLOOR) * np.sin(np.pi * phase) ** 2


def axis_weights(origins: Sequence[int], patch: int) -> npt.NDArray[np.float32]:
    """Weights along one axis of every patch on it.

    Args:
        origins: as from `patch_origins`: ascending, without a gap between patches.
        patch: length of a patch.

    Returns:
        (len(origins), patch) float32 in (0, 1]; at each voxel those of the patches that cover it
        sum to 1, up to one rounding each.
    """
    window = raw_window(patch)
    first = origins[0]
    total = np.zeros(origins[-1] + patch - first)
    for origin in origins:
        total[origin - first : origin - first + patch] += window
    covered = np.asarray(origins)[:, None] - first + np.arange(patch)
    return (window / total[covered]).astype(np.float32)
