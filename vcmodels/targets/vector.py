"""Vectors of any length: displacements, flow to the centre of an instance, gradients.

On disk the components follow `vector_order`; in memory they are always (z, y, x), in the unit in
which they are stored. The zero vector is a value like any other; NaN means "unlabelled".
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from vcmodels.comparison import Compared
from vcmodels.errors import FaultError
from vcmodels.fields.distance import Labelled
from vcmodels.fields.instances import centre_offsets
from vcmodels.geometry.boxes import Shape, Spacing
from vcmodels.losses.registry import LossBlock
from vcmodels.targets.base import Interpolation, Target
from vcmodels.targets.census import Census
from vcmodels.targets.centres import PieceTarget
from vcmodels.targets.regression import LinearEncoding
from vcmodels.targets.stored import any_channel, check_dtype, countable
from vcmodels.targets.vector_math import (
    SHORTEST,
    apply_matrix,
    longest_of,
    push_forward,
    reordered,
    unit,
    voxel_jacobian,
)

MIDDLES = (127, 128, 32767, 32768)
"""Codes that stand for 0 in the usual encodings of unsigned integers."""


class ComponentEncoding(LinearEncoding):
    """How stored codes become components: component = stored * scale + offset."""

    zero_code: int | None = None
    """A code that means "unlabelled" where all three components hold it."""


class VectorTarget(PieceTarget):
    """Three components for each voxel, of a length that means something.

    Derived from instance ids it is the way to the centre of the instance, and 0 outside.
    """

    kind: Literal["vector"] = "vector"
    """Vectors of any length, such as displacements; unit vectors are `normals`."""
    channels: Annotated[int, Field(ge=3, le=3)] = 3
    """Channels of the head."""
    activation: Literal["none"] = "none"
    """Vectors have none."""
    vector_order: Literal["xyz", "zyx"] = "xyz"
    """Order of the stored components, in labels and in outputs."""
    transforms_as: Literal["displacement", "gradient"] = "displacement"
    """What a rotation or stretch does to the vectors: `displacement` points from one place to
    another and grows with the volume; `gradient` is a slope per length and shrinks."""
    units: Literal["physical", "voxels"] = "physical"
    """Components in the unit of the spacing, or counted in voxels along each axis (per voxel for a
    gradient); it matters when voxels are not cubes."""
    label_encoding: Annotated[ComponentEncoding, Field(alias="encoding")] = ComponentEncoding()
    """How stored labels become components; as they are when left out."""
    output_range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """[low, high] that the components span in integer outputs, which need it."""

    metric: ClassVar[str] = "endpoint_error"
    default_interpolation: ClassVar[Interpolation] = "linear"
    default_loss: ClassVar[LossBlock] = {"smooth_l1": 1.0}
    predicts: ClassVar[Compared] = "vectors"

    @model_validator(mode="after")
    def _check_keys_fit(self) -> Self:
        if self.output_range and self.output_range[0] >= self.output_range[1]:
            raise ValueError(f"output_range must be [low, high], got {self.output_range}")
        if self.derive is not None and self.label_encoding != ComponentEncoding():
            raise FaultError("what is derived has no encoding", "leave it out")
        if self.derive is not None and self.transforms_as == "gradient":
            raise FaultError("the way to a centre is no gradient", 'leave out "transforms_as"')
        return self

    @property
    def sided(self) -> Literal["values", "vectors"] | None:
        return "vectors"

    @property
    def glyph(self) -> Literal["arrow", "line"]:
        return "arrow"

    @property
    def stored_channels(self) -> int | None:
        return 3

    def read_label(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Components (z, y, x), stored * scale + offset; `zero_code` and NaN do not count."""
        code = self.label_encoding
        valid = countable(stored, self.ignored, self.loss_only_on_label)
        if code.zero_code is not None:
            valid &= any_channel(stored != code.zero_code)
        with np.errstate(over="ignore", invalid="ignore"):
            vectors = stored.astype(np.float32)
            if (code.scale, code.offset) != (1.0, 0.0):
                vectors *= np.float32(code.scale)
                vectors += np.float32(code.offset)
        valid &= ~any_channel(~np.isfinite(vectors))
        label = np.where(valid, vectors, np.float32(0))
        return np.ascontiguousarray(reordered(label, self.vector_order)), valid

    @property
    def unlabelled_codes(self) -> tuple[int, ...]:
        """Those of `ignore_label`, and `zero_code`."""
        code = self.label_encoding.zero_code
        return self.ignored if code is None else (*self.ignored, code)

    def suspects(self, census: Census) -> Mapping[float, int]:
        """Sentinels that all three components hold."""
        found = census.sentinels(self.unlabelled_codes)
        return {v: n for v, n in found.items() if v not in MIDDLES}

    def source_margin(self, spacing: Spacing) -> Shape:
        del spacing
        return self.longest

    def derive_label(self, source: Tensor, valid: Tensor, spacing: Spacing) -> Labelled:
        """The way to the centre of the connected piece of an instance; see `fields.instances`."""
        longest = self.longest
        offsets, known = centre_offsets(source, valid, longest, longest, keep_cut=self.keep_cut)
        if self.units == "physical":
            offsets *= offsets.new_tensor(spacing).view(3, 1, 1, 1)
        return offsets, known

    def turn(self, label: Tensor, valid: Tensor, jacobian: Tensor, spacing: Spacing) -> Labelled:
        """J^-1 v for displacements, J^T v for gradients; where the map folds, v does not count."""
        if self.units == "voxels":
            jacobian = voxel_jacobian(jacobian, spacing)
        if self.transforms_as == "gradient":
            return apply_matrix(label, jacobian.transpose(0, 1))[0], valid
        turned = push_forward(label, jacobian)
        if jacobian.ndim == 2:
            return turned, valid
        is_finite = turned.isfinite().all(0, keepdim=True)
        return torch.where(is_finite, turned, 0.0), valid & is_finite

    def compute_loss(
        self,
        logits: Tensor,
        label: Tensor,
        valid: Tensor,
        weight: Tensor | None = None,
        *,
        is_part: bool = False,
    ) -> Tensor:
        """As for any kind; `cosine` looks at directions, where the label has one."""
        terms = [
            term(logits, *self._aim(term.name, label, valid), weight, 0.0, is_part=is_part)
            for term in self.losses
        ]
        return torch.stack(terms).sum()

    def blendable(self, logits: Tensor) -> Tensor:
        """The components themselves."""
        return logits.float()

    @property
    def deviation_scale(self) -> tuple[float, str]:
        low, high = self.value_range
        length = "unit of the spacing" if self.units == "physical" else "voxels"
        unit_name = length if self.transforms_as == "displacement" else f"slope, {self.units}"
        return (high - low) / 2 * 3**0.5, unit_name

    @property
    def meaning(self) -> dict[str, Any]:
        return {
            "vector_order": self.vector_order,
            "transforms_as": self.transforms_as,
            "units": self.units,
        }

    @property
    def value_range(self) -> tuple[float, float]:
        """`output_range`."""
        low, high = self.output_range or (0.0, 1.0)
        return low, high

    def plain_label(self, prediction: np.ndarray, writer: Target) -> np.ndarray:
        """Components in this target's order."""
        return super().plain_label(reordered(prediction, self.vector_order), writer)

    def output_channels(self, dtype: np.dtype) -> int | None:
        if self.output_range is None:
            check_dtype(dtype, ("float16", "float32"), 'integers need "output_range": [low, high]')
        return super().output_channels(dtype)

    def encode(self, prediction: Tensor, dtype: np.dtype) -> np.ndarray:
        """Components in `vector_order`."""
        return super().encode(
            prediction.flip(0) if self.vector_order == "xyz" else prediction, dtype
        )

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Components (z, y, x)."""
        return np.ascontiguousarray(reordered(super().decode(stored), self.vector_order))

    @property
    def has_scale(self) -> bool:
        """With an `output_range`."""
        return self.output_range is not None

    def on_scale_of(self, values: np.ndarray) -> Self:
        """From no length to that of the longest vector."""
        if self.has_scale:
            return self
        return self.model_copy(update={"output_range": [0.0, longest_of(values)]})

    def picture(self, prediction: np.ndarray) -> np.ndarray:
        """Direction as colour, (n + 1) / 2 of (x, y, z) as (R, G, B), and length as brightness.

        The brightest is as long as `output_range` reaches, or else as the longest of the slice.
        """
        finite = np.nan_to_num(prediction[::-1].astype(np.float32)).clip(-1e15, 1e15)
        vectors = np.moveaxis(finite, 0, -1)
        length = np.linalg.norm(vectors, axis=-1, keepdims=True)
        longest = max(map(abs, self.on_scale_of(prediction).value_range))
        colours = (vectors / np.maximum(length, SHORTEST) + 1) / 2
        return np.clip(colours * (length / max(longest, SHORTEST)), 0, 1)

    @staticmethod
    def _aim(loss: str, label: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        if loss != "cosine":
            return label, valid
        direction = unit(label)
        return direction, valid & (direction != 0).any(1, keepdim=True)
