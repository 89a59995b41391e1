"""How values of an input become comparable: a line of straight pieces for each channel of a volume."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vcmodels.blockwise import Threads
from vcmodels.errors import VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import tiles
from vcmodels.metrics.base import BlockPart
from vcmodels.prepare.section import (
    Above,
    NyulStandard,
    ScaleStandard,
    Standard,
    WindowStandard,
    ZScoreStandard,
)
from vcmodels.volumes import Volume

Counted = Above | Literal["all"] | None
"""Which voxels count: those above a value, every one, or those that are not 0."""
Limit = float | Literal["all"] | None
"""The same, the mean found out."""
PERCENTILES = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
SCALE = (0.0, 100.0)
"""Where the first and the last landmark of each training volume are put before the mean is taken."""
BINS = 1 << 16
PIECE = (64, 256, 256)
"""Voxels that are looked at together."""


@dataclass(frozen=True)
class ValueCurve:
    """A function of a value: straight lines between points."""

    x: tuple[float, ...]
    """Rising."""
    y: tuple[float, ...]
    goes_on: bool
    """Whether the outer pieces go on past the ends; else the ends are kept."""
    keeps_zero: bool = False
    """Whether 0 stays 0, whatever is next to it."""

    @classmethod
    def from_json(cls, stored: Sequence[Any]) -> "ValueCurve":
        """Undo `to_json`."""
        x, y, *others = stored
        return cls(tuple(x), tuple(y), *others)

    def to_json(self) -> list[Any]:
        """JSON values."""
        return [list(self.x), list(self.y), self.goes_on, *([True] if self.keeps_zero else [])]

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Any shape and type -> float32."""
        v = np.asarray(values, np.float64)
        found = np.interp(v, self.x, self.y)
        if self.goes_on:
            for end, nearer, is_past in ((0, 1, v < self.x[0]), (-1, -2, v > self.x[-1])):
                slope = (self.y[nearer] - self.y[end]) / (self.x[nearer] - self.x[end])
                found = np.where(is_past, self.y[end] + slope * (v - self.x[end]), found)
        if self.keeps_zero:
            found = np.where(v == 0, 0, found)
        return found.astype(np.float32)


@dataclass(frozen=True)
class ValueSpread:
    """The values of one channel that count: mean, deviation and a fine histogram."""

    mean: float
    deviation: float
    counts: NDArray[np.int64]
    """(BINS,), of equal width from `low` to `high`."""
    low: float
    high: float

    def percentile(self, percent: float) -> float:
        """The value below which so much lies, to a bin of 1/65536 of the range."""
        total = np.cumsum(self.counts)
        rank = percent / 100 * total[-1]
        number = min(bisect_right(total, rank), BINS - 1)
        before = total[number - 1] if number else 0
        share = (rank - before) / max(self.counts[number], 1)
        return self.low + self.width * (number + min(max(float(share), 0.0), 1.0))

    @property
    def width(self) -> float:
        """Of a bin."""
        return (self.high - self.low) / BINS


def curves_of(
    standards: Sequence[Standard | None], inputs: Sequence[Volume], within: Box, key: str
) -> tuple[ValueCurve | None, ...]:
    """What is done to the values of each channel of a volume; voxels are read where that depends on them.

    Args:
        standards: for each channel of all inputs.
        inputs: stacked as channels.
        within: the part of the volume that counts.
        key: for messages.

    Raises:
        VolumeError: a channel has no values that differ.
    """
    above: dict[int, Counted] = {
        number: one.above
        for number, one in enumerate(standards)
        if isinstance(one, ZScoreStandard | NyulStandard)
    }
    spreads = spreads_of(inputs, above, within, key)
    return tuple(
        None if one is None else _curve(one, spreads.get(number), volume.shown, key)
        for number, (one, (volume, _)) in enumerate(
            zip(standards, channels_of(inputs), strict=True)
        )
    )


def channels_of(inputs: Sequence[Volume]) -> Iterator[tuple[Volume, int]]:
    """Each channel of volumes that are stacked: the volume, and its number there."""
    for volume in inputs:
        for channel in range(volume.channels):
            yield volume, channel


