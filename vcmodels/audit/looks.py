"""What a sample of the images of a volume holds: the same cubes every time, wherever it is stored."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vcmodels.data.intensities import ChannelValues, channel_names
from vcmodels.data.normalization import CUBE, cubes, varies
from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box
from vcmodels.volumes import Volume

WINDOWS, TRIES = 16, 256
"""Cubes that hold more than one value, and cubes that are tried to find as many, of each array."""
VALUES = 1 << 16
"""Of a cube and channel that are kept."""


@dataclass(frozen=True)
class ChannelLook:
    """What was seen of one channel, in stored units."""

    name: str
    location: str
    looked_at: int
    nan: int
    """Of those that were looked at."""
    infinite: int
    values: ChannelValues | None
    """Of the finite ones; None where there are none."""
    levels: int
    """Different values."""
    at_top: float
    """Share of the finite ones that have the largest value."""
    is_nan_void: bool
    """Whether the array says that NaN stands where there is no value."""

    @classmethod
    def of(cls, name: str, volume: Volume, values: np.ndarray) -> "ChannelLook":
        """That of (n,) values of any dtype."""
        finite = values[np.isfinite(values)].astype(np.float64)
        nan = int(np.isnan(values).sum())
        found = ChannelValues.of(name, volume.dtype, finite) if len(finite) else None
        at_top = float((finite == finite.max()).mean()) if len(finite) else 0.0
        rest = len(values) - nan - len(finite)
        levels = len(np.unique(finite))
        place = volume.shown
        return cls(
            name, place, len(values), nan, rest, found, levels, at_top, volume.is_nan_void
        )  # fmt: skip


@dataclass(frozen=True)
class VolumeLook:
    """What was seen of the inputs of one volume."""

    name: str
    key: str
    channels: Sequence[ChannelLook]
    damage: Sequence[str]
    """What could not be read, in words."""


def look_at(volume: TaskVolume) -> VolumeLook:
    """A look at the inputs of a volume, within its region."""
    channels: list[ChannelLook] = []
    damage: list[str] = []
    for image in volume.inputs:
        samples = _samples(image, volume.region, damage)
        names = channel_names([image])
        channels += map(ChannelLook.of, names, [image] * len(names), samples)
    return VolumeLook(volume.name, volume.key, channels, list(dict.fromkeys(damage)))


def _samples(volume: Volume, region: Box, damage: list[str]) -> list[np.ndarray]:
    """(n,) values of each channel, from cubes with more than one value where there are any."""

    def read(box: Box) -> np.ndarray | None:
        try:
            return volume.read(box)
        except RunError as error:
            damage.append(str(error))
            return None

    tried = cubes(volume, region, read, WINDOWS, TRIES, CUBE)
    images = [image for _, image in tried if image is not None]
    images = list(filter(varies, images)) or images[:WINDOWS]
    if not images:
        return [np.zeros(0, volume.dtype)] * volume.channels
    steps = [image[0].size // VALUES | 1 for image in images]
    pairs = list(zip(images, steps, strict=True))
    return [
        np.concatenate([image[number].reshape(-1)[::step] for image, step in pairs])
        for number in range(volume.channels)
    ]
