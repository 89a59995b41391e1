"""Which values of a stored volume a file gets: codes of probabilities, classes, ids, and their type."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vcmodels.errors import OutputError
from vcmodels.formats.outgoing import Exporter
from vcmodels.geometry.grid import tiles
from vcmodels.volumes import Volume

DTYPE, THRESHOLD = "--dtype", "--threshold"
_CLOSEST = {"bool": "uint8", "float16": "float32"}
"""What a format without a type has instead of it."""
Convert = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class StoredOutput:
    """What is known of the values of a volume."""

    volume: Volume
    scale: tuple[float, float] | None = None
    """That make values of codes; None where values are stored as they are."""
    zero_code: int | None = None
    """Stored in all channels where there is no vector."""
    is_label: bool = False
    """Whether values are classes or ids."""
    is_mask: bool = False
    """Whether every value but 0 means true."""
    is_probability: bool = False
    """Of one thing, from 0 to 1."""

    def decoded(self, stored: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """What codes mean, as floats."""
        slope, offset = self.scale or (1.0, 0.0)
        values = stored.astype(np.float64) * slope + offset
        if self.zero_code is not None:
            values *= (stored != self.zero_code).any(axis=0, keepdims=True)
        return values.astype(dtype)


@dataclass(frozen=True)
class FileValues:
    """What the file gets: the type of voxels, how they come from the stored ones, and their scale."""

    dtype: np.dtype[Any]
    convert: Convert
    scale: tuple[float, float] | None = None
    is_label: bool = False
    note: str = ""
    """What a person may not expect."""


def stored_meaning(volume: Volume, notes: Mapping[str, Any], *, is_label: bool) -> StoredOutput:
    """What is known of the values of a volume by what was noted when it was written.

    Args:
        volume: with all its channels.
        notes: of vcmodels, on its group; empty for any other volume.
        is_label: whether its store, or file, says that values are labels.
    """
    encoding = notes.get("encoding") or {}
    kind = encoding.get("kind", notes.get("kind"))
    if "step" in notes and kind == "binary":
        return StoredOutput(volume, is_label=True, is_mask=True)
    scale = (float(encoding.get("scale", 1)), float(encoding.get("offset", 0)))
    is_class = kind == "instances" or encoding.get("quantity") == "class"
    return StoredOutput(
        volume,
        None if scale == (1, 0) else scale,
        encoding.get("zero_code"),
        is_label or is_class,
        is_probability=encoding.get("quantity") == "probability" and volume.channels == 1,
    )


def given_values(
    stored: StoredOutput, exporter: Exporter, dtype: np.dtype[Any] | None, threshold: float | None
) -> FileValues:
    """What a file gets of a volume.

    Labels get the smallest unsigned type that holds them. Codes of probabilities stay codes where
    the format can say slope and intercept, and else become float32; those of vectors always do. All
    else is as it is stored, if the format has that type.

    Args:
        stored: the volume.
        exporter: of the format.
        dtype: that is wanted; None for the rule above.
        threshold: values from which on a voxel is 1, and else 0; None for the values themselves.

    Raises:
        OutputError: the type cannot hold the values, or the format has none for them.
    """
    if threshold is not None:
        return _mask(stored, threshold, exporter, dtype)
    if stored.is_label and stored.volume.dtype.kind != "f":
        return _labels(stored, exporter, dtype)
    if stored.scale is not None:
        return _codes(stored, stored.scale, exporter, dtype)
    return _plain(stored.volume, exporter, dtype)


def _mask(
    stored: StoredOutput, threshold: float, exporter: Exporter, dtype: np.dtype[Any] | None
) -> FileValues:
    if stored.is_label or stored.zero_code is not None:
        remedy = "leave it out"
        raise OutputError(THRESHOLD, "what is exported holds classes, ids or vectors", remedy)
    wanted = np.dtype(np.uint8) if dtype is None else dtype
    _require_type(wanted, exporter)

    def convert(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return (stored.decoded(values, np.dtype(np.float64)) >= threshold).astype(wanted)

    return FileValues(wanted, convert, is_label=True)


def _labels(stored: StoredOutput, exporter: Exporter, dtype: np.dtype[Any] | None) -> FileValues:
    low, high = (0, 1) if stored.is_mask else value_range(stored.volume)
    wanted = dtype or _smallest(low, high)
    _require_type(wanted, exporter)
    if wanted.kind not in "ui" or not _holds(wanted, low, high):
        found = f"labels from {low:g} to {high:g} are no {wanted.name}"
        raise OutputError(DTYPE, found, "leave it out: the smallest type that holds them is taken")

    def convert(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return (values != 0).astype(wanted) if stored.is_mask else values.astype(wanted)

    return FileValues(wanted, convert, is_label=True)


def _smallest(low: int, high: int) -> np.dtype[Any]:
    """The smallest type that holds a range, unsigned where nothing is below 0."""
    if low >= 0:
        return np.min_scalar_type(high)
    return np.dtype(
        next(d for d in (np.int8, np.int16, np.int32, np.int64) if _holds(np.dtype(d), low, high))
    )


def _codes(
    stored: StoredOutput,
    scale: tuple[float, float],
    exporter: Exporter,
    dtype: np.dtype[Any] | None,
) -> FileValues:
    own = stored.volume.dtype
    keeps = dtype == own or (dtype is None and exporter.keeps_scale and stored.zero_code is None)
    if keeps:
        _require_type(own, exporter)
        note = f"a voxel v means {scale[0]:.6g} v {scale[1]:+.6g}, which the file does not say"
        return FileValues(
            own, _unchanged, scale if exporter.keeps_scale else None,
            note="" if exporter.keeps_scale else note,
        )  # fmt: skip
    wanted = np.dtype(np.float32) if dtype is None else dtype
    _require_type(wanted, exporter)
    if wanted.kind != "f":
        found = f"values are stored as codes of {own.name}, and {wanted.name} would be others"
        raise OutputError(DTYPE, found, f"give float32, or {own.name} for the codes")
    return FileValues(wanted, lambda values: stored.decoded(values, wanted))


def _plain(volume: Volume, exporter: Exporter, dtype: np.dtype[Any] | None) -> FileValues:
    own = volume.dtype
    closest = own if own.name in exporter.dtypes else np.dtype(_CLOSEST.get(own.name, own.name))
    wanted = closest if dtype is None else dtype
    _require_type(wanted, exporter)
    is_narrower = wanted.kind in "ui" and not np.can_cast(own, wanted)
    if is_narrower and (own.kind == "f" or not _holds(wanted, *value_range(volume))):
        found = f"values of {own.name} are no {wanted.name}"
        raise OutputError(DTYPE, found, "leave it out, or give float32")
    return FileValues(wanted, lambda values: values.astype(wanted))


def _unchanged(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return values


def _require_type(dtype: np.dtype[Any], exporter: Exporter) -> None:
    if dtype.name not in exporter.dtypes:
        found = f"a file of {exporter.name} holds no {dtype.name}"
        raise OutputError(DTYPE, found, f"give one of {', '.join(exporter.dtypes)}")


def _holds(dtype: np.dtype[Any], low: float, high: float) -> bool:
    limits = np.iinfo(dtype)
    return bool(limits.min <= low and high <= limits.max)


def value_range(volume: Volume) -> tuple[int, int]:
    """The least and the largest whole number of a volume; all of it is read, unless it is of uint8.

    Chunks that are not stored count as the fill value.
    """
    if volume.dtype.kind == "b":
        return 0, 1
    if volume.dtype == np.uint8:  # no type is smaller
        return 0, 255
    low, high = [], []
    for box in tiles(volume.box, volume.chunks):
        values = volume.read(box) if volume.is_stored(box) else np.array(volume.fill_value)
        low.append(int(values.min()))
        high.append(int(values.max()))
    return min(low), max(high)
