"""Intensity normalisation: statistics streamed from the training data, and their use on a patch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from vcmodels.config import NormalizationConfig
from vcmodels.config.task import Scheme
from vcmodels.data.volumes import TaskVolume
from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box, cut_block
from vcmodels.volumes import Volume

SAMPLED_BLOCKS = 64
BLOCK_VOXELS = 1 << 22
SAMPLED_VALUES = 1 << 20  # per channel, for the percentiles
PERCENTILES = (0.5, 99.5)  # the clip of nnU-Net's CT scheme (Isensee et al. 2021, supplement)


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


VolumeStatistics = tuple[ChannelStatistics, ...]


class NotFiniteError(RunError):
    """An input holds NaN or infinity."""


def check_finite(
    image: np.ndarray,
    box: Box,
    name: str,
    inside: Box | None = None,
    *,
    is_nan_void: bool = False,
) -> None:
    """Refuse NaN and infinity at once: they would spread through the network's weights.

    Args:
        image: (C, Z, Y, X) as read from `box`.
        box: where it is in the volume.
        name: of the volume, for the message.
        inside: where it is no padding; a voxel from there is named when there is one.
        is_nan_void: NaN says that there is no value, and is allowed.

    Raises:
        NotFiniteError: naming the volume, channel and voxel of the first value that is not finite.
    """
    if image.dtype.kind != "f" or np.isfinite(image.sum(dtype=np.float64)):
        return  # one NaN or infinity makes the sum one
    bad = np.argwhere(np.isinf(image) if is_nan_void else ~np.isfinite(image))
    if not len(bad):
        return
    places = bad[:, 1:] + np.array(box.origin)
    first = 0
    if inside is not None:
        real = ((places >= inside.origin) & (places < inside.end)).all(axis=1)
        first = int(real.argmax())
    place, channel = tuple(places[first].tolist()), int(bad[first, 0])
    raise NotFiniteError(
        f"volume {name}",
        f"the input holds {image[tuple(bad[first])]} at (z, y, x) = {place}, channel {channel}"
        f" ({len(bad)} such values near there)",
        "replace the values that are not finite, or leave them out through bbox",
    )


def known_values(values: np.ndarray) -> np.ndarray:
    """Those that are there, of any shape: all but NaN; a 0 where there is none."""
    if values.dtype.kind != "f" or not np.isnan(values.sum(dtype=np.float64)):
        return values
    known = values[~np.isnan(values)]
    return known if known.size else np.zeros(1, values.dtype)


class Accumulator:
    """Mean and spread of a stream in one pass (Chan, Golub and LeVeque 1979), and a sample."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self.minimum, self.maximum = np.inf, -np.inf
        self.sample: list[np.ndarray] = []

    @classmethod
    def joint(cls, parts: Sequence["Accumulator"]) -> "Accumulator":
        """One for the values of all."""
        whole = cls()
        for part in parts:
            whole._merge(part.count, part.mean, part.squares, part.minimum, part.maximum)
            whole.sample += part.sample
        return whole

    def add(self, values: np.ndarray, step: int) -> None:
        """Count values, and keep every `step`-th for the percentiles."""
        mean = float(values.mean(dtype=np.float64))
        squares = float(values.var(dtype=np.float64)) * values.size
        self._merge(values.size, mean, squares, float(values.min()), float(values.max()))
        self.sample.append(values.reshape(-1)[::step].astype(np.float64))

    def statistics(self, percentiles: tuple[float, float]) -> ChannelStatistics:
        sample = np.concatenate(self.sample)
        low, high = (float(p) for p in np.percentile(sample, percentiles))
        clipped = sample.clip(low, high)
        return ChannelStatistics(
            self.mean, (self.squares / self.count) ** 0.5, self.minimum, self.maximum, low, high,
            float(clipped.mean()), float(clipped.std()),
        )  # fmt: skip

    def _merge(
        self, count: int, mean: float, squares: float, minimum: float, maximum: float
    ) -> None:
        shift, total = mean - self.mean, self.count + count
        self.squares += squares + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total
        self.minimum, self.maximum = min(self.minimum, minimum), max(self.maximum, maximum)


