"""Whether intensities are measured over all volumes together, or in each by itself: `per: "auto"`.

Statistics of each volume undo what a scanner or an exposure does to all of its values, and carry
over to a volume of another gain or offset. They also undo differences that mean something: of
intensities that are calibrated, and of volumes that hold more or less of an object. So they are taken
unless

- all intensities are Hounsfield units: an attribute of the array or of the groups around it says
  so, or they are signed whole numbers that begin at air;
- three training volumes or more agree in mean and standard deviation within a twentieth.

The figures behind these limits are in docs/decisions/011-statistics-of-each-volume.md.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import Any, Literal

from vcmodels.data.statistics import ChannelStatistics, VolumeStatistics
from vcmodels.errors import VcmodelsError
from vcmodels.volumes import Volume
from vcmodels.volumes.location import parent
from vcmodels.volumes.nodes import read_node

LEAST_VOLUMES = 3
SAME_MEAN = 0.05
"""Of a standard deviation, between a volume's mean and the median of all."""
SAME_SD = 1.05
"""The largest standard deviation divided by the smallest."""
AIR = (-4096, -900)
"""Where the darkest voxels of a CT lie: air at -1000, or the padding around a round field of view."""
LEAST_RANGE = 50
"""Hounsfield units between dark and bright; what spans less was divided since."""
_GROUPS = 2

VolumeMoments = Mapping[str, Sequence[tuple[float, float]]]
"""By volume, the mean and standard deviation of each channel."""


@dataclass(frozen=True)
class Choice:
    """What `auto` stands for, and why."""

    per: Literal["global", "volume"]
    reason: str
    figures: VolumeMoments
    calibration: str | None
    """What shows that all intensities are calibrated."""

    @classmethod
    def of(cls, figures: VolumeMoments, calibration: str | None) -> "Choice":
        """The choice for these training volumes."""
        if calibration is not None:
            return cls("global", f"Hounsfield units ({calibration})", figures, calibration)
        varied = [volume for volume in figures.values() if any(sd > 0 for _, sd in volume)]
        if len(varied) < 2:
            found = ", ".join(f"{mean:.4g} and {sd:.4g}" for mean, sd in chain(*varied))
            reason = "one training volume does not show whether the next has its scale"
            reason += f" (mean and deviation {found})" if found else ""
            return cls("volume", reason, figures, None)
        means, sds = _spread(varied)
        found = f"means by up to {means:.2g} standard deviations, these by a factor of {sds:.3g}"
        if means > SAME_MEAN or sds > SAME_SD:
            return cls("volume", f"{len(varied)} training volumes differ: {found}", figures, None)
        if len(varied) < LEAST_VOLUMES:
            reason = f"{len(varied)} training volumes that agree are too few to show a common scale"
            return cls("volume", reason, figures, None)
        return cls("global", f"{len(varied)} training volumes agree: {found}", figures, None)

    def with_volume(self, name: str, found: VolumeStatistics, inputs: Sequence[Volume]) -> "Choice":
        """The choice if this had been a training volume, too."""
        both = self.calibration if may_be_calibrated(inputs, found) else None
        return Choice.of({**self.figures, name: moments(found)}, both)

    def may_change(self) -> bool:
        """Whether one more volume can turn it, by disagreement or as the last that was missing."""
        return self.per == "global" or len(self.figures) == LEAST_VOLUMES - 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for the checkpoint."""
        figures = {name: [list(pair) for pair in found] for name, found in self.figures.items()}
        return {"reason": self.reason, "calibration": self.calibration, "volumes": figures}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Choice":
        """Undo `to_dict`: the choice follows from the figures."""
        figures = {n: [(mean, sd) for mean, sd in f] for n, f in data["volumes"].items()}
        return cls.of(figures, data["calibration"])


def moments(found: VolumeStatistics) -> list[tuple[float, float]]:
    """Mean and standard deviation of each channel."""
    return [(channel.mean, channel.sd) for channel in found]


def _spread(volumes: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """How far means lie apart, and the factor between deviations, in the worst channel."""
    means, factor = 0.0, 1.0
    for channel in zip(*volumes, strict=True):
        varied = [(mean, sd) for mean, sd in channel if sd > 0]
        if len(varied) < 2:
            continue
        centre, unit = (median(values) for values in zip(*varied, strict=True))
        sds = [sd for _, sd in varied]
        means = max(means, *(abs(mean - centre) / unit for mean, _ in varied))
        factor = max(factor, max(sds) / min(sds))
    return means, factor


def calibration(inputs: Sequence[Volume], found: VolumeStatistics) -> str | None:
    """What shows that the channels of a volume are Hounsfield units; None where nothing does."""
    channels = iter(found)
    shown = [_shown(volume, next(channels)) for volume in inputs for _ in range(volume.channels)]
    return shown[0] if None not in shown else None


def may_be_calibrated(inputs: Sequence[Volume], found: VolumeStatistics) -> bool:
    """Whether nothing speaks against Hounsfield units; a part of a body need not hold air."""
    signed = all(volume.dtype.kind in "if" for volume in inputs)
    return signed and all(AIR[0] <= c.minimum < 0 and c.high - c.low >= LEAST_RANGE for c in found)


def _shown(volume: Volume, channel: ChannelStatistics) -> str | None:
    if volume.dtype.kind not in "if" or channel.high - channel.low < LEAST_RANGE:
        return None
    ends = channel.minimum, channel.maximum
    if (name := next(_unit_attributes(volume), None)) and AIR[0] <= ends[0]:
        return f"attribute {name}"
    is_ct = AIR[0] <= ends[0] <= AIR[1] and channel.high > 0 and channel.low < -LEAST_RANGE
    if is_ct and all(end.is_integer() for end in ends):
        return f"signed whole numbers from {ends[0]:g} to {ends[1]:g}"
    return None


def _unit_attributes(volume: Volume) -> Iterator[str]:
    """The attributes of the array, and of the groups around it, that name Hounsfield units."""
    attributes: Mapping[str, Any] | None = volume.attributes
    location: str | None = volume.location
    for _ in range(_GROUPS + 1):
        yield from _naming(attributes or {})
        location = parent(location) if location else None
        with suppress(VcmodelsError):  # the array could be opened without the group
            node = read_node(location, volume.key) if location else None
            attributes = node.attributes if node else None


def _naming(attributes: Mapping[str, Any], depth: int = 3) -> Iterator[str]:
    for name, value in attributes.items():
        if isinstance(value, Mapping) and depth:
            yield from (f"{name}.{inner}" for inner in _naming(value, depth - 1))
        elif isinstance(value, str) and re.search(r"hounsfield|^\W*HU\W*$", value, re.IGNORECASE):
            yield name
