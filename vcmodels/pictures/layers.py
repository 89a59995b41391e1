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


class Values(NamedTuple):
    """One slice of a prediction or a label."""

    values: np.ndarray
    """(P, H, W) of a prediction, (L, H, W) of a label, as a drawing takes them."""
    counts: np.ndarray
    """(H, W) bool."""


@dataclass(frozen=True)
class Source:
    """Where the slices of a prediction or a label come from."""

    levels: tuple[Readable, ...]
    """From the finest on."""
    values: Callable[[np.ndarray], Values]
    """What a slice (C, H, W) of a level holds."""


@dataclass(frozen=True)
class Layer:
    """A prediction, its label, or both."""

    name: str
    drawing: Drawing
    prediction: Source | None = None
    label: Source | None = None


@dataclass(frozen=True)
class Subject:
    """What there is to draw: an image, and layers on its grid."""

    layers: tuple[Layer, ...]
    box: Box
    """What is shown."""
    extent: Shape
    """Of the whole volume."""
    spacing: Spacing
    image: Volume | None = None


def predicted(array: Volume, target: Target) -> Source:
    """A stored prediction, which its target decodes."""

    def values(stored: np.ndarray) -> Values:
        decoded = target.decode(stored[:, None])[:, 0]
        return Values(decoded, np.ones(decoded.shape[1:], bool))

    return Source(readable_levels(array), values)


def labelled(label: Label) -> Source:
    """A label of a task; it is read with what it is derived from, so without coarser levels."""

    def read(box: Box) -> np.ndarray:
        values, valid = label.read(box)
        counts = np.logical_or.reduce(valid)[None]
        return np.concatenate([values, counts.astype(values.dtype)])

    array = label.stored.array
    levels = (Readable(read, array.extent, array.chunks),)
    return Source(levels, lambda stored: Values(stored[:-1], stored[-1] > 0))


def plain(array: Volume, target: Target, *, as_prediction: bool = False) -> Source:
    """An array whose values are those of a label of some kind.

    Args:
        array: as it is stored.
        target: of the kind.
        as_prediction: draw it as what was predicted.

    Reading a slice raises RunError where a value is none of the kind.
    """

    def values(stored: np.ndarray) -> Values:
        try:
            label, valid = target.read_label(stored[:, None])
        except LabelError as error:
            found = f"holds {error.value}, which this kind cannot have"
            remedy = "give another --kind, or for a mask --foreground"
            raise RunError(array.location, found, remedy) from error
        counts, label = np.logical_or.reduce(valid)[0], label[:, 0]
        return Values(as_predicted(target, label) if as_prediction else label, counts)

    return Source(readable_levels(array), values)


IDS = FormDrawing("instances")
"""How instances are drawn, and classes of which nothing but the number is known."""


def ids(array: Volume) -> Source:
    """An array of ids."""

    def values(stored: np.ndarray) -> Values:
        return Values(stored[:1].astype(np.int64), np.ones(stored.shape[1:], bool))

    return Source(readable_levels(array), values)
