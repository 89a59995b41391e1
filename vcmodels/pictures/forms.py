"""Colours of predictions and labels by the form in which they are compared, whatever their target."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vcmodels.comparison import Compared
from vcmodels.targets.multiclass import COLOURS
from vcmodels.targets.regression import grey_picture, shown_channels, span_of
from vcmodels.targets.vector_math import longest_of

SHORTEST = 1e-3
"""Of a vector that has a direction."""
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class FormDrawing:
    """A `Drawing` of what metrics compare."""

    form: Compared
    channels: int = 1
    """Of the prediction: how many masks, classes or values."""
    value_range: tuple[float, float] | None = None
    """What is drawn darkest and brightest of values and vectors; by default what a slice holds."""

    @property
    def drawn_as(self) -> Literal["colours", "outlines"]:
        """Single masks, classes and instances have regions."""
        has_regions = self.form in ("classes", "instances")
        is_mask = self.form == "masks" and self.channels == 1
        return "outlines" if has_regions or is_mask else "colours"

    def as_prediction(self, label: Tensor) -> Tensor:
        """Class indices as probabilities; all else as it is."""
        if self.form != "classes":
            return label
        return (label == torch.arange(self.channels).view(-1, 1, 1, 1)).float()

    @property
    def has_scale(self) -> bool:
        """Whether a value has the same colour in every picture; else `on_scale_of` makes it so."""
        return self.form not in ("values", "vectors") or self.value_range is not None

    def on_scale_of(self, values: np.ndarray) -> "FormDrawing":
        """The drawing on one scale, which spans some values or vectors (P, ...)."""
        if self.has_scale:
            return self
        is_vectors = self.form == "vectors"
        span = (0.0, longest_of(values)) if is_vectors else span_of(shown_channels(values))
        return replace(self, value_range=span)

    def picture(self, prediction: np.ndarray) -> np.ndarray:
        """A slice (P, H, W) as colours (H, W, 3) float32 in [0, 1].

        Masks and values are grey, or the first three red, green and blue; values span
        `value_range`, or what is given. Directions have |x|, |y| and |z| as red, green and blue, so that an axis and its
        opposite look alike; the colours of vectors fade with their length.
        """
        if self.form == "instances":
            return id_colours(prediction[0])
        values = np.nan_to_num(prediction.astype(np.float32), posinf=0.0, neginf=0.0)
        if self.form == "classes":
            index = values.argmax(0)
            return COLOURS[np.where(index == 0, 0, (index - 1) % (len(COLOURS) - 1) + 1)]
        if self.form in ("directions", "vectors"):
            return self._vectors(values)
        return grey_picture(values, self.on_scale_of(values).value_range or (0.0, 1.0))

    def _vectors(self, values: np.ndarray) -> np.ndarray:
        colours = np.moveaxis(np.abs(values[::-1]), 0, -1)
        length = np.linalg.norm(colours, axis=-1, keepdims=True)
        _, longest = self.on_scale_of(values).value_range or (0.0, 1.0)
        share = length if self.form == "vectors" else (length > SHORTEST).astype(np.float32)
        unit = colours / np.maximum(length, 1e-12)
        return np.clip(unit * share / max(longest, 1e-12), 0, 1).astype(np.float32)


def id_colours(ids: np.ndarray) -> np.ndarray:
    """A bright colour of its own for each id, (H, W) -> (H, W, 3) float32; 0 is black.

    The colour depends on the id alone, so that it stays from slice to slice; two ids hardly ever
    share one.
    """
    mixed = (ids.astype(np.int64).view(np.uint64) + np.uint64(1)) * _MIX
    mixed ^= mixed >> np.uint64(31)
    hue = 6 * _share(mixed, 0, 24)
    strength, light = 0.6 + 0.4 * _share(mixed, 24, 12), 0.75 + 0.25 * _share(mixed, 36, 12)
    # From hue, saturation and value: each of red, green and blue is a trapezium over the hue.
    turned = [(start + hue) % 6 for start in (5, 3, 1)]
    colours = [light - light * strength * np.clip(np.minimum(k, 4 - k), 0, 1) for k in turned]
    return np.where((ids != 0)[..., None], np.stack(colours, axis=-1), 0).astype(np.float32)


def _share(values: np.ndarray, low: int, bits: int) -> np.ndarray:
    """Some of the bits of uint64 values as a number in [0, 1)."""
    return ((values >> np.uint64(low)) & np.uint64(2**bits - 1)).astype(np.float64) / 2**bits
