"""Slices as patches: neighbouring ones as channels of the one that is predicted."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from vcmodels.augment.base import Axis
from vcmodels.errors import FaultError
from vcmodels.geometry.boxes import Box, Shape, triple
from vcmodels.geometry.coordinates import COORDINATES
from vcmodels.geometry.symmetries import AXES
from vcmodels.section import Section


def _around(offsets: tuple[int, ...]) -> tuple[int, ...]:
    if 0 not in offsets or any(a >= b for a, b in pairwise(offsets)):
        found = f"{list(offsets)} does not ascend, or lacks 0, the slice that is predicted"
        raise FaultError(found, "give each once, as in [-1, 0, 1]")
    return offsets


Offset = Annotated[int, Field(ge=-1024, le=1024)]
Offsets = Annotated[tuple[Offset, ...], Field(min_length=2, max_length=64), AfterValidator(_around)]


class SliceStack(Section):
    """`stack`: what the network sees of a slice besides the slice itself."""

    axis: Axis
    """Axis across the slices; it is also the `slice_axis`."""
    offsets: Offsets = (-1, 0, 1)
    """Which slices are channels, in steps from the one that is predicted, ascending. Past the first
    or last slice of what may be read, that one is taken again."""

    @property
    def number(self) -> int:
        """Of the axis among (z, y, x)."""
        return AXES.index(self.axis)

    @property
    def depth(self) -> int:
        """How many slices there are of each."""
        return len(self.offsets)

    @property
    def lowest(self) -> Shape:
        """Along (z, y, x), the least step from a patch to what is read for it; 0 or less."""
        return triple(self.offsets[0] if a == self.number else 0 for a in range(3))

    def span(self, patch: Shape) -> Shape:
        """The shape of what is read for a patch, far from any border."""
        width = self.offsets[-1] - self.offsets[0]
        return triple(n + width * (a == self.number) for a, n in enumerate(patch))

    def needed(self, box: Box, within: Box) -> Box:
        """What is read for a box one voxel thick, inside of `within` along the axis."""
        planes = self._planes(box, within)
        return box.cut(self.number, min(planes), max(planes) + 1)

    def reach(self, box: Box, within: Box) -> Box:
        """What is read for all slices of a box, inside of `within` along the axis."""
        a = self.number
        first = self.needed(box.cut(a, box.origin[a], box.origin[a] + 1), within)
        last = self.needed(box.cut(a, box.end[a] - 1, box.end[a]), within)
        return box.cut(a, first.origin[a], last.end[a])

    def stacked(self, image: np.ndarray, box: Box, within: Box) -> np.ndarray:
        """The slices of a box as channels.

        Args:
            image: (C, ...) of the shape of `needed(box, within)`.
            box: one voxel thick along the axis.
            within: what may be read.

        Returns:
            (C x depth, *box.shape), contiguous: for each channel its slices in the order of `offsets`.
        """
        planes = self._planes(box, within)
        places = [plane - min(planes) for plane in planes]
        beside = np.moveaxis(image.take(places, axis=1 + self.number), 1 + self.number, 1)
        return np.ascontiguousarray(beside).reshape(len(image) * self.depth, *box.shape)

    def _planes(self, box: Box, within: Box) -> Sequence[int]:
        """Positions along the axis of the slices, the nearest there is for those outside."""
        a = self.number
        assert box.shape[a] == 1, "a stack is of single slices"
        low, high = within.origin[a], within.end[a]
        return [min(max(box.origin[a] + offset, low), high - 1) for offset in self.offsets]


def depth_of(stack: SliceStack | None) -> int:
    """How many channels of a network each channel of an input becomes."""
    return 1 if stack is None else stack.depth


def network_channels(stored: int, stack: SliceStack | None, *, has_coordinates: bool) -> int:
    """Channels of a network whose inputs have `stored` channels together."""
    return stored * depth_of(stack) + COORDINATES * has_coordinates


def reach_of(stack: SliceStack | None, box: Box, within: Box) -> Box:
    """What is read for all patches of a box."""
    return box if stack is None else stack.reach(box, within)


def readers_of(stack: SliceStack | None, box: Box) -> Box:
    """The voxels for whose patches something of a box is read; some may lie outside of the volume."""
    if stack is None:
        return box
    a, offsets = stack.number, stack.offsets
    return box.cut(a, box.origin[a] - offsets[-1], box.end[a] - offsets[0])
