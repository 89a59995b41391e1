"""Where voxels lie in their volume, as channels of an image."""

import numpy as np

from vcmodels.geometry.boxes import Box, Shape

COORDINATES = 3
"""Channels: along z, y and x."""


def coordinates(box: Box, extent: Shape) -> np.ndarray:
    """Positions of the voxels of a box in a volume, from -1 to 1 between its outer faces.

    Each value depends on the voxel alone, not on the box. Past the ends they go on beyond -1 and 1.

    Args:
        box: may reach out of the volume.
        extent: of the volume.

    Returns:
        (3, *box.shape) float32, along z, y and x: (index + 1/2) / extent * 2 - 1.
    """
    found = np.empty((COORDINATES, *box.shape), np.float32)
    for axis, (start, end, n) in enumerate(zip(box.origin, box.end, extent, strict=True)):
        along = (2 * np.arange(start, end) + 1) / n - 1
        found[axis] = along.reshape([-1 if a == axis else 1 for a in range(3)])
    return found


def with_coordinates(image: np.ndarray, channels: int, box: Box, extent: Shape) -> np.ndarray:
    """Images of a box, each followed by the coordinates of its voxels.

    Args:
        image: (N x channels, *box.shape) float32, of N images.
        channels: of each image.
        box: where they lie.
        extent: of the volume.

    Returns:
        (N x (channels + 3), *box.shape) float32.
    """
    places = coordinates(box, extent)
    firsts = range(0, len(image), channels)
    return np.concatenate([x for n in firsts for x in (image[n : n + channels], places)])
