"""The values that a network was trained on, and whether those of an input are of another scale.

Both are measured alike, from a sample: at most `WINDOWS` cubes that hold more than one value, the
same ones every time however the volume is stored, and `VALUES` values of each. That takes under a
second from a disk and a few from a server. Nothing but a note depends on it.

An input is of another scale where its values cannot be those of a scan like the training's:

- brighter: its 99.5 % percentile lies above the training's by more than the training's range (0.5
  to 99.5 %), and above nearly all values of the training. 20 % more light is not that much.
- flat: nearly all its values (0.01 to 99.99 %) span less than a tenth of the training's range, as
  those of uint8 do for uint16. Single bright objects in a dark box span more.
- apart: nearly all of them lie on one side of the training's range.

How low the darker half lies says nothing: outside of the object there may be air, or a fill value.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vcmodels.data.normalization import CUBE, Normalization, cubes, varies
from vcmodels.errors import RunError, VcmodelsError
from vcmodels.formats import file_stem
from vcmodels.geometry.boxes import Box
from vcmodels.volumes import Volume
from vcmodels.volumes.location import parent
from vcmodels.volumes.ngff import read_channel_labels
from vcmodels.volumes.nodes import read_node

WINDOWS = 16
VALUES = 1 << 16
TRIES = 16
"""For each piece: where a volume is mostly empty, most of them hold one value."""
FLATTER = 10
PERCENTILES = (0.01, 0.5, 50.0, 95.0, 99.5, 99.99)

Parts = Sequence[tuple[Sequence[Volume], Box]]
"""Volumes: the arrays that are stacked as channels, and the part that counts."""


@dataclass(frozen=True)
class ChannelValues:
    """What a sample of one channel holds, in stored units; finite values count."""

    name: str
    """The label in the store's `omero`, or the name of the array."""
    dtype: str
    """Of the first volume."""
    values: int
    """That were looked at."""
    minimum: float
    maximum: float
    mean: float
    sd: float
    percentiles: tuple[float, ...]
    """Those of `PERCENTILES`."""

    def __post_init__(self) -> None:
        """Refuse values that a damaged file may hold.

        Raises:
            ValueError: another number of percentiles, or a type that there is not.
        """
        try:
            np.dtype(self.dtype)
        except TypeError as error:
            raise ValueError(f"{self.dtype!r} is no type of numbers") from error
        if len(self.percentiles) != len(PERCENTILES):
            raise ValueError(f"{len(self.percentiles)} percentiles, expected {len(PERCENTILES)}")

    @classmethod
    def of(cls, name: str, dtype: np.dtype, values: np.ndarray) -> "ChannelValues":
        """Those of (n,) float64, n > 0."""
        percentiles = tuple(np.percentile(values, PERCENTILES).tolist())
        ends = float(values.min()), float(values.max())
        mean, sd = float(values.mean()), float(values.std())
        return cls(name, dtype.name, values.size, *ends, mean, sd, percentiles)

    @property
    def range(self) -> tuple[float, float]:
        """The 0.5 and 99.5 % percentiles."""
        return self.percentiles[1], self.percentiles[4]

    @property
    def reach(self) -> tuple[float, float]:
        """Where nearly all values lie: the 0.01 and 99.99 % percentiles."""
        return self.percentiles[0], self.percentiles[5]

    def is_cut_off(self, dtype: str) -> bool:
        """Whether 5 % and more are the largest value of an integer type, which another one may pass."""
        own = np.dtype(self.dtype)
        return self.dtype != dtype and own.kind in "iu" and self.percentiles[3] == np.iinfo(own).max

    def is_other_scale(self, trained: "ChannelValues") -> bool:
        """Whether a scan like the training's cannot have these values; see the module."""
        (low, high), (least, most) = trained.range, self.reach
        width, top = high - low, trained.reach[1]
        is_brighter = self.range[1] > max(high + width, top)
        is_flat = FLATTER * (most - least) < width
        return width > 0 and (is_brighter or is_flat or most < low or least > high)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for the checkpoint."""
        return asdict(self) | {"percentiles": list(self.percentiles)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ChannelValues":
        """Undo `to_dict`."""
        return cls(**{**data, "percentiles": tuple(data["percentiles"])})


def measure(parts: Parts) -> tuple[ChannelValues, ...]:
    """The values of some volumes, channel by channel; () where none can be read.

    What is damaged or not finite is left out: whoever needs it reports it.
    """
    parts = parts[:: -(-len(parts) // WINDOWS)]
    samples: dict[int, list[np.ndarray]] = {}
    for inputs, region in parts:
        first = 0
        voxels = min(region.voxels // WINDOWS, CUBE**3)
        step = voxels // VALUES | 1  # odd: it falls into step with no row
        for volume in inputs:
            for image in _pieces(volume, region, WINDOWS // len(parts)):
                for number, channel in enumerate(image, first):
                    samples.setdefault(number, []).append(channel.reshape(-1)[::step])
            first += volume.channels
    inputs, _ = parts[0]
    dtypes = [volume.dtype for volume in inputs for _ in range(volume.channels)]
    values = [np.concatenate(samples.get(n, [np.zeros(0)])) for n in range(len(dtypes))]
    finite = [v[np.isfinite(v)].astype(np.float64) for v in values]
    if not all(map(len, finite)):
        return ()
    return tuple(map(ChannelValues.of, channel_names(inputs), dtypes, finite))


def _pieces(volume: Volume, region: Box, most: int) -> list[np.ndarray]:
    """Images that hold more than one value, where there are any; else those that hold one."""

    def read(box: Box) -> np.ndarray | None:
        with suppress(RunError):
            return volume.read(box)
        return None

    tried = cubes(volume, region, read, most, TRIES * most, CUBE)
    found = [image for _, image in tried if image is not None]
    return list(filter(varies, found)) or found[:most]


def channel_names(inputs: Sequence[Volume]) -> list[str]:
    """What the channels of stacked arrays are called, in their order."""
    names: list[str] = []
    for volume in inputs:
        labels = _labels(volume)
        name = file_stem(volume.shown) or _array_name(volume.location)
        chosen = volume.axes.chosen or range(volume.channels)
        many = [f"{name}:{n}" for n in chosen] if volume.channels > 1 else [name]
        names += labels if len(labels) == volume.channels else many
    return names


def _array_name(location: str) -> str:
    """The last part of a path that is no level: `ct` of `scan.zarr/ct/0`, `scan` of `scan.zarr/0`."""
    parts = [part for part in location.split("/") if not re.fullmatch(r"(s?\d+)?", part)]
    return parts[-1].removesuffix(".zarr").removesuffix(".ome") if parts else location


def _labels(volume: Volume) -> list[str]:
    """The labels of the channels in the group above a level; [] where it has none."""
    place = parent(volume.location)
    with suppress(VcmodelsError):  # the array could be opened without the group
        group = read_node(place, volume.key) if place else None
        labels = read_channel_labels(group.attributes) if group else []
        chosen = volume.axes.chosen
        return [labels[n] for n in chosen if n < len(labels)] if chosen else labels
    return []


def notes(
    found: Sequence[ChannelValues],
    trained: Sequence[ChannelValues],
    normalization: Normalization,
    location: str,
) -> Iterator[str]:
    """What of an input is odd for a network that was trained on other values, in words.

    With statistics that are taken from each volume or patch the scale has no effect, and is no
    matter; values that were cut off are.
    """
    names, known = [one.name for one in found], [one.name for one in trained]
    if names != known and sorted(names) == sorted(known):
        order = f"the channels are {', '.join(names)}, those of the training {', '.join(known)}"
        yield f"note: {location}: {order}; check their order"
    is_relative = normalization.scheme != "none" and normalization.per != "global"
    remedy = "check the file, or train on such data"
    if len(trained) > 1:
        remedy = f"check the files and their order ({', '.join(known)}), or train on such data"
    for number, (one, before) in enumerate(zip(found, trained, strict=True)):
        values = f"note: {location}: values of channel {number} ({one.name})"
        low, high = one.range
        if one.minimum == one.maximum:
            if before.minimum < before.maximum:
                yield f"{values}: all {one.values} that were looked at are {low:.6g}; {remedy}"
        elif one.is_cut_off(before.dtype):
            most = f"5 % and more are {high:.6g}, the largest of {one.dtype}"
            yield f"{values}: {most}, and the training had {before.dtype}; convert it without loss"
        elif not is_relative and (cut := _cut_by(normalization, number, one, before)):
            yield f"{values}: {cut}; {remedy}"
        elif not is_relative and one.is_other_scale(before):
            there = "{:.6g} .. {:.6g}".format(*before.range)
            yield (
                f"{values} lie in {low:.6g} .. {high:.6g} (0.5 and 99.5 %), "
                f"those of the training in {there}; {remedy}"
            )


def _cut_by(
    normalization: Normalization, number: int, found: ChannelValues, trained: ChannelValues
) -> str | None:
    """How much of a channel the normalisation clips to one value, where that is most of it."""
    if normalization.scheme not in ("ct", "percentile") or not normalization.channels:
        return None
    ends = normalization.channels[number]
    if found.percentiles[3] <= ends.low and trained.percentiles[3] > ends.low:
        return f"95 % and more are below {ends.low:.6g}, to which they are clipped"
    if found.percentiles[2] >= ends.high:
        return f"half and more are above {ends.high:.6g}, to which they are clipped"
    return None
