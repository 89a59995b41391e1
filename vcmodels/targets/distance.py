"""Distances to the surface of a mask or of instances, in the unit of the spacing.

The distance of a voxel is measured from its centre to the nearest face between a voxel of its own
side and one of the other. Labels are cut at `clip`, and divided by it for the network.
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from vcmodels.comparison import Compared
from vcmodels.errors import FaultError
from vcmodels.fields.distance import Labelled, inner, known_distance, voxels_within
from vcmodels.geometry.boxes import Shape, Spacing
from vcmodels.losses.agreement import value_distance
from vcmodels.losses.registry import LossBlock
from vcmodels.metrics.base import Metrics
from vcmodels.targets.base import Interpolation, Target
from vcmodels.targets.census import Census, Misfit
from vcmodels.targets.regression import LinearEncoding
from vcmodels.targets.stored import any_channel, countable


class DistanceTarget(Target):
    """How far away the surface is, up to `clip`."""

    kind: Literal["distance"] = "distance"
    """Distance to the nearest surface, signed by the side of it or not."""
    channels: Annotated[int, Field(ge=1, le=1)] = 1
    """Channels of the head."""
    activation: Literal["none", "tanh"] = "none"
    """Applied to the output, in training too: `tanh` keeps it within `clip`."""
    clip: Annotated[float, Field(gt=0, le=1e9)]
    """The largest distance, in the unit of the spacing; farther ones count as this one. The network
    learns distance / clip."""
    signed: bool = True
    """Whether one side has negative distances; otherwise both have positive ones."""
    positive: Literal["outside", "inside"] = "outside"
    """The side with positive distances when `signed`; the inside is what is not background."""
    surface_of: Literal["mask", "instances"] = "mask"
    """With `derive`: whether instances that touch have a surface between them."""
    label_encoding: Annotated[LinearEncoding, Field(alias="encoding")] = LinearEncoding()
    """How stored labels become distances in the unit of the spacing; as they are when left out."""

    metric: ClassVar[str] = "mae"
    default_interpolation: ClassVar[Interpolation] = "linear"
    default_loss: ClassVar[LossBlock] = {"l1": 1.0}
    predicts: ClassVar[Compared] = "values"
    # A signed distance is no probability.
    excluded_losses: ClassVar[frozenset[str]] = frozenset({"bce"})
    excluded_metrics: ClassVar[frozenset[str]] = frozenset({"correlation", "rmse"})
    is_derivable: ClassVar[bool] = True

    @model_validator(mode="after")
    def _check_keys_fit(self) -> Self:
        if not self.signed and self.positive != "outside":
            raise FaultError('"positive" is of use with signed distances only', "leave it out")
        if self.derive is None and self.surface_of != "mask":
            raise FaultError('"surface_of" is of use with derive only', "leave it out")
        if self.derive is not None and self.label_encoding != LinearEncoding():
            raise FaultError("what is derived has no encoding", "leave it out")
        return self

    def read_label(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(stored * scale + offset) / clip, cut to [-1, 1] (unsigned: [0, 1]); NaN does not count."""
        valid = countable(stored, self.ignored, self.loss_only_on_label)
        factor = np.float32(self.label_encoding.scale / self.clip)
        with np.errstate(over="ignore", invalid="ignore"):
            label = stored.astype(np.float32) * factor
            label += np.float32(self.label_encoding.offset / self.clip)
        valid &= ~any_channel(np.isnan(label))
        return np.where(valid, np.clip(label, self._lowest, 1), np.float32(0)), valid

    def stored_misfits(self, census: Census) -> Iterator[Misfit]:
        """Negative values of a distance that has no sign, which would be cut to 0."""
        code, ends = self.label_encoding, census.range(self.ignored)
        lowest, end = min((np.float32(e) * code.scale + code.offset, e) for e in ends)
        if not self.signed and -np.inf < lowest < 0:
            found = f"holds {end:g}, a negative distance, and is not signed"
            remedy = f'give "signed": true, or "ignore_label": {end:g} if it means unlabelled'
            yield Misfit(found, remedy, value=end)

    def source_margin(self, spacing: Spacing) -> Shape:
        return voxels_within(self.clip, spacing)

    def derive_label(self, source: Tensor, valid: Tensor, spacing: Spacing) -> Labelled:
        """The distance over `clip`; not valid where something unknown is nearer than the surface."""
        ids = source if self.surface_of == "instances" else (source != 0).float()
        distance, counts = known_distance(ids, valid, spacing, self.clip)
        distance /= self.clip
        if self.signed:
            is_inside = inner(source, self.source_margin(spacing)) != 0
            negative = ~is_inside if self.positive == "inside" else is_inside
            distance = torch.where(negative, -distance, distance)
        return distance, counts

    def turn(self, label: Tensor, valid: Tensor, jacobian: Tensor, spacing: Spacing) -> Labelled:
        """Times |det J|^(-1/3), by which the map enlarges lengths in the mean; `clip` stays.

        Exact for rotations, mirror images and the same scaling of all axes. A distance label that
        is `derive`d is right under any map.
        """
        del spacing
        growth = _determinant(jacobian).abs().clamp_min(1e-6).pow(-1 / 3).to(label)
        return torch.where(label.abs() < 1, (label * growth).clamp(-1, 1), label), valid

    def loss_input(self, loss: str, logits: Tensor) -> Tensor:
        """The activated output: distance / clip."""
        del loss
        return logits.tanh() if self.activation == "tanh" else logits

    def blendable(self, logits: Tensor) -> Tensor:
        """Distances in the unit of the spacing, cut as labels are."""
        return self.loss_input("", logits.float()).clamp(self._lowest, 1) * self.clip

    def disagreement(self, logits: Tensor, blended: Tensor) -> Tensor:
        """Of distances over `clip`, as they are learnt."""
        return value_distance(self.loss_input("", logits.float()), blended / self.clip)

    @property
    def deviation_scale(self) -> tuple[float, str]:
        return (1 - self._lowest) / 2 * self.clip, "unit of the spacing"

    def as_prediction(self, label: Tensor) -> Tensor:
        """In the unit of the spacing."""
        return label * self.clip

    def comparable(self, prediction: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Both in the unit of the spacing."""
        return prediction, label * self.clip

    @property
    def metrics(self) -> Metrics:
        """Unsigned distances have no sign that could be right."""
        found = super().metrics
        return {name: m for name, m in found.items() if self.signed or name != "sign_accuracy"}

    @property
    def meaning(self) -> dict[str, Any]:
        meaning = {"quantity": "distance", "signed": self.signed, "clip": self.clip}
        return meaning | ({"positive": self.positive} if self.signed else {})

    def unreadable(self, writer: Target) -> str | None:
        """One that was cut nearer to the surface is none."""
        if isinstance(writer, DistanceTarget) and writer.clip > self.clip:
            return super().unreadable(writer.changed(clip=self.clip))
        return super().unreadable(writer)

    @property
    def value_range(self) -> tuple[float, float]:
        """[-clip, clip], or [0, clip]."""
        return self._lowest * self.clip, self.clip

    def picture(self, prediction: np.ndarray) -> np.ndarray:
        """White at the surface, the darker the farther; signed: red if positive, blue if negative."""
        share = np.clip(np.nan_to_num(prediction[0].astype(np.float32)) / self.clip, -1, 1)
        fading = 1 - np.abs(share)
        if not self.signed:
            return np.repeat(fading[..., None], 3, axis=-1)
        return np.stack(
            [np.where(share > 0, 1, fading), fading, np.where(share < 0, 1, fading)], axis=-1
        ).astype(np.float32)

    @property
    def _lowest(self) -> int:
        """The least value of a label."""
        return -1 if self.signed else 0


def _determinant(matrix: Tensor) -> Tensor:
    """Of (3, 3) matrices, scalar, or (3, 3, Z, Y, X), (1, Z, Y, X)."""
    (a, b, c), (d, e, f), (g, h, i) = matrix
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return determinant if matrix.ndim == 2 else determinant[None]
