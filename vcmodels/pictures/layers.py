"""What is drawn over an image: predictions and labels, and how their stored values become colours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vcmodels.data.labels import Label
from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box, Shape, Spacing
from vcmodels.pictures.forms import FormDrawing
from vcmodels.pictures.planes import Readable, readable_levels
from vcmodels.pictures.slices import Drawing, as_predicted
from vcmodels.targets.base import Target
from vcmodels.targets.stored import LabelError
from vcmodels.volumes import Volume


class SliceValues(NamedTuple):
    """One slice of a prediction or a label."""

    values: np.ndarray
    """(P, H, W) of a prediction, (L, H, W) of a label, as a drawing takes them."""
    counts: np.ndarray
    """(H, W) bool."""


@dataclass(frozen=True)
class SliceSource:
    """Where the slices of a prediction or a label come from."""

    levels: tuple[Readable, ...]
    """From the finest on."""
    values: Callable[[np.ndarray], SliceValues]
    """What a slice (C, H, W) of a level holds."""


@dataclass(frozen=True)
class DrawnLayer:
    """A prediction, its label, or both."""

    name: str
    drawing: Drawing
    prediction: SliceSource | None = None
    label: SliceSource | None = None


@dataclass(frozen=True)
class Subject:
    """What there is to draw: an image, and layers on its grid."""

    layers: tuple[DrawnLayer, ...]
    box: Box
    """What is shown."""
    extent: Shape
    """Of the whole volume."""
    spacing: Spacing
    image: Volume | None = None


def predicted(array: Volume, target: Target) -> SliceSource:
    """A stored prediction, which its target decodes."""

    def values(stored: np.ndarray) -> SliceValues:
        decoded = target.decode(stored[:, None])[:, 0]
        return SliceValues(decoded, np.ones(decoded.shape[1:], bool))

    return SliceSource(readable_levels(array), values)


def labelled(label: Label) -> SliceSource:
    """A label of a task; it is read with what it is derived from, so without coarser levels."""

    def read(box: Box) -> np.ndarray:
        values, valid = label.read(box)
        counts = np.logical_or.reduce(valid)[None]
        return np.concatenate([values, counts.astype(values.dtype)])

    array = label.stored.array
    levels = (Readable(read, array.extent, array.chunks),)
    return SliceSource(levels, lambda stored: SliceValues(stored[:-1], stored[-1] > 0))


def plain(array: Volume, target: Target, *, as_prediction: bool = False) -> SliceSource:
    """An array whose values are those of a label of some kind.

    Args:
        array: as it is stored.
        target: of the kind.
        as_prediction: draw it as what was predicted.

    Reading a slice raises RunError where a value is none of the kind.
    """

    def values(stored: np.ndarray) -> SliceValues:
        try:
            label, valid = target.read_label(stored[:, None])
        except LabelError as error:
            found = f"holds {error.value}, which this kind cannot have"
            remedy = "give another --kind, or for a mask --foreground"
            raise RunError(array.location, found, remedy) from error
        counts, label = np.logical_or.reduce(valid)[0], label[:, 0]
        return SliceValues(as_predicted(target, label) if as_prediction else label, counts)

    return SliceSource(readable_levels(array), values)


IDS = FormDrawing("instances")
"""How instances are drawn, and classes of which nothing but the number is known."""


def ids(array: Volume) -> SliceSource:
    """An array of ids."""

    def values(stored: np.ndarray) -> SliceValues:
        return SliceValues(stored[:1].astype(np.int64), np.ones(stored.shape[1:], bool))

    return SliceSource(readable_levels(array), values)
