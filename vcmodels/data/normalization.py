"""Intensity normalisation: statistics streamed from the training data, and their use on a patch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from math import isfinite
from typing import Any, Literal

import numpy as np

from vcmodels.config import NormalizationConfig
from vcmodels.config.task import Scheme
from vcmodels.data.choice import Choice, calibration, moments
from vcmodels.data.oddities import lost_values, odd_statistics, say_some
from vcmodels.data.rules import Line, Rule, count_cube
from vcmodels.data.statistics import (
    DOMINANT,
    SAMPLED_VALUES,
    Accumulator,
    ChannelStatistics,
    VolumeStatistics,
    of_patch,
)
from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box, cut_block, unit_box, units_touching
from vcmodels.reporting import Reporter, Silent
from vcmodels.volumes import Volume

CUBE = 64
WHOLE_CUBE = 128  # where all are read: fewer chunks are decoded more than once
COUNTED_CUBES = 128
TRIED_CUBES = 1 << 12
READ_AT_ONCE = 8
BLOCK_VOXELS = 1 << 22
PERCENTILES = (0.5, 99.5)  # the clip of nnU-Net's CT scheme (Isensee et al. 2021, supplement)


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


def measure_channels(
    inputs: Sequence[Volume], region: Box, rule: Rule | None = None
) -> list[Accumulator]:
    """The channels of the arrays of one volume, one after the other.

    Args:
        inputs: the arrays.
        region: the part that counts.
        rule: which voxels of it do; None leaves out void, as our own schemes do.

    Raises:
        RunError: a value that is not finite, with its volume and place.
    """
    found: list[Accumulator] = []
    # An odd step does not fall into step with rows whose length is a power of two.
    step = max(min(region.voxels, COUNTED_CUBES * CUBE**3) // SAMPLED_VALUES, 1) | 1
    for volume in inputs:
        channels = [Accumulator() for _ in range(volume.channels)]
        for cube, image in cubes(
            volume, region, volume.read, COUNTED_CUBES, TRIED_CUBES, WHOLE_CUBE
        ):
            _add_cube(channels, volume, cube, image, step, rule)
        found += channels
    return found


def _add_cube(
    channels: Sequence[Accumulator],
    volume: Volume,
    cube: Box,
    image: np.ndarray | None,
    step: int,
    rule: Rule | None,
) -> None:
    """Count a cube; where NaN is the fill value, it says that there is no value."""
    is_sparse = volume.is_nan_void
    if image is not None:
        check_finite(image, cube, volume.shown, is_nan_void=is_sparse)
    if rule is not None:
        count_cube(rule, channels, cube, image, volume.fill_value, step)
        return
    for number, channel in enumerate(channels):
        if image is None:
            if isfinite(volume.fill_value):
                channel.add_block(volume.fill_value, cube.voxels)
        elif is_sparse:
            known = image[number][np.isfinite(image[number])]
            if len(known):
                channel.add(known, step)
        else:
            channel.add_image(image[number], cube.origin, step)


def cubes(
    volume: Volume,
    region: Box,
    read: Callable[[Box], np.ndarray | None],
    counted: int,
    tried: int,
    whole: int,
) -> Iterator[tuple[Box, np.ndarray | None]]:
    """Cubes of the region with their values (C, Z, Y, X), None where nothing is stored.

    All of them where the region is small. Else they are drawn by their position, the same ones
    every time, until enough hold more than one value. Where none of all that were tried does,
    those of the stored chunks follow, for an object that is too small to be hit by chance.

    Args:
        volume: whose cubes they are.
        region: its part that is looked at.
        read: gives the values of a box.
        counted: how many that hold more than one value are enough.
        tried: how many are looked at for that.
        whole: the side of those of a small region.
    """
    is_whole = region.voxels <= counted * CUBE**3
    places, found = _places(region, whole if is_whole else CUBE, tried), 0
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:  # a server takes its time
        while boxes := list(islice(places, min(READ_AT_ONCE, counted - found))):
            futures = [pool.submit(read, box) if volume.is_stored(box) else None for box in boxes]
            for box, future in zip(boxes, futures, strict=True):
                image = future and future.result()
                yield box, image
                found += image is not None and varies(image)
    if found or is_whole or not volume.missing_blocks():
        return
    for block in islice(volume.stored_blocks(region), counted):
        piece = middle(block.intersect(region))
        yield piece, read(piece)


def varies(image: np.ndarray) -> bool:
    """Whether a channel of (C, Z, Y, X) holds two numbers."""
    known = (channel[np.isfinite(channel)] for channel in image)
    return any(len(values) > 0 and bool(values.min() < values.max()) for values in known)


def _places(region: Box, side: int, most: int) -> Iterator[Box]:
    """Cubes at multiples of their side, cut at the region's border, in a random order."""
    spans = units_touching(region, (side, side, side))
    depth, height, width = map(len, spans)
    total, draw = depth * height * width, np.random.Generator(np.random.Philox(key=0))
    few = total <= most
    numbers = draw.permutation(total) if few else draw.choice(total, most, replace=False)
    for number in numbers.tolist():
        z, rest = divmod(number, height * width)
        y, x = divmod(rest, width)
        index = (spans[0][z], spans[1][y], spans[2][x])
        yield unit_box(index, (side, side, side)).intersect(region)


