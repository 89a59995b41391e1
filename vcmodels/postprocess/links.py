"""Affinities by what they link: voxels that are near each other, or far apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vcmodels.fields.instances import Offset, longest_offset
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.postprocess.landscape import BlockValues
from vcmodels.postprocess.site import Source


@dataclass(frozen=True)
class LinkChannels:
    """The channels of affinities, by what they link; NaN counts as 0."""

    source: Source
    within: Box
    near: int
    """In voxels: offsets up to this are short."""

    @cached_property
    def offsets(self) -> Sequence[Offset]:
        """Of all channels, from a voxel to its partner."""
        return [(z, y, x) for z, y, x in self.source.encoding["offsets"]]

    @cached_property
    def short(self) -> Sequence[int]:
        """The channels of offsets of at most `near` voxels along each axis."""
        return [c for c, offset in enumerate(self.offsets) if max(map(abs, offset)) <= self.near]

    @cached_property
    def far(self) -> Sequence[int]:
        """The other channels."""
        return [c for c in range(len(self.offsets)) if c not in self.short]

    @property
    def axes(self) -> set[int]:
        """The axes along which there is an affinity to the next voxel."""
        steps = [offset for offset in self.offsets if sum(map(abs, offset)) == 1]
        return {axis for step in steps for axis in range(3) if step[axis]}

    @property
    def reach(self) -> Shape:
        """How far the longest offset goes along (z, y, x)."""
        return longest_offset(self.offsets)

    def whole_numbers(self, box: Box, full: int) -> np.ndarray:
        """(C, Z, Y, X) int64 of all channels of a box: the affinities in steps of 1 / `full`."""
        values = _without_nan(self.source.read(box, self.within))
        return np.rint(values * np.float32(full)).astype(np.int64)

    def _read_around(self, box: Box) -> tuple[Box, np.ndarray]:
        """A box and what short offsets reach from it: (C, Z, Y, X) float32, as stored."""
        around = box.grow(longest_offset([self.offsets[c] for c in self.short]))
        return around, self.source.read(around, self.within, "zero")

    def _sides(
        self, box: Box, around: Box, values: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each partner at a short offset: (Z, Y, X) float32, and where there is one."""
        values = _without_nan(values)
        for channel in self.short:
            step = self.offsets[channel]
            back = _opposite(step)
            # That of a voxel is with its partner; the partner on the other side holds its own.
            for holder, partner in (((0, 0, 0), step), (back, back)):
                held = values[channel][moved(box, holder).slices(around)]
                there = moved(box, partner).intersect(self.within)
                exists = np.zeros(box.shape, bool)
                exists[moved(there, _opposite(partner)).slices(box)] = True
                yield held, exists

    def mean(self, box: Box) -> np.ndarray:
        """(Z, Y, X) float32: the mean affinity of each voxel to its partners at short offsets.

        NaN where all that the voxel itself holds over short offsets is NaN.
        """
        total, count = np.zeros(box.shape, np.float32), np.zeros(box.shape, np.float32)
        around, values = self._read_around(box)
        for held, exists in self._sides(box, around, values):
            total += np.where(exists, held, 0)
            count += exists
        own = values[(self.short, *box.slices(around))]
        unknown = np.isnan(own).all(axis=0)
        return np.where(unknown, np.float32(np.nan), total / np.maximum(count, 1))

    def largest(self, box: Box) -> np.ndarray:
        """(Z, Y, X) float32: the largest of those affinities; 0 without any."""
        best = np.zeros(box.shape, np.float32)
        for held, exists in self._sides(box, *self._read_around(box)):
            np.maximum(best, held, out=best, where=exists)
        return best


def _without_nan(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), np.float32(0), values)


def _opposite(offset: Offset) -> Offset:
    z, y, x = offset
    return -z, -y, -x


def moved(box: Box, offset: Offset) -> Box:
    """A box some voxels further."""
    z, y, x = (o + step for o, step in zip(box.origin, offset, strict=True))
    return Box((z, y, x), box.shape)


@dataclass(frozen=True)
class NearBoundary:
    """Probabilities of boundaries: 1 minus the mean affinity of a voxel over short offsets."""

    links: LinkChannels

    def __call__(self, box: Box) -> np.ndarray:
        """(Z, Y, X) float32 of a box; what is beyond the volume is as its last voxels are."""
        inside = box.intersect(self.links.within)
        pairs = zip(inside.origin, box.origin, box.end, inside.end, strict=True)
        return np.pad(1 - self.links.mean(inside), [(a - b, c - d) for a, b, c, d in pairs], "edge")


@dataclass(frozen=True)
class Foreground:
    """Where a voxel has some affinity over a short offset, and a mask is true if there is one."""

    links: LinkChannels
    background: float | None
    mask: BlockValues | None

    def __call__(self, box: Box) -> np.ndarray:
        """(Z, Y, X) bool of a box of the volume."""
        found = np.ones(box.shape, bool)
        if self.background is not None:
            found &= self.links.largest(box) >= np.float32(self.background)
        if self.mask is not None:
            found &= self.mask(box) >= np.float32(0.5)
        return found
