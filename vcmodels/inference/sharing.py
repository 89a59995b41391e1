"""One volume for several workers: each gets a box of its own, of about equal work."""

from dataclasses import dataclass

import numpy as np

from vcmodels.geometry.blocks import BoxSet, aligned
from vcmodels.geometry.boxes import Box, Shape


@dataclass(frozen=True)
class Part:
    """One of so many workers that share a volume."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"part {self.index}/{self.count}: give 0/n to n-1/n")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Part(0, 1)


def share(region: Box, wanted: BoxSet, block: Shape, extent: Shape, part: Part) -> Box:
    """What of the region one worker predicts; a function of its arguments alone.

    The region is halved along its longest axis, between two layers of blocks, where the wanted
    voxels divide as the workers do; then the halves are, until each worker has its box. A box of one
    block cannot be halved: the other worker gets an empty one.
    """
    first, count = part.index, part.count
    while count > 1:
        left = count // 2
        low, high = _halves(region, wanted.within(region), block, extent, left / count)
        region, first, count = (
            (low, first, left) if first < left else (high, first - left, count - left)
        )
    return region


def _halves(
    region: Box, wanted: BoxSet, block: Shape, extent: Shape, fraction: float
) -> tuple[Box, Box]:
    span = aligned(region, block, extent) if region.voxels else region
    layers = [-(-n // b) for n, b in zip(span.shape, block, strict=True)]
    if max(layers) < 2:
        return region, Box(region.origin, (0, 0, 0))
    axis = max((a for a in range(3) if layers[a] > 1), key=lambda a: span.shape[a])
    edges = span.origin[axis] + block[axis] * np.arange(layers[axis] + 1)
    # Wanted voxels before each edge; boxes may overlap, which only makes the halves less equal.
    lengths = wanted.bounds[:, 1] - wanted.bounds[:, 0]
    before = np.clip(edges[:, None] - wanted.bounds[:, 0, axis], 0, lengths[:, axis])
    work = before @ (lengths.prod(axis=1) // np.maximum(lengths[:, axis], 1))
    cut = int(edges[1 + np.abs(work[1:-1] - fraction * work[-1]).argmin()])
    low_end, high_start = list(region.end), list(region.origin)
    low_end[axis] = high_start[axis] = cut
    return Box.between(region.origin, low_end), Box.between(high_start, region.end)
