"""Statistics of intensities, streamed from stored blocks in bounded memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vcmodels.data.label_index import cut_block
from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box
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


def check_finite(image: np.ndarray, box: Box, name: str, inside: Box | None = None) -> None:
    """Refuse NaN and infinity at once: they would spread through the network's weights.

    Args:
        image: (C, Z, Y, X) as read from `box`.
        box: where it is in the volume.
        name: of the volume, for the message.
        inside: where it is no padding; a voxel from there is named when there is one.

    Raises:
        RunError: naming the volume, channel and voxel of the first value that is not finite.
    """
    if image.dtype.kind != "f" or np.isfinite(image.sum(dtype=np.float64)):
        return  # one NaN or infinity makes the sum one
    bad = np.argwhere(~np.isfinite(image))
    if not len(bad):
        return
    places = bad[:, 1:] + np.array(box.origin)
    first = 0
    if inside is not None:
        real = ((places >= inside.origin) & (places < inside.end)).all(axis=1)
        first = int(real.argmax())
    place, channel = tuple(places[first].tolist()), int(bad[first, 0])
    raise RunError(
        f"volume {name}",
        f"the input holds {image[tuple(bad[first])]} at (z, y, x) = {place}, channel {channel}"
        f" ({len(bad)} such values near there)",
        "replace the values that are not finite, or leave them out through bbox",
    )


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
        channel.add(values, max(values.size // SAMPLED_VALUES, 1) | 1)
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
        check_finite(image, block, volume.location)
        for channel, accumulator in zip(image, channels, strict=True):
            accumulator.add(channel, step)


def _sample_blocks(volume: Volume, region: Box, most: int) -> list[Box]:
    """At most so many pieces of the stored blocks in the region, the same ones every time."""
    blocks = [block.intersect(region) for block in volume.stored_blocks(within=region)]
    blocks = [block for block in blocks if block.voxels] or [region]  # nothing stored: fill values
    if len(blocks) > most:
        chosen = np.random.Generator(np.random.Philox(key=0)).choice(len(blocks), most, False)
        blocks = [blocks[i] for i in sorted(chosen.tolist())]
    return [_middle(block) for block in blocks]


def _middle(block: Box) -> Box:
    """A part of a large block that fits in memory."""
    pieces = list(cut_block(block, (1, 1, 1), BLOCK_VOXELS))
    return pieces[len(pieces) // 2]