def _curve(standard: Standard, spread: ValueSpread | None, location: str, key: str) -> ValueCurve:
    if isinstance(standard, WindowStandard):
        ends = (standard.low, standard.high)
        return ValueCurve(ends, ends, goes_on=False)
    if isinstance(standard, ScaleStandard):
        ends = (standard.low, standard.high)
        low, high = ((end - standard.mean) / standard.sd for end in ends)
        return ValueCurve(ends, (low, high), goes_on=False)
    assert spread is not None, "all others depend on the values"
    if isinstance(standard, ZScoreStandard):
        ends = (spread.mean, spread.mean + spread.deviation)
        return ValueCurve(ends, (0.0, 1.0), goes_on=True, keeps_zero=standard.keep_zero)
    assert standard.landmarks is not None, "not settled yet"
    marks = landmarks_of(spread, location, key)
    return ValueCurve(*_rising(marks, standard.landmarks), goes_on=True)


def landmarks_of(spread: ValueSpread, location: str, key: str) -> list[float]:
    """The percentiles that are brought to others.

    Raises:
        VolumeError: nearly all voxels have one value.
    """
    found = [spread.percentile(percent) for percent in PERCENTILES]
    if found[-1] - found[0] <= spread.width:
        remedy = 'give another "above", or leave the volume out'
        raise VolumeError(key, f"nearly all of {location} is {found[0]:.4g}", remedy)
    return found


def learnt_landmarks(every: Sequence[Sequence[float]]) -> list[float]:
    """Where landmarks lie in the mean, each volume on a scale from 0 to 100.

    Args:
        every: `landmarks_of` each training volume.
    """
    scaled = [np.interp(marks, (marks[0], marks[-1]), SCALE) for marks in every]
    found = [float(n) for n in np.mean(scaled, axis=0)]
    for n in range(1, len(found)):  # where half of the voxels of a volume have one value
        found[n] = max(found[n], found[n - 1] + 1e-3)
    return [round(n, 6) for n in found]


