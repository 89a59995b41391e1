"""How models of others scale an image: lines with ends, and what they take from the image itself.

Ours leave out void and values that nearly all voxels have (`vcmodels.data.statistics`). Theirs count
every voxel, or every one that is not 0; such a rule is part of a normalisation that came with weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

import numpy as np

from vcmodels.data.statistics import Accumulator, ChannelStatistics
from vcmodels.geometry.boxes import Box

LARGEST = 3e38
"""About the largest float32; stands for no end."""


@dataclass(frozen=True)
class Line:
    """clip(value, low, high) * gain + offset; the gain is positive."""

    low: float = -LARGEST
    high: float = LARGEST
    gain: float = 1.0
    offset: float = 0.0

    def scaled(self, gain: float, offset: float) -> "Line":
        """The line, and after it `* gain + offset`."""
        return replace(self, gain=self.gain * gain, offset=self.offset * gain + offset)

    def clipped(self, low: float, high: float) -> "Line":
        """The line, and after it the ends `low` and `high`."""
        first, last = ((end - self.offset) / self.gain for end in (low, high))
        return replace(
            self,
            low=min(max(self.low, first), last),
            high=max(min(self.high, last), first),
        )

    def then(self, other: "Line") -> "Line":
        """The line, and after it another."""
        ended = self.clipped(other.low, other.high) if other.has_ends else self
        return ended.scaled(other.gain, other.offset)

    @property
    def has_ends(self) -> bool:
        """Whether a value may be cut."""
        return self.low > -LARGEST or self.high < LARGEST

    def statistics(self) -> ChannelStatistics:
        """Numbers by which the scheme `ct` does the same, and `zscore` where there are no ends."""
        middle, spread = -self.offset / self.gain, 1 / self.gain
        ends = (self.low, self.high)
        return ChannelStatistics(middle, spread, *ends, *ends, middle, spread)


@dataclass(frozen=True)
class Rule:
    """What is measured of an image, all voxels of it, and which line that makes."""

    takes: Literal["deviation", "range"]
    """(value - mean) / deviation, or (value - low) / (high - low) of two percentiles."""
    counted: Literal["all", "nonzero"] = "all"
    """Which voxels are measured; those that are 0 stay 0 with `nonzero`."""
    clips: bool = False
    """Whether values are cut at the percentiles first."""
    epsilon: float = 0.0
    """Added to what is divided by; where that is 0, nothing is divided."""
    after: Line = Line()
    """What follows."""

    def add(self, channel: Accumulator, values: np.ndarray | float, voxels: int, step: int) -> None:
        """Count the values of a cube, or one value that all its voxels have.

        Args:
            channel: of what was counted before.
            values: (Z, Y, X); NaN does not count.
            voxels: in the cube.
            step: every so many values are kept for the percentiles.
        """
        if not isinstance(values, np.ndarray):
            if isfinite(values) and (values or self.counted == "all"):
                channel.merge(voxels, values, 0.0, (values, values))
                channel.sample.append(np.full(-(-voxels // step), values))
            return
        known = values[np.isfinite(values)] if values.dtype.kind == "f" else values.reshape(-1)
        if self.counted == "nonzero":
            known = known[known != 0]
        if known.size:
            channel.add(known, step)

    def statistics(
        self, channel: Accumulator, percentiles: tuple[float, float]
    ) -> ChannelStatistics:
        """The line of a channel, as the scheme `ct` takes it; of an empty one, that of zeros."""
        sample = np.concatenate(channel.sample) if channel.sample else np.zeros(1)
        low, high = np.percentile(sample, percentiles).tolist()
        line = Line(low, high) if self.clips else Line()
        if self.takes == "range":
            middle, spread = low, high - low
        elif self.clips:
            cut = sample.clip(low, high)
            middle, spread = float(cut.mean()), float(cut.std())
        else:
            count = max(channel.count, 1)
            middle, spread = channel.mean, (channel.squares / count) ** 0.5
        spread = spread + self.epsilon or 1.0
        return line.scaled(1 / spread, -middle / spread).then(self.after).statistics()

    def of_patch(self, image: np.ndarray) -> list[Accumulator]:
        """The channels of an image (C, Z, Y, X)."""
        channels = [Accumulator() for _ in image]
        for channel, values in zip(channels, image, strict=True):
            self.add(channel, values, values.size, 1)
        return channels


def count_cube(
    rule: Rule,
    channels: Sequence[Accumulator],
    cube: Box,
    image: np.ndarray | None,
    fill: float,
    step: int,
) -> None:
    """Count a cube as a rule says.

    Args:
        rule: which voxels count.
        channels: changed.
        cube: where it is.
        image: (C, Z, Y, X); None where nothing is stored.
        fill: what is there then.
        step: as for `Rule.add`.
    """
    for number, channel in enumerate(channels):
        rule.add(channel, float(fill) if image is None else image[number], cube.voxels, step)
