"""A heat map of instance centres: 1 at a centre, falling off as a Gaussian.

It is read as stored, or derived from instance ids. A voxel near several centres takes the largest.
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from vcmodels.comparison import Compared
from vcmodels.errors import FaultError
from vcmodels.fields.distance import Labelled
from vcmodels.fields.instances import Lengths, centre_heat, heat_reach
from vcmodels.geometry.boxes import Shape, Spacing, triple
from vcmodels.losses.registry import LossBlock
from vcmodels.section import Extent, PatchShape
from vcmodels.targets.base import Interpolation, Target
from vcmodels.targets.census import Census, Misfit
from vcmodels.targets.regression import LinearEncoding, outside_unit
from vcmodels.targets.stored import countable, refuse_first


class PieceTarget(Target):
    """A label that may follow from where instances have their centres."""

    max_extent: Extent | PatchShape | None = None
    """With `derive`: length of the longest instance in voxels, for all axes or (z, y, x). Longer
    ones do not count: no patch shows where their centre is."""
    keep_cut: bool = False
    """With `derive`: count instances that end at the border of the volume or at ignored voxels, as
    if what is seen were all of them."""

    is_derivable: ClassVar[bool] = True

    @model_validator(mode="after")
    def _check_extent(self) -> Self:
        if self.derive is not None and self.max_extent is None:
            found = "derive needs to know how long an instance may be"
            raise FaultError(found, 'give "max_extent" in voxels')
        if self.derive is None and (self.max_extent is not None or self.keep_cut):
            raise FaultError(
                "max_extent and keep_cut are of use with derive only", "leave them out"
            )
        return self

    @property
    def longest(self) -> Shape:
        """`max_extent` along (z, y, x); 0 when nothing is derived."""
        extent = self.max_extent or 0
        return (extent, extent, extent) if isinstance(extent, int) else extent


class CentresTarget(PieceTarget):
    """How near a centre is, from 0 to 1."""

    kind: Literal["centres"] = "centres"
    """A heat map of the centres of instances."""
    channels: Annotated[int, Field(ge=1, le=1)] = 1
    """Channels of the head."""
    activation: Literal["sigmoid"] = "sigmoid"
    """Applied to the output."""
    label_encoding: Annotated[LinearEncoding, Field(alias="encoding")] = LinearEncoding()
    """How stored labels become values in [0, 1]; as they are when left out."""
    sigma: Annotated[float, Field(gt=0, le=1e6)] = 2.0
    """With `derive`: width of the Gaussian around a centre; it ends at 3 sigma along each axis."""
    sigma_units: Literal["voxels", "physical"] = "voxels"
    """Whether `sigma` counts voxels along each axis, or is a length in the unit of the spacing."""

    metric: ClassVar[str] = "correlation"
    default_interpolation: ClassVar[Interpolation] = "linear"
    # The slope of l2 through a sigmoid vanishes where the network is sure that there is no centre,
    # which is nearly everywhere.
    default_loss: ClassVar[LossBlock] = {"bce": 1.0}
    predicts: ClassVar[Compared] = "values"
    # The first leads to the median, which is 0 nearly everywhere; the second is half of l2 in [0, 1].
    excluded_losses: ClassVar[frozenset[str]] = frozenset({"l1", "smooth_l1"})
    excluded_metrics: ClassVar[frozenset[str]] = frozenset(
        {"rmse", "sign_accuracy", "median_error", "p90_error", "p95_error"}
    )

    @model_validator(mode="after")
    def _check_keys_fit(self) -> Self:
        if self.derive is not None and self.label_encoding != LinearEncoding():
            raise FaultError("what is derived has no encoding", "leave it out")
        if self.derive is None and (self.sigma, self.sigma_units) != (2.0, "voxels"):
            raise FaultError("sigma is of use with derive only", "leave it out")
        return self

    def read_label(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The value in [0, 1], stored * scale + offset; NaN does not count."""
        valid = countable(stored, self.ignored, self.loss_only_on_label)
        code = self.label_encoding
        with np.errstate(over="ignore", invalid="ignore"):
            label = stored.astype(np.float32) * np.float32(code.scale) + np.float32(code.offset)
        outside = ((label < 0) | (label > 1)) & valid
        if outside.any():
            refuse_first(
                outside, stored, 'a heat map is in [0, 1]; give "encoding": {"scale": ...}'
            )
        return np.where(valid, label, np.float32(0)), valid

    def stored_misfits(self, census: Census) -> Iterator[Misfit]:
        """Values that are no heat."""
        yield from outside_unit(census, self.ignored, self.label_encoding, "a heat map")

    def source_margin(self, spacing: Spacing) -> Shape:
        reach = heat_reach(self._sigma(spacing))
        return triple(extent + r for extent, r in zip(self.longest, reach, strict=True))

    def derive_label(self, source: Tensor, valid: Tensor, spacing: Spacing) -> Labelled:
        """Gaussians around the centres of the connected pieces of instances; see `fields.instances`."""
        margin, sigma = self.source_margin(spacing), self._sigma(spacing)
        return centre_heat(source, valid, sigma, self.longest, margin, keep_cut=self.keep_cut)

    def loss_input(self, loss: str, logits: Tensor) -> Tensor:
        """Logits for `bce`, probabilities for `l2`."""
        return logits if loss == "bce" else self.blendable(logits)

    def blendable(self, logits: Tensor) -> Tensor:
        """The heat."""
        return logits.float().sigmoid()

    @property
    def meaning(self) -> dict[str, Any]:
        return {"quantity": "heat"}

    def picture(self, prediction: np.ndarray) -> np.ndarray:
        """Heat as grey."""
        grey = np.clip(np.nan_to_num(prediction[0].astype(np.float32)), 0, 1)
        return np.repeat(grey[..., None], 3, axis=-1)

    def _sigma(self, spacing: Spacing) -> Lengths:
        """Width of the Gaussian along (z, y, x), in voxels."""
        if self.sigma_units == "voxels":
            return self.sigma, self.sigma, self.sigma
        z, y, x = spacing
        return self.sigma / z, self.sigma / y, self.sigma / x
