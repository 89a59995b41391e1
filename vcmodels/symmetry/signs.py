"""Whether an image tells a vector from its opposite, and whether a common direction does.

Around a voxel with a vector the image is read on rings across it, ahead and behind. What differs
between ahead and behind, for a mean over many voxels, changes its sign with the vector: where no
test tells it from its opposite, the image looks alike from both sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vcmodels.geometry.boxes import Spacing
from vcmodels.geometry.symmetries import Symmetry

STEPS = (1, 2, 3, 4, 6, 8)
"""How far ahead and behind, in lengths of the shortest side of a voxel."""
RADII = (0.0, 3.0, 6.0)
"""Of the rings, in the same lengths. A sheet that is bent leaves the plane of a wide one."""
ANGLES = 6
"""Places on a ring."""
MOST_VOXELS = 48
"""Looked at in a window."""
BORDER = 6
"""Voxels of a window, at each end of an axis, in which no vector is looked at."""


@dataclass(frozen=True)
class Directions:
    """Of the vectors in a window."""

    sides: Tensor
    """(C * steps * radii,) float32: how the image ahead differs from that behind."""
    vectors: Tensor
    """(n, 3) float32 unit vectors (z, y, x)."""


def directions(
    image: Tensor, vectors: Tensor, counts: Tensor, spacing: Spacing, rng: np.random.Generator
) -> Directions | None:
    """Look at some vectors of a window, and at the image on both sides of each.

    Args:
        image: (C, Z, Y, X) float32.
        vectors: (3, Z, Y, X) float32, components (z, y, x) in physical units.
        counts: (Z, Y, X) bool, where they mean something; zero vectors never do.
        spacing: length of a voxel along (z, y, x).
        rng: chooses the voxels.

    Returns:
        None where no vector counts.
    """
    inner = torch.zeros_like(counts)
    border = [min(BORDER, n // 4) for n in counts.shape]
    inner[tuple(slice(b, n - b) for b, n in zip(border, counts.shape, strict=True))] = True
    places = (counts & inner & (vectors != 0).any(0)).nonzero().numpy()
    if not len(places):
        return None
    places = places[rng.permutation(len(places))[:MOST_VOXELS]]
    chosen = vectors[:, *places.T].numpy().T.astype(np.float64)
    units = chosen / np.linalg.norm(chosen, axis=1, keepdims=True)
    sides = both_sides(image.numpy(), places, units, spacing).mean(0)
    return Directions(torch.from_numpy(sides).float(), torch.from_numpy(units).float())


def both_sides(
    image: np.ndarray, places: np.ndarray, units: np.ndarray, spacing: Spacing
) -> np.ndarray:
    """The image ahead less that behind, on rings across each vector.

    Args:
        image: (C, Z, Y, X).
        places: (n, 3) voxels.
        units: (n, 3) unit vectors in physical units.
        spacing: length of a voxel along (z, y, x).

    Returns:
        (n, C * steps * radii): turned about, a vector gives the opposite numbers.
    """
    from scipy.ndimage import map_coordinates  # late: `check` needs no more than what is stored

    one, other = _across(units)
    angle = np.arange(ANGLES) * (2 * np.pi / ANGLES)
    ring = np.cos(angle)[:, None] * one[:, None] + np.sin(angle)[:, None] * other[:, None]
    steps = np.array([*STEPS, *(-step for step in STEPS)])
    # (n, steps, radii, angles, 3), in shortest sides of a voxel; then in voxels.
    offset = (
        steps[:, None, None, None] * units[:, None, None, None]
        + np.array(RADII)[:, None, None] * ring[:, None, None]
    )
    at = places[:, None, None, None] + offset * (min(spacing) / np.asarray(spacing))
    read = [map_coordinates(c, np.moveaxis(at, -1, 0), order=1, mode="nearest") for c in image]
    means = np.stack(read, 1).mean(-1)
    ahead, behind = np.split(means, 2, axis=2)
    return (ahead - behind).reshape(len(places), -1)


def _across(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors across each of some (n, 3), and across each other."""
    helper = np.eye(3)[np.abs(units).argmin(1)]
    one = np.cross(units, helper)
    one /= np.linalg.norm(one, axis=1, keepdims=True)
    return one, np.cross(units, one)


def share_along(vectors: Tensor, group: Sequence[Symmetry]) -> float:
    """Share of vectors (n, 3) that point the way which all symmetries of a group leave as it is.

    That way is the mean vector, averaged over the group; 0.5, a toss, where nothing is left of it.
    """
    mean = vectors.mean(0)
    turned = [mean @ torch.as_tensor(one.matrix, dtype=torch.float32) for one in group]
    way = torch.stack(turned).mean(0)
    if float(way.norm()) < 1e-3:
        return 0.5
    return float((vectors @ way > 0).float().mean())