def of_patch(image: np.ndarray) -> list[Accumulator]:
    channels = [Accumulator() for _ in image]
    for channel, values in zip(channels, image, strict=True):
        channel.add(known_values(values), max(values.size // SAMPLED_VALUES, 1) | 1)
    return channels


def stream(parts: Sequence[tuple[Sequence[Volume], Box]]) -> list[Accumulator]:
    """What the sampled blocks of several volumes hold, channel by channel."""
    most = -(-SAMPLED_BLOCKS // len(parts))
    found: list[Accumulator] = []
    for inputs, region in parts:
        first = 0
        for volume in inputs:
            found += [Accumulator() for _ in range(first + volume.channels - len(found))]
            _add_volume(found[first : first + volume.channels], volume, region, most, len(parts))
            first += volume.channels
    return found


def _add_volume(
    channels: Sequence[Accumulator], volume: Volume, region: Box, most: int, parts: int
) -> None:
    blocks = _sample_blocks(volume, region, most)
    voxels = sum(block.voxels for block in blocks)
    # An odd step does not fall into step with rows whose length is a power of two.
    step = max(voxels * parts // SAMPLED_VALUES, 1) | 1
    for block in blocks:
        image = volume.read(block)
        check_finite(image, block, volume.location, is_nan_void=volume.is_nan_void)
        for channel, accumulator in zip(image, channels, strict=True):
            accumulator.add(known_values(channel), step)


def _sample_blocks(volume: Volume, region: Box, most: int) -> list[Box]:
    """At most so many pieces of the stored blocks in the region, the same ones every time."""
    blocks = [block.intersect(region) for block in volume.stored_blocks(within=region)]
    blocks = [block for block in blocks if block.voxels] or [region]  # nothing stored: fill values
    if len(blocks) > most:
        chosen = np.random.Generator(np.random.Philox(key=0)).choice(len(blocks), most, False)
        blocks = [blocks[i] for i in sorted(chosen.tolist())]
    return [middle(block) for block in blocks]


def middle(block: Box) -> Box:
    """A part of a large block that fits in memory."""
    pieces = list(cut_block(block, (1, 1, 1), BLOCK_VOXELS))
    return pieces[len(pieces) // 2]


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
            (C, Z, Y, X) float32, finite for finite input; a constant channel becomes 0, and so does
            NaN, which stands where there is no value.
        """
        if self.scheme == "none":
            return _without_nan(image.astype(np.float32))
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
        return _without_nan(out) if image.dtype.kind == "f" else out

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
    wanted: NormalizationConfig, volumes: Sequence[TaskVolume], regions: Sequence[Box | None]
) -> Normalization:
    """Gather the statistics that a scheme needs from the training regions.

    Args:
        wanted: the scheme.
        volumes: all volumes of the task.
        regions: the training region of each; None where a volume is not trained on.

    Raises:
        RunError: a value that is not finite, with its volume and place.
    """
    plain = Normalization(wanted.scheme, wanted.per, wanted.per_channel, wanted.percentiles)
    if wanted.scheme == "none" or wanted.per == "patch":
        return plain
    pairs = list(zip(volumes, regions, strict=True))
    if wanted.per == "volume":
        found = {v.name: plain.of_volume(v.inputs, region or v.region) for v, region in pairs}
        return replace(plain, volumes=found)
    parts = [(volume.inputs, region) for volume, region in pairs if region is not None]
    return replace(plain, channels=plain._finish(stream(parts)))


def _without_nan(image: np.ndarray) -> np.ndarray:
    """The same, with 0 for NaN; changed in place."""
    np.copyto(image, 0, where=np.isnan(image))
    return image


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
