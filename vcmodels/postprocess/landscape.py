"""Landscapes whose basins are objects: low in the middle of objects, high on the boundaries.

The height adds what a boundary is predicted to be and how near a boundary is. A gap in a thin
boundary is closed by the second, for the passage through it is narrow; and a faint boundary across a
wide passage by the first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vcmodels.fields.distance import surface_distance, voxels_within
from vcmodels.fields.watershed import NOTHING, SEED
from vcmodels.geometry.boxes import Box, Spacing
from vcmodels.postprocess.site import Source

UNIT = 4096
"""How many steps of height make 1."""
_FLOOR = SEED + 1


class Landscape(Protocol):
    """Heights by box; picklable."""

    def heights(self, box: Box) -> np.ndarray:
        """(Z, Y, X) int32, 0 or more, `NOTHING` where there is no landscape.

        Args:
            box: of voxels of the volume.
        """
        ...


BlockValues = Callable[[Box], np.ndarray]
"""(Z, Y, X) float32 of a box, which may reach out of the volume, NaN where nothing is known;
picklable."""


@dataclass(frozen=True)
class OneChannel:
    """The values of a source, multiplied by a sign; a mask is 0 and 1."""

    source: Source
    within: Box
    sign: int = 1

    def __call__(self, box: Box) -> np.ndarray:
        values = self.source.read(box, self.within, "edge")[0]
        if values.dtype.kind != "f":  # a mask as it is stored
            values = (values != 0).astype(np.float32)
        return values if self.sign == 1 else -values


@dataclass(frozen=True)
class Boundaries:
    """Heights from 0 to 3 units: the probability of a boundary, and 0 to 2 by the distance to it.

    The distance is that to where the smoothed probability passes `threshold`, negative beyond. What
    is not known is a boundary to what is around it, and NaN itself.
    """

    probability: BlockValues
    threshold: float
    smooth: int
    reach: float
    """Distances count up to this, in the unit of the spacing."""
    spacing: Spacing

    def __call__(self, box: Box) -> np.ndarray:
        import torch

        margin = voxels_within(self.reach, self.spacing)
        wide = box.grow(margin)
        values, is_known = _smoothed_known(self.probability, wide, self.smooth, 1)
        inside = values < np.float32(self.threshold)
        sides = torch.from_numpy(inside.astype(np.float32))
        distance = surface_distance(sides[None], self.spacing, self.reach)[0].numpy()
        here = box.slices(wide)
        distance = np.where(inside[here], distance, -distance)
        heights = values[here] + (1 - distance / np.float32(self.reach))
        return np.where(is_known[here], heights, np.float32(np.nan))


@dataclass(frozen=True)
class Depths:
    """Heights from 0 to 2 units: the less, the deeper inside.

    What is not known is a surface to what is around it, and NaN itself.
    """

    distance: BlockValues
    """Positive inside."""
    smooth: int
    reach: float

    def __call__(self, box: Box) -> np.ndarray:
        values, is_known = _smoothed_known(self.distance, box, self.smooth, 0)
        heights = 1 - np.clip(values / np.float32(self.reach), -1, 1)
        return np.where(is_known, heights, np.float32(np.nan))


@dataclass(frozen=True)
class Above:
    """Where values reach a threshold; NaN never does."""

    values: BlockValues
    threshold: float

    def __call__(self, box: Box) -> np.ndarray:
        return self.values(box) >= np.float32(self.threshold)


@dataclass(frozen=True)
class Terrain:
    """A landscape of heights, where there is one and it is known, with seeds in it."""

    height: BlockValues
    where: Callable[[Box], np.ndarray] | None = None
    """(Z, Y, X) bool of a box: what belongs to the landscape; None: all."""
    seeds: Callable[[Box], np.ndarray] | None = None
    """(Z, Y, X) bool of a box: what is lowered to `SEED`."""

    def heights(self, box: Box) -> np.ndarray:
        values = self.height(box)
        is_unknown = np.isnan(values)
        steps = np.rint(np.where(is_unknown, 0, values) * np.float32(UNIT))
        heights = steps.astype(np.int32) + _FLOOR
        if self.seeds is not None:
            heights[self.seeds(box)] = SEED
        heights[is_unknown] = NOTHING
        if self.where is not None:
            heights[~self.where(box)] = NOTHING
        return heights


def _smoothed_known(
    read: BlockValues, box: Box, times: int, unknown: float
) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed values of a box, with a number in the place of NaN; and where there was none."""
    values = read(box.grow((times,) * 3))
    is_known = ~np.isnan(values)
    inside = tuple(slice(times, n - times) for n in values.shape)
    return smoothed(np.where(is_known, values, np.float32(unknown)), times), is_known[inside]


def smoothed(values: np.ndarray, times: int) -> np.ndarray:
    """Values smoothed by (1, 2, 1) / 4 along each axis, so many times.

    Args:
        values: (Z + 2 n, Y + 2 n, X + 2 n) float32, n being `times`.
        times: 0 or more.

    Returns:
        (Z, Y, X) float32; the same for a voxel whatever else is in the array.
    """
    for _ in range(times):
        for axis in range(3):
            n = values.shape[axis]
            before, here, after = (
                np.take(values, range(start, n - 2 + start), axis) for start in range(3)
            )
            values = (before + after) * np.float32(0.25) + here * np.float32(0.5)
    return values
