"""What the values of a channel are like: mean, spread, extremes and percentiles.

Which voxels count depends on values alone, so that a volume that is mostly empty is not measured
by its emptiness, stored or not:

- Void does not count: blocks of 16 voxels a side that hold one value only, the one that most such
  blocks hold. Where nothing else is found, it does. The extremes are of all voxels.
- Of what is left, a value that more than nine tenths of the voxels have does not count, nor one
  that both percentiles fall on; then the percentiles are those of the rest, and the range between
  them is widened to reach that value.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 16
SAMPLED_VALUES = 1 << 20  # per channel, for the percentiles
DOMINANT = 0.9


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """What the schemes need to know of one channel, in stored units."""

    mean: float
    sd: float
    minimum: float
    maximum: float
    low: float
    """The low percentile, 0.5 unless the task says otherwise."""
    high: float
    """The high percentile."""
    clipped_mean: float
    """Mean of the values clipped to [low, high]."""
    clipped_sd: float
    background: float | None = None
    """The value that does not count because too many voxels have it."""

    @property
    def is_constant(self) -> bool:
        """Whether there is but one value, so that nothing can be scaled."""
        return self.minimum == self.maximum


VolumeStatistics = tuple[ChannelStatistics, ...]


class Accumulator:
    """Mean and spread of a stream in one pass (Chan, Golub and LeVeque 1979), and a sample."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self.minimum, self.maximum = np.inf, -np.inf
        self.sample: list[np.ndarray] = []
        self.blocks: dict[float, int] = {}
        """How many voxels lie in blocks of one value, by that value."""

    @classmethod
    def joint(cls, parts: Sequence["Accumulator"]) -> "Accumulator":
        """One for the values of all."""
        whole = cls()
        for part in parts:
            whole.merge(part.count, part.mean, part.squares, (part.minimum, part.maximum))
            whole.sample += part.sample
            for value, count in part.blocks.items():
                whole.add_block(value, count)
        return whole

    def add(self, values: np.ndarray, step: int) -> None:
        """Count values, and keep every `step`-th for the percentiles."""
        mean = float(values.mean(dtype=np.float64))
        squares = float(values.var(dtype=np.float64)) * values.size
        self.merge(values.size, mean, squares, (float(values.min()), float(values.max())))
        self.sample.append(values.reshape(-1)[::step].astype(np.float64))

    def add_block(self, value: float, count: int) -> None:
        """Count the voxels of a block of one value, which may be void."""
        self.blocks[value] = self.blocks.get(value, 0) + count

    def add_image(self, image: np.ndarray, origin: Sequence[int], step: int) -> None:
        """Count (Z, Y, X) values that begin at `origin` of a volume, blocks of one value apart."""
        edges = [_edges(start, n) for start, n in zip(origin, image.shape, strict=True)]
        low, high = (_reduced(how, image, edges) for how in (np.minimum, np.maximum))
        is_flat = low == high
        if not is_flat.any():
            self.add(image, step)
            return
        sizes = [np.diff([*e, n]) for e, n in zip(edges, image.shape, strict=True)]
        voxels = sizes[0][:, None, None] * sizes[1][:, None] * sizes[2]
        for value in np.unique(low[is_flat]).tolist():
            self.add_block(float(value), int(voxels[is_flat & (low == value)].sum()))
        mask = ~is_flat
        for axis, lengths in enumerate(sizes):
            mask = mask.repeat(lengths, axis)
        if mask.any():
            self.add(image[mask], step)

    def thin(self, most: int) -> None:
        """Keep about so many values of the sample."""
        whole = np.concatenate(self.sample) if self.sample else np.zeros(0)
        self.sample = [whole[:: max(len(whole) // most, 1) | 1]]

    def statistics(
        self, percentiles: tuple[float, float], dominant: float = DOMINANT
    ) -> ChannelStatistics:
        """What the schemes need; see the module for the voxels that count."""
        if not self.count and not self.blocks:
            self.add_block(0.0, 1)
        counted, ends = self._counted()
        sample = np.concatenate(counted.sample)
        low, high = np.percentile(sample, percentiles).tolist()
        common = low if low == high else float(np.median(sample))
        rest = sample[sample != common]
        mean, sd, background = counted.mean, (counted.squares / counted.count) ** 0.5, None
        if (low == high or len(rest) < (1 - dominant) * len(sample)) and ends[0] < ends[1]:
            first, last = np.percentile(rest, percentiles) if len(rest) else ends
            low, high = min(float(first), common), max(float(last), common)
            if len(rest) and rest.min() < rest.max():
                background, sample = common, rest
                mean, sd = float(rest.mean()), float(rest.std())
        clipped = sample.clip(low, high)
        middle, spread = float(clipped.mean()), float(clipped.std())
        return ChannelStatistics(mean, sd, *ends, low, high, middle, spread, background)

    def merge(self, count: int, mean: float, squares: float, ends: tuple[float, float]) -> None:
        """Add values that were counted elsewhere."""
        if not count:
            return
        shift, total = mean - self.mean, self.count + count
        self.squares += squares + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total
        self.minimum, self.maximum = min(self.minimum, ends[0]), max(self.maximum, ends[1])

    def _counted(self) -> tuple["Accumulator", tuple[float, float]]:
        """What is not void, with a sample of all of it; and the extremes of all values."""
        found = Accumulator.joint([self])
        void = max(self.blocks, key=lambda v: (self.blocks[v], -v), default=None)
        taken = sum(map(len, self.sample))
        share = min(taken / self.count if self.count else 1.0, 1.0)
        most = max(SAMPLED_VALUES // max(len(self.blocks), 1), 1)
        for value, count in sorted(self.blocks.items()):
            if value != void or not self.count:
                found.merge(count, value, 0.0, (value, value))
                kept = min(max(round(count * share), 1), most)
                found.sample.append(np.full(kept, value))
        ends = [found.minimum, found.maximum, *([] if void is None else [void])]
        return found, (min(ends), max(ends))


def _edges(start: int, length: int) -> list[int]:
    """Where the blocks of an axis begin in a piece of it that starts at voxel `start`."""
    return [0, *range(BLOCK - start % BLOCK, length, BLOCK)]


def _reduced(how: np.ufunc, image: np.ndarray, edges: Sequence[list[int]]) -> np.ndarray:
    """(Z, Y, X) of the blocks: the extreme of each."""
    for axis in (2, 1, 0):
        image = how.reduceat(image, edges[axis], axis=axis)
    return image


def of_patch(image: np.ndarray) -> list[Accumulator]:
    """The channels of a patch (C, Z, Y, X), of which all voxels count but NaN."""
    channels = [Accumulator() for _ in image]
    for channel, values in zip(channels, image, strict=True):
        known = values[~np.isnan(values)] if values.dtype.kind == "f" else values
        if known.size:
            channel.add(known, max(values.size // SAMPLED_VALUES, 1) | 1)
    return channels
