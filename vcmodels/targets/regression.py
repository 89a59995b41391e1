"""Continuous values (distance, probability, intensity): stored values are taken as they are.

`encoding` states a scale and offset when they are stored as codes. NaN and infinite voxels do not
count.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from vcmodels.comparison import Compared
from vcmodels.errors import FaultError
from vcmodels.losses.registry import LossBlock
from vcmodels.section import Section
from vcmodels.targets.base import Interpolation, Target
from vcmodels.targets.census import Census, Misfit
from vcmodels.targets.stored import any_channel, check_dtype, countable, refuse_first


class LinearEncoding(Section):
    """How stored codes become values: value = stored * scale + offset."""

    scale: float = 1.0
    """Factor of the stored code."""
    offset: float = 0.0
    """Added after the factor."""


def shown_channels(values: np.ndarray) -> np.ndarray:
    """Of (P, ...) values the first three, as red, green and blue, or the first."""
    return values[: 3 if len(values) >= 3 else 1]


def span_of(values: np.ndarray) -> tuple[float, float]:
    """The least and the greatest value that is finite; 0 and 1 without any."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def grey_picture(values: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    """Values (P, H, W) as grey, or as red, green and blue: (H, W, 3) float32 in [0, 1].

    Args:
        values: those that are not finite are drawn as 0 is.
        span: what is black and what is white.
    """
    low, high = span
    shown = np.nan_to_num(shown_channels(values).astype(np.float32), posinf=0.0, neginf=0.0)
    scaled = np.clip((shown - low) / max(high - low, 1e-12), 0, 1)
    return np.moveaxis(np.broadcast_to(scaled, (3, *scaled.shape[1:])), 0, -1)


def outside_unit(
    census: Census, ignored: Sequence[int], code: LinearEncoding, who: str
) -> Iterator[Misfit]:
    """Values outside of [0, 1], where something takes no others."""
    ends = [end for end in census.range(ignored) if np.isfinite(end)]
    outside = [end for end in ends if not 0 <= np.float32(end) * code.scale + code.offset <= 1]
    if outside:
        low, high = ends
        found = f"holds values from {low:g} to {high:g}, and {who} takes [0, 1]"
        scale = f"{1 / high:.8g}" if high > 1 else "..."
        remedy = f'give "encoding": {{"scale": {scale}}}, or "ignore_label"'
        yield Misfit(found, remedy, value=outside[0])


class RegressionTarget(Target):
    """One or several continuous values for each voxel."""

    kind: Literal["regression"] = "regression"
    """Continuous values, one per channel."""
    activation: Literal["none", "sigmoid"] = "none"
    """Applied to the output, in training too: `sigmoid` keeps it in [0, 1]."""
    label_encoding: Annotated[LinearEncoding, Field(alias="encoding")] = LinearEncoding()
    """How stored labels become values; as they are when left out."""
    output_range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """[low, high] that integer outputs span; [0, 1] with a sigmoid, otherwise required for them."""

    metric: ClassVar[str] = "mae"
    default_interpolation: ClassVar[Interpolation] = "linear"
    default_loss: ClassVar[LossBlock] = {"smooth_l1": 1.0}
    predicts: ClassVar[Compared] = "values"
    excluded_metrics: ClassVar[frozenset[str]] = frozenset({"correlation", "sign_accuracy"})

    @model_validator(mode="after")
    def _check_range_and_loss(self) -> Self:
        if self.output_range and self.output_range[0] >= self.output_range[1]:
            raise ValueError(f"output_range must be [low, high], got {self.output_range}")
        if self._has_bce and self.activation != "sigmoid":
            raise FaultError('loss "bce" regresses probabilities', 'it needs activation "sigmoid"')
        return self

    @property
    def stored_channels(self) -> int | None:
        return None if self.channels == 1 else self.channels

    def read_label(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The value, stored * scale + offset; a voxel that is not finite everywhere does not count."""
        valid = countable(stored, self.ignored, self.loss_only_on_label)
        with np.errstate(over="ignore", invalid="ignore"):
            label = stored.astype(np.float32)
            if self.label_encoding != LinearEncoding():
                label *= np.float32(self.label_encoding.scale)
                label += np.float32(self.label_encoding.offset)
        if stored.dtype.kind == "f":  # A float64 may be finite and its float32 not.
            valid &= ~any_channel(~np.isfinite(label))
        if self._has_bce:
            outside = any_channel((label < 0) | (label > 1)) & valid
            if outside.any():
                remedy = 'loss "bce" takes labels in [0, 1]; give "encoding": {"scale": ...}'
                refuse_first(outside, stored, remedy)
        return np.where(valid, label, np.float32(0)), valid

    def stored_misfits(self, census: Census) -> Iterator[Misfit]:
        """Values that loss `bce` does not take."""
        if self._has_bce:
            yield from outside_unit(census, self.ignored, self.label_encoding, 'loss "bce"')

    def loss_input(self, loss: str, logits: Tensor) -> Tensor:
        """The activated output; `bce` takes the logits, for it applies the sigmoid itself."""
        return logits if loss == "bce" else self.blendable(logits)

    def blendable(self, logits: Tensor) -> Tensor:
        """The values themselves."""
        return logits.float().sigmoid() if self.activation == "sigmoid" else logits.float()

    @property
    def deviation_scale(self) -> tuple[float, str]:
        low, high = self.value_range
        return (high - low) / 2 * self.channels**0.5, "value"

    @property
    def meaning(self) -> dict[str, Any]:
        return {"quantity": "value"}

    @property
    def value_range(self) -> tuple[float, float]:
        """`output_range`."""
        low, high = self.output_range or (0.0, 1.0)
        return low, high

    def output_channels(self, dtype: np.dtype) -> int | None:
        if self.output_range is None and self.activation == "none":
            why = 'integers need "output_range": [low, high]'
            check_dtype(dtype, ("float16", "float32"), why)
        return super().output_channels(dtype)

    @property
    def has_scale(self) -> bool:
        """With an `output_range` or a sigmoid."""
        return self.output_range is not None or self.activation == "sigmoid"

    def on_scale_of(self, values: np.ndarray) -> Self:
        """From the least to the greatest value of the channels that are shown."""
        if self.has_scale:
            return self
        return self.model_copy(update={"output_range": [*span_of(shown_channels(values))]})

    def picture(self, prediction: np.ndarray) -> np.ndarray:
        """Grey over `output_range`, or over the slice's own range; 3 or more channels as RGB."""
        return grey_picture(prediction, self.on_scale_of(prediction).value_range)

    def unreadable(self, writer: Target) -> str | None:
        """All numbers are, probabilities too, but for class values and vectors."""
        if writer.is_categorical or writer.predicts in ("directions", "vectors"):
            return f'no label of kind "{self.kind_name}"'
        same = writer.channels == self.channels
        return None if same else f"it has {writer.channels} channels, the target {self.channels}"

    @property
    def _has_bce(self) -> bool:
        return any(term.name == "bce" for term in self.losses)
