"""Which patch is drawn when: functions of (seed, draw number) alone.

Counter-based generators (Philox; Salmon et al. 2011, SC) need no state: draw k is the same in every
process, with any number of workers, and after any resume.
"""

from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache

import numpy as np

from vcmodels.geometry.boxes import Box


class Stream(IntEnum):
    """What random numbers are for; each purpose has its own."""

    ORDER = 0
    JITTER = 1
    SPACE = 2
    INTENSITY = 3


def generator(seed: int, number: int, stream: Stream) -> np.random.Generator:
    """The random numbers of one draw (or cycle) for one purpose."""
    # The last word of the counter keeps streams 2^192 blocks apart.
    return np.random.Generator(np.random.Philox(key=[seed, number], counter=[0, 0, 0, stream]))


def shuffled(items: Sequence[int], seed: int) -> list[int]:
    """The items in an order that depends on the seed alone."""
    return np.random.Generator(np.random.Philox(key=[seed, 3])).permutation(items).tolist()


class DrawOrder:
    """Which row of the patch list each draw takes; every row by its share in a cycle of draws.

    Of n rows with equal weights, a cycle of n draws is a permutation. Otherwise a row comes floor
    or ceil of its share `length` w / sum(w) times (systematic sampling), shuffled.

    Args:
        seed: of the run.
        weights: (n,) one per row, above 0 somewhere.
        length: draws in a cycle; n when None.
    """

    def __init__(self, seed: int, weights: np.ndarray, length: int | None = None) -> None:
        self.seed, self.weights, self.length = seed, weights, length or len(weights)
        # Float sums are not exact: equal weights must give each row exactly once.
        is_plain = np.ptp(weights) == 0 and self.length == len(weights)
        self._cumulative = None if is_plain else np.cumsum(weights) / weights.sum()
        self._cycle = lru_cache(maxsize=2)(self._make_cycle)

    def row(self, draw: int) -> int:
        """The row of a draw, counted from 0 without end."""
        cycle, position = divmod(draw, self.length)
        return int(self._cycle(cycle)[position])

    def _make_cycle(self, cycle: int) -> np.ndarray:
        rng = generator(self.seed, cycle, Stream.ORDER)
        if self._cumulative is None:
            return rng.permutation(self.length)
        ticks = (rng.random() + np.arange(self.length)) / self.length
        rows = np.searchsorted(self._cumulative, ticks, side="right")
        return rng.permutation(np.minimum(rows, len(self.weights) - 1))

    def __reduce__(self) -> tuple[type, tuple[int, np.ndarray, int]]:
        """Pickle what it is made from."""
        return type(self), (self.seed, self.weights, self.length)


def jittered(box: Box, region: Box, reach: Sequence[int], rng: np.random.Generator) -> Box:
    """Shift a patch at random by up to `reach` voxels along each axis, inside its region.

    Along an axis where the region is shorter than the patch, it stays.
    """
    drawn = rng.integers([-r for r in reach], [r + 1 for r in reach]).tolist()
    z, y, x = (
        o + (shift if n <= extent else 0)
        for o, shift, n, extent in zip(box.origin, drawn, box.shape, region.shape, strict=True)
    )
    return pushed_inside(Box((z, y, x), box.shape), region)


def pushed_inside(box: Box, region: Box) -> Box:
    """The box moved as little as needed to lie in the region, along the axes where it fits."""
    z, y, x = (
        min(max(o, low), low + extent - n) if n <= extent else o
        for o, n, low, extent in zip(
            box.origin, box.shape, region.origin, region.shape, strict=True
        )
    )
    return Box((z, y, x), box.shape)