def _rising(x: Sequence[float], y: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Points without those whose x does not rise: percentiles that many voxels share."""
    kept = [0]
    for number in range(1, len(x)):
        if x[number] > x[kept[-1]]:
            kept.append(number)
    return tuple(x[n] for n in kept), tuple(y[n] for n in kept)


def spreads_of(
    inputs: Sequence[Volume], above: Mapping[int, Counted], within: Box, key: str
) -> dict[int, ValueSpread]:
    """How the voxels that count are distributed, of some channels; all are read, a block at a time.

    Args:
        inputs: stacked as channels.
        above: by the number of a channel, which voxels of it count.
        within: the part of the volume that counts.
        key: for messages.

    Raises:
        VolumeError: fewer than two different values of a channel count.
    """
    found, first = dict[int, ValueSpread](), 0
    for volume in inputs:
        own: dict[int, Counted] = {
            n: above[first + n] for n in range(volume.channels) if first + n in above
        }
        spreads = _spreads(volume, own, within, key)
        found |= {first + n: spread for n, spread in spreads.items()}
        first += volume.channels
    return found


def _spreads(
    volume: Volume, above: Mapping[int, Counted], within: Box, key: str
) -> dict[int, ValueSpread]:
    """Of channels of one volume: each block is decoded once for all of them, in each of the passes."""
    everything = {n: np.isfinite for n, rule in above.items() if rule == "mean"}
    means = {n: sums.mean for n, sums in _sums(volume, everything, within).items()}
    limits: dict[int, Limit] = {
        n: means[n] if rule == "mean" else rule for n, rule in above.items()
    }
    counts = {n: partial(_counts, limit=limit) for n, limit in limits.items()}
    sums = _sums(volume, counts, within)
    for n, one in sums.items():
        if not one.low < one.high:
            rule = _in_words(limits[n])
            found = f"{volume.shown} has no different values among the voxels that {rule}"
            raise VolumeError(key, found, 'give another "above", or leave the volume out')
    return _histograms(volume, counts, sums, within)


def _in_words(limit: Limit) -> str:
    if limit is None:
        return "are not 0"
    return "count" if limit == "all" else f"are above {limit:g}"


def _counts(values: NDArray[Any], limit: Limit) -> NDArray[np.bool_]:
    finite = np.isfinite(values)
    if limit == "all":
        return finite
    return finite & (values != 0 if limit is None else values > limit)


Rules = Mapping[int, Callable[[NDArray[Any]], NDArray[np.bool_]]]
"""By the number of a channel, which of its values count."""


@dataclass(frozen=True)
class _Sums:
    """Of the values of a channel that count."""

    count: float
    total: float
    low: float
    high: float

    @property
    def mean(self) -> float:
        return self.total / max(self.count, 1)


def _counted(volume: Volume, rules: Rules, box: Box) -> Iterator[NDArray[np.float64]]:
    """The values of a block that count, of each channel."""
    stored = volume.read(box)
    for channel, counts in rules.items():
        values = stored[channel].astype(np.float64)
        yield values[counts(values)]


def _sums(volume: Volume, rules: Rules, within: Box) -> dict[int, _Sums]:
    if not rules:
        return {}

    def part(box: Box) -> BlockPart:
        sums = [
            (v.size, v.sum(), *((v.min(), v.max()) if v.size else (np.inf, -np.inf)))
            for v in _counted(volume, rules, box)
        ]
        return BlockPart(sums=np.array(sums))

    found = np.stack([p["sums"] for p in _parts(part, within)])
    count, total = found[..., :2].sum(0).T
    low, high = found[..., 2].min(0), found[..., 3].max(0)
    columns = (column.tolist() for column in (count, total, low, high))
    return {n: _Sums(*row) for n, row in zip(rules, zip(*columns, strict=True), strict=True)}


def _histograms(
    volume: Volume, rules: Rules, sums: Mapping[int, _Sums], within: Box
) -> dict[int, ValueSpread]:
    if not rules:
        return {}

    def part(box: Box) -> BlockPart:
        histograms, squares = [], []
        for values, one in zip(_counted(volume, rules, box), sums.values(), strict=True):
            bins = ((values - one.low) / (one.high - one.low) * BINS).astype(np.int64)
            histograms.append(np.bincount(np.minimum(bins, BINS - 1), minlength=BINS))
            squares.append(np.square(values - one.mean).sum())
        return BlockPart(counts=np.stack(histograms), squares=np.array(squares))

    # Whole numbers are added as they come: 512 KB for each block and channel are too much to keep.
    histograms, squares = np.zeros((len(rules), BINS), np.int64), dict[Box, np.ndarray]()
    for box, made in _made(part, within):
        histograms += made["counts"]
        squares[box] = made["squares"]
    square = np.stack([squares[box] for box in sorted(squares)]).sum(0).tolist()
    return {
        n: ValueSpread(one.mean, (square[k] / one.count) ** 0.5, histograms[k], one.low, one.high)
        for k, (n, one) in enumerate(sums.items())
    }


def _made(work: Callable[[Box], BlockPart], within: Box) -> Iterator[tuple[Box, BlockPart]]:
    """What is made of all blocks, as they end."""
    return Threads().run(work, list(tiles(within, PIECE)), lambda: False)


def _parts(work: Callable[[Box], BlockPart], within: Box) -> list[BlockPart]:
    """What is made of all blocks, in their order: sums come out the same on any number of threads."""
    return [part for _, part in sorted(_made(work, within), key=lambda one: one[0])]


def foreground_box(volume: Volume, above: Above | Literal["nonzero"], key: str) -> Box:
    """The box around all voxels of a volume that are above a value in its first channel.

    With `nonzero`, around those that are not 0 in any channel; of a volume of zeros, all of it.

    Raises:
        VolumeError: there is none.
    """
    is_mean = above == "mean"
    limit = _sums(volume, {0: np.isfinite}, volume.box)[0].mean if is_mean else above

    def part(box: Box) -> BlockPart:
        values = volume.read(box)
        is_shown = (values != 0).any(0) if limit == "nonzero" else values[0] > limit
        if not is_shown.any():
            return BlockPart(ends=np.zeros((0, 6), np.int64))
        ends = [
            (np.flatnonzero(is_shown.any(others))[[0, -1]]) for others in ((1, 2), (0, 2), (0, 1))
        ]
        low, high = zip(*ends, strict=True)
        corner = np.array(box.origin)
        return BlockPart(ends=np.concatenate([corner + low, corner + high + 1])[None])

    found = np.concatenate([p["ends"] for p in _parts(part, volume.box)])
    if not len(found) and above == "nonzero":
        return volume.box
    if not len(found):
        remedy = "lower above, or leave crop out"
        raise VolumeError(key, f"{volume.shown} has no voxel above {limit:g}", remedy)
    low, high = found[:, :3].min(0), found[:, 3:].max(0)
    return Box.between([int(n) for n in low], [int(n) for n in high])
