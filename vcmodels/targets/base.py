"""The contract of a target kind: everything the rest of the code asks of one.

A kind is one file: what its head predicts, how stored labels become tensors, how its values change
under a geometric transform, its losses and metrics, and its encoding on disk with the inverse.

Shapes: S channels stored on disk, L in the label tensor, C logits, A blended, P predicted.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from vcmodels.losses import LOSSES
from vcmodels.section import Fraction, Section

Sums = dict[str, Tensor]
"""Named sums over valid voxels (float64, on the CPU); they add over patches, blocks and ranks."""


class Target(Section):
    """Keys that every kind shares. `tr_params` fills the ones that are left out."""

    channels: Annotated[int, Field(ge=1, le=4096)] = 1
    """Channels of the head."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Factor of this target's loss in the sum over targets."""
    loss: str | dict[str, float] | None = None
    """A loss, or several with their weights; the kind's default when left out."""
    ignore_label: int | list[int] | None = None
    """Stored value(s) that mean "do not count": no gradient and no metric weight there."""
    loss_only_on_label: bool | None = None
    """Count only voxels where this target's stored label is not zero."""
    label_smoothing: Fraction | None = None
    """Pull hard labels this far towards uniform in the training loss."""
    dilate_label: Annotated[int, Field(ge=0, le=64)] | bool | None = None
    """Grow a mask by a ball of this radius in voxels (true is 1) when it is read; kind `binary`."""

    drawn_as: ClassVar[Literal["colours", "outlines"]] = "colours"
    """How people see it best: a field of colours, or regions outlined on the image."""
    metric: ClassVar[str]
    """The metric, of those that `summarise` returns, that best tells a good prediction."""
    default_loss: ClassVar[Mapping[str, float]]
    allowed_losses: ClassVar[frozenset[str]]

    @field_validator("loss")
    @classmethod
    def _check_loss(cls, loss: str | dict[str, float] | None) -> str | dict[str, float] | None:
        weights = {loss: 1.0} if isinstance(loss, str) else loss or {}
        for name in weights:
            if name not in cls.allowed_losses:
                allowed = ", ".join(sorted(cls.allowed_losses))
                raise ValueError(f'no loss "{name}" for this kind; choose from {allowed}')
        if loss is not None and (min(weights.values(), default=0) < 0 or not any(weights.values())):
            raise ValueError(f"loss weights must be 0 or more and not all 0, got {loss}")
        return loss

    @property
    def interpolation(self) -> Literal["nearest", "linear"]:
        """How the label is resampled by a free rotation or an elastic warp."""
        return "nearest"

    @property
    def losses(self) -> Mapping[str, float]:
        """The losses by name with their weights."""
        if self.loss is None:
            return self.default_loss
        return {self.loss: 1.0} if isinstance(self.loss, str) else self.loss

    @property
    def stored_channels(self) -> int | None:
        """Channels of the label array on disk; None when it has no channel axis (Z, Y, X)."""
        return None

    @property
    def label_margin(self) -> int:
        """Voxels around a patch that `read_label` needs to be right up to the border."""
        return 0

    @abstractmethod
    def read_label(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Turn stored values into what the loss takes.

        Args:
            stored: (S, Z, Y, X), the dtype on disk; S is 1 without a channel axis.

        Returns:
            label: (L, Z, Y, X) float32, finite everywhere, 0 where not valid.
            valid: (1, Z, Y, X) bool; false on the ignore label, on NaN, and where the kind's own
                code for "unlabelled" stands. `loss_only_on_label` is honoured here.

        Raises:
            ValueError: a value that the kind cannot have; the message names it and its (z, y, x).
        """

    def turn(self, label: Tensor, jacobian: Tensor) -> Tensor:
        """Change the *values* of a label whose voxels have already been moved.

        Args:
            label: (L, Z, Y, X) float32.
            jacobian: (3, 3), or (3, 3, Z, Y, X), of the sampling map (output position -> input
                position) in physical units, axes (z, y, x).

        Returns:
            The label in the turned frame. Scalars do not change; vectors override this.
        """
        del jacobian
        return label

    def compute_loss(self, logits: Tensor, label: Tensor, valid: Tensor) -> Tensor:
        """The weighted sum of this target's losses over the valid voxels.

        Args:
            logits: (B, C, Z, Y, X) float32.
            label: (B, L, Z, Y, X) float32, as from `read_label`.
            valid: (B, 1, Z, Y, X) bool.

        Returns:
            Scalar float32; 0 with zero gradient when no voxel is valid.
        """
        smoothing = self.label_smoothing or 0.0
        terms = [
            weight * LOSSES[name](logits, label, valid, label_smoothing=smoothing)
            for name, weight in self.losses.items()
        ]
        return torch.stack(terms).sum()

    @abstractmethod
    def blendable(self, logits: Tensor) -> Tensor:
        """What overlapping patches may average: (B, C, Z, Y, X) logits -> (B, A, Z, Y, X) float32."""

    def unblend(self, blended: Tensor) -> Tensor:
        """The prediction, (A, Z, Y, X) or (B, A, Z, Y, X) averages -> the same with P channels."""
        return blended

    @property
    @abstractmethod
    def blend_channels(self) -> int:
        """A: how many channels `blendable` returns."""

    @abstractmethod
    def measure(self, prediction: Tensor, label: Tensor, valid: Tensor) -> Sums:
        """Sums over the valid voxels from which `summarise` computes the metrics.

        Args:
            prediction: (B, P, Z, Y, X) float32, as from `unblend` or `decode`.
            label: (B, L, Z, Y, X) float32.
            valid: (B, 1, Z, Y, X) bool.
        """

    @abstractmethod
    def summarise(self, sums: Sums) -> dict[str, float]:
        """Metrics of all that was measured; NaN where nothing was valid."""

    @abstractmethod
    def encode(self, prediction: Tensor, dtype: np.dtype) -> np.ndarray:
        """The stored form, on one fixed global scale: (P, Z, Y, X) -> (S', Z, Y, X) of `dtype`.

        Values outside the range of `dtype` are clipped, never wrapped.
        """

    @abstractmethod
    def encoding(self, dtype: np.dtype) -> dict[str, Any]:
        """Attributes that let a reader undo `encode`: JSON values, written beside the array."""

    @abstractmethod
    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Undo `encode` to within half a step: (S', Z, Y, X) -> (P, Z, Y, X) float32."""

    @abstractmethod
    def output_channels(self, dtype: np.dtype) -> int | None:
        """S': channels of the stored prediction; None when it is written as (Z, Y, X).

        Raises:
            ValueError: this kind cannot be stored as `dtype`; the message names those it can.
        """

    def as_prediction(self, label: Tensor) -> Tensor:
        """The label as a perfect prediction would be: (B, L, Z, Y, X) -> (B, P, Z, Y, X)."""
        return label

    @abstractmethod
    def picture(self, prediction: np.ndarray) -> np.ndarray:
        """A slice as colours for people: (P, H, W) float32 -> (H, W, 3) float32 in [0, 1]."""