def middle(block: Box) -> Box:
    """A part of a large block that fits in memory."""
    pieces = list(cut_block(block, (1, 1, 1), BLOCK_VOXELS))
    return pieces[len(pieces) // 2]


Per = Literal["global", "volume", "patch"]
MeasuredPart = tuple[Sequence[Volume], Box]
"""The arrays of a volume that are stacked as channels, and the part that counts."""


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
    choice: Choice | None = None
    """Why `per` is what it is, where the task left it to the volumes."""
    rule: Rule | None = None
    """How a model of others measures a volume, with `ct` per volume; None for our own way."""

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
            stats = self._finish(of_patch(image), dominant=1.0)
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
        if self.rule is not None and self.rule.counted == "nonzero":
            out[image == 0] = 0
        return _without_nan(out) if image.dtype.kind == "f" else out

    def of_measured(self, measured: Sequence[Sequence[Accumulator]]) -> VolumeStatistics:
        """Statistics of several parts together, as `of_volume`; the sample of each is made smaller.

        Args:
            measured: of each part what `measure_channels` gives.
        """
        if len(measured) == 1:
            return self._finish(measured[0])
        for channel in (channel for part in measured for channel in part):
            channel.thin(SAMPLED_VALUES // len(measured))
        joined = [Accumulator.joint(same) for same in zip(*measured, strict=True)]
        return self._finish(joined)

    def of_volume(self, inputs: Sequence[Volume], box: Box) -> VolumeStatistics:
        """Statistics of one volume, as `apply` takes them; see `vcmodels.data.statistics`.

        Args:
            inputs: the arrays that are stacked as channels.
            box: the part that counts.

        Raises:
            RunError: a value that is not finite, with its volume and place.
        """
        return self._finish(self.measure(inputs, box))

    def measure(self, inputs: Sequence[Volume], box: Box) -> list[Accumulator]:
        """What `of_measured` takes of one volume; args and errors as of `of_volume`."""
        return measure_channels(inputs, box, self.rule)

    def _finish(
        self, channels: Sequence[Accumulator], dominant: float = DOMINANT
    ) -> VolumeStatistics:
        if not self.per_channel:
            channels = [Accumulator.joint(channels)] * len(channels)
        if self.rule is not None:
            return tuple(self.rule.statistics(one, self.percentiles) for one in channels)
        return tuple(channel.statistics(self.percentiles, dominant) for channel in channels)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for the checkpoint and for provenance."""
        return {
            "scheme": self.scheme,
            "per": self.per,
            "per_channel": self.per_channel,
            "percentiles": list(self.percentiles),
            "channels": [asdict(c) for c in self.channels],
            "volumes": {name: [asdict(c) for c in v] for name, v in self.volumes.items()},
            "choice": self.choice and self.choice.to_dict(),
            **({"rule": asdict(self.rule)} if self.rule else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Normalization":
        """Undo `to_dict`."""
        volumes = {
            name: tuple(ChannelStatistics(**c) for c in v) for name, v in data["volumes"].items()
        }
        channels = tuple(ChannelStatistics(**c) for c in data["channels"])
        low, high = data["percentiles"]
        recorded = data.get("choice")
        return cls(
            data["scheme"], data["per"], data["per_channel"], (low, high), channels, volumes,
            Choice.from_dict(recorded) if recorded else None, _rule_of(data.get("rule")),
        )  # fmt: skip

    @property
    def clips(self) -> bool:
        """Whether values beyond the percentiles are cut off."""
        return self.scheme in ("ct", "percentile")

    def affine(self, volume: str | None, channels: int) -> list[tuple[float, float]] | None:
        """Per channel (offset, spread) of x = (stored - offset) / spread; None where it is no such map.

        Args:
            volume: whose statistics are meant with `per: volume`; None knows of none.
            channels: how many there are.
        """
        if self.scheme == "none":
            return [(0.0, 1.0)] * channels
        known = self.volumes.get(volume) if volume is not None else None
        stats = self.channels if self.per == "global" else known
        if self.clips or self.per == "patch" or stats is None or len(stats) != channels:
            return None
        return [_linear(self.scheme, stat) for stat in stats]

    @property
    def summary(self) -> dict[str, Any]:
        """Scheme and choice as JSON values, without the statistics."""
        why = {"reason": self.choice.reason} if self.choice else {}
        return {"scheme": self.scheme, "per": self.per, **why}

    @property
    def config(self) -> NormalizationConfig:
        """The block of a task that asks for it."""
        return NormalizationConfig(
            scheme=self.scheme,
            per=self.per,
            per_channel=self.per_channel,
            percentiles=self.percentiles,
        )


def _rule_of(data: Mapping[str, Any] | None) -> Rule | None:
    """Undo `asdict`."""
    return Rule(**{**data, "after": Line(**data["after"])}) if data else None


def contradiction(wanted: NormalizationConfig, used: Normalization) -> str | None:
    """What of a task's block is not as a network was trained, in words; what it leaves open is."""
    asked, before = wanted.completed(used.config), used.config
    names = [
        name for name in type(asked).model_fields if getattr(asked, name) != getattr(before, name)
    ]
    if used.scheme not in ("ct", "percentile"):
        names = [name for name in names if name != "percentiles"]
    given = [f"{n} is {getattr(asked, n)}, the checkpoint has {getattr(before, n)}" for n in names]
    return "; ".join(given) or None


@dataclass(frozen=True)
class Conversion:
    """From an image as one normalisation makes it to that of another: y = x * factor + shift."""

    factors: tuple[float, ...]
    """One per channel."""
    shifts: tuple[float, ...]

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return set(self.factors) <= {1.0} and set(self.shifts) <= {0.0}


def conversion(
    before: Normalization, after: Normalization, volume: str, channels: int
) -> Conversion | None:
    """What makes images for one normalisation of those of another, exactly; None where nothing can.

    Without statistics in between both are the same map: with one scheme, per patch or of each volume
    by itself. Maps that clip can be no one's beginning; those that do not are affine.

    Args:
        before: of the images that there are.
        after: of those that are wanted.
        volume: the name, by `before`, of what the images are of.
        channels: stored ones.
    """
    same = Conversion((1.0,) * channels, (0.0,) * channels)
    ways = [replace(way, channels=(), volumes={}, choice=None) for way in (before, after)]
    if not ways[0].clips:
        ways = [replace(way, percentiles=PERCENTILES) for way in ways]
    if before.scheme == "none":
        ways = [replace(way, per="global", per_channel=True) for way in ways]
    if ways[0] == ways[1] and (before.per != "global" or before.channels == after.channels):
        return same
    was, now = before.affine(volume, channels), after.affine(None, channels)
    if was is None or now is None:
        return None
    factors = [a[1] / b[1] for a, b in zip(was, now, strict=True)]
    shifts = [(a[0] - b[0]) / b[1] for a, b in zip(was, now, strict=True)]
    return Conversion(tuple(factors), tuple(shifts))


def fit_normalization(
    wanted: NormalizationConfig,
    volumes: Sequence[TaskVolume],
    regions: Sequence[Box | None],
    reporter: Reporter | None = None,
) -> Normalization:
    """Gather the statistics that a scheme needs.

    They are of the training regions; a volume that is validated on has its own, of all of it.

    Args:
        wanted: the scheme.
        volumes: all volumes of the task.
        regions: the training region of each; None where a volume is not trained on.
        reporter: told what `auto` chose, and where a statistic says little.

    Raises:
        RunError: a value that is not finite, with its volume and place.
    """
    reporter = reporter or Silent()
    per = "global" if wanted.per == "auto" else wanted.per
    plain = Normalization(wanted.scheme, per, wanted.per_channel, wanted.percentiles)
    if wanted.scheme == "none" or wanted.per == "patch":
        return plain
    measured, trained = measure_volumes(plain, volumes, regions)
    if wanted.per == "auto":
        choice = choose([v for v, box in zip(volumes, regions, strict=True) if box], measured)
        reporter.say(f"normalization: {wanted.scheme} per {choice.per}: {choice.reason}")
        plain = replace(plain, per=choice.per, choice=choice)
    if plain.per == "volume":
        return of_each_volume(plain, measured, reporter)
    found = plain.of_measured(trained)
    say_some(odd_statistics(plain.scheme, found, "the training data"), reporter)
    fitted = replace(plain, channels=found)
    report_lost(fitted, measured, 'set "per": "volume"', reporter)
    return fitted


def of_each_volume(
    way: Normalization, measured: Mapping[str, VolumeStatistics], reporter: Reporter
) -> Normalization:
    """The same scheme with the statistics of these volumes, and of no other that has their name."""
    odd = (odd_statistics(way.scheme, stats, name) for name, stats in measured.items())
    say_some(chain.from_iterable(odd), reporter)
    return replace(way, volumes=measured)


def report_lost(
    used: Normalization, measured: Mapping[str, VolumeStatistics], remedy: str, reporter: Reporter
) -> None:
    """Report volumes that global statistics leave little of."""
    lost = (
        lost_values(used.scheme, used.channels, own, name, remedy) for name, own in measured.items()
    )
    say_some(chain.from_iterable(lost), reporter)


def choose(volumes: Sequence[TaskVolume], measured: Mapping[str, VolumeStatistics]) -> Choice:
    """Whether these training volumes are measured together or each by itself."""
    shown = [calibration(volume.inputs, measured[volume.name]) for volume in volumes]
    figures = {_array_key(volume.inputs): moments(measured[volume.name]) for volume in volumes}
    return Choice.of(figures, shown[0] if shown and None not in shown else None)


def other_choice(used: Normalization, inputs: Sequence[Volume]) -> str | None:
    """In a line, that `auto` would have chosen otherwise with this input among the training volumes."""
    if used.choice is None or not used.choice.may_change():
        return None
    found = used.of_volume(inputs, inputs[0].box)
    now = used.choice.with_volume(_array_key(inputs), found, inputs)
    if now.per == used.per:
        return None
    return (
        f"note: {inputs[0].shown}: among the training volumes it would have made normalization "
        f'"per": "{now.per}", and it is "{used.per}": {now.reason}'
    )


def _array_key(inputs: Sequence[Volume]) -> str:
    return " ".join(array.identity for array in inputs)


def measure_volumes(
    way: Normalization, volumes: Sequence[TaskVolume], regions: Sequence[Box | None]
) -> tuple[dict[str, VolumeStatistics], list[list[Accumulator]]]:
    """The statistics of each volume, by name, and what was measured of each training region.

    Parts of the same arrays are one volume. Its statistics are of what is trained on, if anything
    is; what is validated on stays unseen.
    """
    groups: dict[str, list[tuple[TaskVolume, Box | None]]] = {}
    for volume, region in zip(volumes, regions, strict=True):
        groups.setdefault(_array_key(volume.inputs), []).append((volume, region))
    found, kept = dict[str, VolumeStatistics](), list[list[Accumulator]]()
    most = SAMPLED_VALUES // max(sum(region is not None for region in regions), 1)
    for group in groups.values():
        trained = [(volume.inputs, region) for volume, region in group if region is not None]
        every = [(volume.inputs, volume.region) for volume, _ in group]
        measured = [way.measure(*part) for part in trained or every]
        stats = way.of_measured(measured)
        found |= {volume.name: stats for volume, _ in group}
        if trained:
            for channel in (channel for part in measured for channel in part):
                channel.thin(most)  # of many volumes the samples would fill the memory
            kept += measured
    return found, kept


def _without_nan(image: np.ndarray) -> np.ndarray:
    """The same, with 0 for NaN; changed in place."""
    np.copyto(image, 0, where=np.isnan(image))
    return image


def _scaled(values: np.ndarray, scheme: Scheme, stat: ChannelStatistics) -> np.ndarray:
    """One channel, float32 or float64, changed in place."""
    if scheme in ("ct", "percentile"):
        np.clip(values, stat.low, stat.high, out=values)
    offset, spread = _linear(scheme, stat)
    values -= offset
    if spread != 1:
        values /= spread
    return values


def _linear(scheme: Scheme, stat: ChannelStatistics) -> tuple[float, float]:
    """What is subtracted, and what then divides."""
    if scheme == "zscore":
        offset, spread = stat.mean, stat.sd
    elif scheme == "ct":
        offset, spread = stat.clipped_mean, stat.clipped_sd
    elif scheme == "minmax":
        offset, spread = stat.minimum, stat.maximum - stat.minimum
    else:
        offset, spread = stat.low, stat.high - stat.low
    # The deviation of a constant may be the rounding error of its mean.
    return offset, spread if spread > 0 and not stat.is_constant else 1.0
