"""What is neither read nor predicted: chunks that are not stored, and what a mask excludes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vcmodels.config import Skip
from vcmodels.errors import VolumeError
from vcmodels.geometry.blocks import BoxSet
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.volumes import Volume, expand_location, open_volume

KEY = "inference_params.skip.mask"


def wanted_boxes(inputs: Sequence[Volume], region: Box, skip: Skip, mask: "Mask | None") -> BoxSet:
    """The voxels of a region that may get a prediction, as boxes, which may overlap."""
    is_dense = any(volume.missing_blocks() == 0 for volume in inputs)
    if is_dense or not skip.fill:
        wanted = BoxSet.of([region])
    else:
        wanted = BoxSet.of(
            box.intersect(region) for volume in inputs for box in volume.stored_blocks(region)
        )
    if mask is None:
        return wanted
    return BoxSet.of(part for box in mask.boxes() for part in wanted.within(box))


@dataclass(frozen=True)
class Mask:
    """A volume that is 0 where no prediction is wanted."""

    volume: Volume
    factor: Shape
    """Voxels of the input, along (z, y, x), for each of its own."""
    extent: Shape
    """Of the input."""

    def read(self, box: Box) -> np.ndarray:
        """(1, *box.shape) bool: where a prediction is wanted. `box` lies in the input."""
        coarse = self._coarse(box)
        allowed = self.volume.read(coarse)[0] != 0
        for axis, (start, end) in enumerate(zip(box.origin, box.end, strict=True)):
            allowed = allowed.take(
                np.arange(start, end) // self.factor[axis] - coarse.origin[axis], axis
            )
        return allowed[None]

    def boxes(self) -> list[Box]:
        """Boxes of the input around what is not 0, one for each chunk that holds any."""
        found: list[Box] = []
        for block in self.volume.stored_blocks():
            places = self.volume.read(block)[0].nonzero()
            if len(places[0]):
                low = [o + int(p.min()) for o, p in zip(block.origin, places, strict=True)]
                high = [o + int(p.max()) + 1 for o, p in zip(block.origin, places, strict=True)]
                found.append(self._fine(Box.between(low, high)))
        return found

    def _coarse(self, box: Box) -> Box:
        return Box.between(
            [o // f for o, f in zip(box.origin, self.factor, strict=True)],
            [-(-e // f) for e, f in zip(box.end, self.factor, strict=True)],
        )

    def _fine(self, box: Box) -> Box:
        return Box.between(
            [o * f for o, f in zip(box.origin, self.factor, strict=True)],
            [min(e * f, n) for e, f, n in zip(box.end, self.factor, self.extent, strict=True)],
        )


def open_mask(skip: Skip, extent: Shape) -> Mask | None:
    """The mask that a task names.

    Raises:
        VolumeError: it does not exist, or its shape is not the input's divided by whole factors.
    """
    if skip.mask is None:
        return None
    volume = open_volume(expand_location(skip.mask), key=KEY)
    z, y, x = (max(1, round(n / m)) for n, m in zip(extent, volume.extent, strict=True))
    if tuple(-(-n // f) for n, f in zip(extent, (z, y, x), strict=True)) != volume.extent:
        found = f"has shape {volume.extent}, the input {extent}"
        raise VolumeError(KEY, found, "give one of the same shape, or coarser by whole factors")
    return Mask(volume, (z, y, x), extent)
