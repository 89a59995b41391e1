"""Statistics under which little of an image is left, in words: it is never scaled so in silence."""

from collections.abc import Iterable, Iterator

from vcmodels.config.task import Scheme
from vcmodels.data.statistics import ChannelStatistics, VolumeStatistics
from vcmodels.reporting import Reporter

FLAT = 0.02
"""Of a deviation, or of the extremes: nearly all voxels of a usual image span 3 and more deviations,
or a quarter of the extremes."""
FAR = 8
"""Deviations, or ranges, from zero: a usual image ends at 3 or so."""
MOST_LINES = 10


def odd_statistics(scheme: Scheme, stats: VolumeStatistics, name: str) -> Iterator[str]:
    """What is odd about the statistics of a volume for its own voxels, channel by channel."""
    for number, channel in enumerate(stats):
        about = f"normalization: {name}, channel {number}"
        if channel.is_constant:
            yield f"{about}: all voxels looked at are {channel.minimum:.6g}: they become 0"
        elif channel.background is not None and scheme != "minmax":
            value = f"{channel.background:.6g}"
            yield f"{about}: nearly all voxels are {value}: this value does not count"
        elif channel.high - channel.low < FLAT * _unit(scheme, channel):
            values, ends = _span(channel.low, channel.high), _span(channel.minimum, channel.maximum)
            yield (
                f"{about}: nearly all voxels are {values}, and some reach {ends}: {scheme} leaves "
                "them hardly apart; take the scheme percentile or ct"
            )


def lost_values(
    scheme: Scheme, used: VolumeStatistics, found: VolumeStatistics, name: str, remedy: str
) -> Iterator[str]:
    """Channels of which statistics of other volumes leave next to nothing, or values far from all.

    Args:
        scheme: how the statistics are used.
        used: those of the other volumes.
        found: those of the volume itself.
        name: of the volume.
        remedy: what to do about it.
    """
    for number, (whole, own) in enumerate(zip(used, found, strict=True)):
        if own.is_constant or whole.is_constant:
            continue
        low, high = (_scaled_value(scheme, end, whole) for end in (own.low, own.high))
        if high - low < FLAT or low > FAR or high < -FAR:
            values = f"values {_span(own.low, own.high)} become {low:.4g} .. {high:.4g}"
            yield (
                f"normalization: {name}, channel {number}: {values} by the statistics of other "
                f"volumes; {remedy}"
            )


def _scaled_value(scheme: Scheme, value: float, stat: ChannelStatistics) -> float:
    """What becomes of a value."""
    if scheme in ("ct", "percentile"):
        value = min(max(value, stat.low), stat.high)
    offset = {
        "zscore": stat.mean,
        "ct": stat.clipped_mean,
        "minmax": stat.minimum,
    }.get(scheme, stat.low)
    return (value - offset) / (_unit(scheme, stat) or 1.0)


def say_some(lines: Iterable[str], reporter: Reporter) -> None:
    """Report the first lines, and how many more there are."""
    every = list(lines)
    for line in every[:MOST_LINES]:
        reporter.say(line)
    if len(every) > MOST_LINES:
        reporter.say(f"normalization: and {len(every) - MOST_LINES} more such lines")


def _unit(scheme: Scheme, channel: ChannelStatistics) -> float:
    """What becomes 1."""
    if scheme == "zscore":
        return channel.sd
    if scheme == "ct":
        return channel.clipped_sd
    return channel.maximum - channel.minimum if scheme == "minmax" else channel.high - channel.low


def _span(low: float, high: float) -> str:
    return f"{low:.6g} .. {high:.6g}"
