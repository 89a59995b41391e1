"""Intensity normalisation: statistics streamed from the training data, and their use on a patch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from vcmodels.config import Task
from vcmodels.data.statistics import (
    PERCENTILES,
    Accumulator,
    ChannelStatistics,
    VolumeStatistics,
    of_patch,
    stream,
)
from vcmodels.data.volumes import TaskVolume
from vcmodels.geometry.boxes import Box
from vcmodels.volumes import Volume

Scheme = Literal["zscore", "ct", "minmax", "percentile", "none"]
Per = Literal["global", "volume", "patch"]


@dataclass(frozen=True)
class Normalization:
    """A scheme with its statistics; kept in the checkpoint and used again by inference."""

    scheme: Scheme
    per: Per = "global"
    per_channel: bool = True
    percentiles: tuple[float, float] = PERCENTILES
    channels: VolumeStatistics = ()
    """Of the training data as a whole, one per input channel; empty for `none` and per patch."""
    volumes: Mapping[str, VolumeStatistics] = field(default_factory=dict)
    """With `per: volume`, those of each volume by name."""

    def apply(self, image: np.ndarray, volume_stats: VolumeStatistics | None = None) -> np.ndarray:
        """Normalise a patch, each channel for itself.

        Args:
            image: (C, Z, Y, X), any real dtype.
            volume_stats: statistics of the volume it is from, needed with `per: volume`.

        Returns:
            (C, Z, Y, X) float32, finite for finite input; a constant channel becomes 0.
        """
        if self.scheme == "none":
            return image.astype(np.float32)
        if self.per == "patch":
            stats = self._finish(of_patch(image))
        elif self.per == "volume":
            if volume_stats is None:
                raise ValueError("normalisation per volume needs the statistics of the volume")
            stats = volume_stats
        else:
            stats = self.channels
        if len(stats) != len(image):
            raise ValueError(f"{len(image)} channels, but statistics of {len(stats)}")
        # float32 holds integers up to 2^24 exactly; wider types are shifted before they are cut.
        exact = np.float32 if image.dtype.itemsize <= 2 or image.dtype == np.float32 else np.float64
        out = np.empty(image.shape, np.float32)
        for channel, stat, result in zip(image, stats, out, strict=True):
            result[...] = _scaled(channel.astype(exact), self.scheme, stat)
        return out

    def of_volume(self, inputs: Sequence[Volume], box: Box) -> VolumeStatistics:
        """Statistics of one volume from a sample of its stored blocks, as `apply` takes them.

        Args:
            inputs: the arrays that are stacked as channels.
            box: the part that counts.

        Raises:
            RunError: a value that is not finite, with its volume and place.
        """
        return self._finish(stream([(inputs, box)]))

    def _finish(self, channels: Sequence["Accumulator"]) -> VolumeStatistics:
        if not self.per_channel:
            channels = [Accumulator.joint(channels)] * len(channels)
        return tuple(channel.statistics(self.percentiles) for channel in channels)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for the checkpoint and for provenance."""
        return {
            "scheme": self.scheme,
            "per": self.per,
            "per_channel": self.per_channel,
            "percentiles": list(self.percentiles),
            "channels": [asdict(c) for c in self.channels],
            "volumes": {name: [asdict(c) for c in v] for name, v in self.volumes.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Normalization":
        """Undo `to_dict`."""
        volumes = {
            name: tuple(ChannelStatistics(**c) for c in v) for name, v in data["volumes"].items()
        }
        channels = tuple(ChannelStatistics(**c) for c in data["channels"])
        low, high = data["percentiles"]
        return cls(data["scheme"], data["per"], data["per_channel"], (low, high), channels, volumes)


def fit_normalization(
    task: Task, volumes: Sequence[TaskVolume], regions: Sequence[Box | None]
) -> Normalization:
    """Gather the statistics that the task's scheme needs from the training regions.

    Args:
        task: for `dataset_config.normalization`.
        volumes: all volumes of the task.
        regions: the training region of each; None where a volume is not trained on.

    Raises:
        RunError: a value that is not finite, with its volume and place.
    """
    wanted = task.dataset_config.normalization
    plain = Normalization(wanted.scheme, wanted.per, wanted.per_channel, wanted.percentiles)
    if wanted.scheme == "none" or wanted.per == "patch":
        return plain
    pairs = list(zip(volumes, regions, strict=True))
    if wanted.per == "volume":
        found = {v.name: plain.of_volume(v.inputs, region or v.region) for v, region in pairs}
        return replace(plain, volumes=found)
    parts = [(volume.inputs, region) for volume, region in pairs if region is not None]
    return replace(plain, channels=plain._finish(stream(parts)))


def _scaled(values: np.ndarray, scheme: Scheme, stat: ChannelStatistics) -> np.ndarray:
    """One channel, float32 or float64, changed in place."""
    if scheme == "zscore":
        offset, spread = stat.mean, stat.sd
    elif scheme == "ct":
        offset, spread = stat.clipped_mean, stat.clipped_sd
        np.clip(values, stat.low, stat.high, out=values)
    elif scheme == "minmax":
        offset, spread = stat.minimum, stat.maximum - stat.minimum
    else:
        offset, spread = stat.low, stat.high - stat.low
        np.clip(values, stat.low, stat.high, out=values)
    values -= offset
    # The spread of a constant is 0, or the rounding error of its mean.
    if spread > 1e-6 * abs(offset):
        values /= spread
    return values
