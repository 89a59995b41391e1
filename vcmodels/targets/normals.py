"""Unit normals of surfaces (or any direction field): 3 components, stored as codes or floats.

On disk the components follow `vector_order`; in memory they are always (z, y, x). A zero vector is
"unlabelled" in a label and "no prediction" in an output.

Derived from a mask they point out of it, and are known within two sigmas of its surface. As axes
(`axial`) they are known inside of a thin sheet too, whose two faces have opposite normals.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from vcmodels.comparison import Compared
from vcmodels.errors import FaultError
from vcmodels.fields.distance import Labelled, voxels_within
from vcmodels.fields.instances import instance_boundaries
from vcmodels.fields.normals import normals_reach, structure, surface_normals
from vcmodels.geometry.boxes import Shape, Spacing
from vcmodels.losses.agreement import axis_distance, direction_distance
from vcmodels.losses.registry import LossBlock, LossTerm, parse_loss
from vcmodels.section import Section
from vcmodels.targets.base import Interpolation, Target
from vcmodels.targets.census import Census, Misfit
from vcmodels.targets.stored import any_channel, check_dtype, countable, encode_float
from vcmodels.targets.vector_math import (
    SHORTEST,
    divisors,
    outer_eigenvalues,
    outer_products,
    principal_axes,
    pull_back,
    reordered,
    unit,
)

LINEAR_CODES: Mapping[str, tuple[float, float]] = {
    "uint8": (2 / 255, -1.0),
    "uint16": (2 / 65535, -1.0),
    "int8": (1 / 127, 0.0),
    "int16": (1 / 32767, 0.0),
    "float16": (1.0, 0.0),
    "float32": (1.0, 0.0),
    "float64": (1.0, 0.0),
}
"""(scale, offset) of component = code * scale + offset, by dtype."""
LENGTH_TOLERANCE = 0.1
"""How far from 1 a stored length may lie: codes of 8 bits are off by 0.01."""
LEAST_OFF = 0.1
"""Share of the vectors that were looked at, from which on lengths are spoken of."""
SLAB_VOXELS = 2**17
"""Read at once: what their arithmetic needs stays in the cache of a core."""
NORMALS_DTYPES = ("uint8", "uint16", "int8", "int16", "float16", "float32")


class VectorEncoding(Section):
    """How stored codes become components: component = stored * scale + offset."""

    scale: float = 1.0
    """Factor of the stored code."""
    offset: float = 0.0
    """Added after the factor."""
    zero_code: int | None = None
    """A code that means "unlabelled" where all three components hold it, in addition to 0."""


class NormalsTarget(Target):
    """Unit vectors; the length of the network's output does not count."""

    kind: Literal["normals"] = "normals"
    """Unit vectors such as the normals of a surface."""
    channels: Annotated[int, Field(ge=3, le=3)] = 3
    """Channels of the head."""
    activation: Literal["none"] = "none"
    """Normals have none; the output is normalised."""
    vector_order: Literal["xyz", "zyx"] = "xyz"
    """Order of the stored components, in labels and in outputs."""
    orientation: Literal["oriented", "axial"] = "oriented"
    """`oriented`: the sign means something. `axial`: n and -n are the same."""
    label_encoding: Annotated[VectorEncoding | None, Field(alias="encoding")] = None
    """How stored labels become components; by dtype when left out (uint16: v / 32767.5 - 1,
    uint8: v / 127.5 - 1, int16: v / 32767, int8: v / 127, floats as they are)."""
    smoothing_sigma: Annotated[float, Field(ge=0.3, le=32)] = 1.0
    """With `derive`: width of the Gaussian that smooths the mask, counted in the shortest side of a
    voxel."""
    surface_of: Literal["mask", "instances"] = "mask"
    """With `derive` and axes: whether instances that touch have a surface between them."""

    metric: ClassVar[str] = "angle_deg"
    may_mean_suspects: ClassVar[bool] = False  # no unit vector
    is_derivable: ClassVar[bool] = True
    default_loss: ClassVar[LossBlock] = {"cosine": 1.0}
    predicts: ClassVar[Compared] = "directions"

    @model_validator(mode="after")
    def _check_loss_fits(self) -> Self:
        fitting = "axial_cosine" if self._is_axial else "cosine"
        if {term.name for term in self.losses} - {"unit_length"} != {fitting}:
            raise ValueError(
                f'orientation "{self.orientation}" is trained with loss "{fitting}", '
                'beside which "unit_length" may stand'
            )
        return self

    @model_validator(mode="after")
    def _check_derived_keys(self) -> Self:
        if self.derive is None and (self.smoothing_sigma, self.surface_of) != (1, "mask"):
            raise FaultError(
                "smoothing_sigma and surface_of are of use with derive", "leave them out"
            )
        if self.surface_of == "instances" and not self._is_axial:
            found = "a face between two instances has no outer side"
            raise FaultError(found, 'give "orientation": "axial"')
        if self.derive is not None and self.label_encoding is not None:
            raise FaultError("what is derived has no encoding", "leave it out")
        return self

    @property
    def _is_axial(self) -> bool:
        return self.orientation == "axial"

    @property
    def interpolation(self) -> Interpolation:
        """Axial labels keep the nearest axis by default: their average costs an eigenvector."""
        return self.label_interpolation or ("nearest" if self._is_axial else "linear")

    @property
    def losses(self) -> tuple[LossTerm, ...]:
        if self.loss is None and self._is_axial:
            return parse_loss("axial_cosine")
        return super().losses

    @property
    def sided(self) -> Literal["values", "vectors"] | None:
        """An oriented normal has a side, an axis none."""
        return None if self._is_axial else "vectors"

    @property
    def glyph(self) -> Literal["arrow", "line"]:
        return "line" if self._is_axial else "arrow"

    @property
    def stored_channels(self) -> int | None:
        return 3

    def read_label(self, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors (z, y, x); not valid where the label holds no direction.

        That is where all codes are 0 (or `zero_code`), and where the vector is shorter than one
        step of the code.
        """
        label = np.empty(stored.shape, np.float32)
        valid = np.empty((1, *stored.shape[1:]), bool)
        # What lies between then stays in the cache: 96^3 voxels take 2.6 ms of a core, all at once
        # 3.3, or 12 where freed memory is given back.
        thickness = max(1, SLAB_VOXELS // max(1, math.prod(stored.shape[2:])))
        for first in range(0, stored.shape[1], thickness):
            slab = np.s_[:, first : first + thickness]
            self._read_slab(stored[slab], label[slab], valid[slab])
        return label, valid

    def _read_slab(self, stored: np.ndarray, label: np.ndarray, valid: np.ndarray) -> None:
        """`read_label` into `label` and `valid`."""
        scale, offset, shortest = self._label_scale(stored.dtype)
        valid[:] = countable(stored, self.ignored, self.loss_only_on_label)
        valid &= any_channel(stored != 0)
        if self.label_encoding and self.label_encoding.zero_code is not None:
            valid &= any_channel(stored != self.label_encoding.zero_code)
        with np.errstate(over="ignore", invalid="ignore"):
            vectors = stored.astype(np.float32)
            if scale != 1:
                vectors *= np.float32(scale)
            if offset != 0:
                vectors += np.float32(offset)
            length = np.sqrt(np.einsum("czyx,czyx->zyx", vectors, vectors))[None]
            valid &= length >= shortest
            is_finite = bool(length.max(initial=0) < np.inf)
            if not is_finite:
                valid &= length < np.inf
            # One divisor for each voxel: three masked numbers are slower.
            np.copyto(length, np.inf, where=~valid)
            np.divide(vectors, length, out=reordered(label, self.vector_order))
        if not is_finite:
            np.copyto(label, 0, where=~valid)

    @property
    def unlabelled_codes(self) -> tuple[int, ...]:
        """Those of `ignore_label`, and `zero_code`; 0 is one in any case."""
        code = self.label_encoding.zero_code if self.label_encoding else None
        return self.ignored if code in (None, 0) else (*self.ignored, code)

    def suspects(self, census: Census) -> Mapping[float, int]:
        """Codes that all three components hold in many voxels, and that are no unit vector."""
        found: dict[float, int] = {}
        if self._lacks_code(census.dtype):
            return found
        for value, count in census.constants(self.unlabelled_codes).items():
            length = float(self._lengths(np.full((1, 3), value), census.dtype)[0])
            if abs(length - 1) > LENGTH_TOLERANCE and length >= self._shortest(census.dtype):
                found[value] = count
        return found

    def stored_misfits(self, census: Census) -> Iterator[Misfit]:
        """Vectors that are no unit vectors: of another encoding, or never normalised."""
        if self._lacks_code(census.dtype):
            found = f"is of {census.dtype}, for which normals have no default encoding"
            yield Misfit(found, 'give "encoding": {"scale": ..., "offset": ...}')
            return
        sample = np.zeros((0, 3)) if census.figures.sample is None else census.figures.sample
        skipped = [*self.unlabelled_codes, *self.suspects(census)]
        sample = sample[~np.isin(sample, skipped).all(axis=1)]
        lengths = self._lengths(sample, census.dtype)
        is_known = lengths >= self._shortest(census.dtype)
        sample, lengths = sample[is_known], lengths[is_known]
        off = np.abs(lengths - 1) > LENGTH_TOLERANCE
        if off.sum() <= LEAST_OFF * len(off):
            return
        low, high = float(lengths.min()), float(lengths.max())
        found = f"holds vectors of length {low:.3g} to {high:.3g}, not 1"
        # As they are, floats of any length have a direction; what has no sign was encoded.
        scale, offset = self._label_code(census.dtype)
        has_no_sign = bool((sample * scale + offset >= 0).all())
        if not has_no_sign and (self.label_encoding is not None or census.dtype.kind == "f"):
            yield Misfit(found, "their directions are used", is_fatal=False)
            return
        code = '"scale": ..., "offset": ...'
        if census.dtype.kind == "f" and has_no_sign:
            code = f'"scale": {2 / (255 if census.figures.high > 1 else 1):.8g}, "offset": -1'
        yield Misfit(found, f'give "encoding": {{{code}}}, as they were stored')

    def _lacks_code(self, dtype: np.dtype) -> bool:
        return self.label_encoding is None and dtype.name not in LINEAR_CODES

    def _lengths(self, stored: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """The lengths (n,) of stored vectors (n, 3), as their encoding says."""
        scale, offset = self._label_code(dtype)
        return np.linalg.norm(stored * scale + offset, axis=1)

    def _shortest(self, dtype: np.dtype) -> float:
        """The least length that is read as a direction."""
        return SHORTEST if dtype.kind == "f" else max(abs(self._label_code(dtype)[0]), SHORTEST)

    def source_margin(self, spacing: Spacing) -> Shape:
        reach = normals_reach(self.smoothing_sigma, spacing, axial=self._is_axial)
        if self.surface_of == "mask":
            return reach
        z, y, x = voxels_within(self._film(spacing), spacing)
        return reach[0] + z, reach[1] + y, reach[2] + x

    def derive_label(self, source: Tensor, valid: Tensor, spacing: Spacing) -> Labelled:
        """Out of the mask, or the axis across the surfaces around; see `fields.normals`."""
        mask = (source != 0).float()
        if self.surface_of == "instances":
            # The faces as a thin film: what its two sides agree on is the axis across it.
            film = self._film(spacing)
            mask, valid = instance_boundaries(source, valid, film, spacing, with_background=True)
        if not self._is_axial:
            return surface_normals(mask, valid, self.smoothing_sigma, spacing)
        tensor, counts = structure(mask, valid, self.smoothing_sigma, spacing)
        # Most voxels are far from a surface, and an eigenvector costs more than all before.
        places = counts.flatten().nonzero().squeeze(1)
        axes = principal_axes(tensor.flatten(1)[:, places, None, None]).flatten(1)
        label = tensor.new_zeros(3, counts.numel()).index_copy_(1, places, axes)
        label = label.view(3, *counts.shape[1:])
        return label, (label != 0).any(0, keepdim=True)

    def _film(self, spacing: Spacing) -> float:
        """Thickness of the film on each side of a face between instances: its voxels' centres."""
        return 0.5 * max(spacing)

    def spread(self, label: Tensor) -> Tensor:
        """For axes the entries of n n^T: neighbours of opposite sign would cancel."""
        return outer_products(label) if self._is_axial else label

    def settle(self, spread: Tensor) -> Tensor:
        return principal_axes(spread) if self._is_axial else spread

    def turn(self, label: Tensor, valid: Tensor, jacobian: Tensor, spacing: Spacing) -> Labelled:
        """J^T n, renormalised: gradients pull back through the sampling map."""
        del spacing
        return pull_back(label, jacobian), valid

    def blendable(self, logits: Tensor) -> Tensor:
        """Unit vectors, or for axes the 6 entries of n n^T, on which the sign has no effect."""
        vectors = unit(logits.float())
        return outer_products(vectors) if self._is_axial else vectors

    def averageable(self, prediction: Tensor) -> Tensor:
        """As `blendable`: neighbouring axes of opposite sign would cancel."""
        return self.blendable(prediction)

    def unblend(self, blended: Tensor) -> Tensor:
        """Unit vectors: the average renormalised, or the principal axis of the averaged n n^T."""
        return principal_axes(blended) if self._is_axial else unit(blended)

    @property
    def blend_channels(self) -> int:
        return 6 if self._is_axial else 3

    def dispersion(self, mean: Tensor, variance: Tensor) -> Tensor:
        """The squared angle, in degrees, whose sine is the rms sine of those to the mean direction.

        Two vectors 2a apart give a, two opposite ones 90. For axes the share of n n^T that is not in
        its largest eigenvalue is the mean squared sine: at most 54.7 degrees, of no direction at all.
        """
        if self._is_axial:
            trace = mean[:, :3].sum(1, keepdim=True).clamp(min=SHORTEST)
            largest = outer_eigenvalues(*(mean / trace).unbind(1))[0].unsqueeze(1)
            squared_sine = (1 - largest).clamp(max=2 / 3)
        else:
            squared_sine = variance.sum(1, keepdim=True)
        return squared_sine.clamp(0, 1).sqrt().asin().rad2deg().square()

    def disagreement(self, logits: Tensor, blended: Tensor) -> Tensor:
        """By the angle to the mean direction, or to the principal axis of the mean n n^T."""
        distance = axis_distance if self._is_axial else direction_distance
        return distance(logits, self.unblend(blended))

    def certainty(self, blended: Tensor) -> Tensor:
        """How well the predictions agree: 1 for a single one, 0 for none that has a direction.

        The length of the mean vector, or for axes the largest eigenvalue of the mean n n^T: the mean
        squared cosine, 1/3 at least.
        """
        if not self._is_axial:
            return blended.square().sum(1, keepdim=True).sqrt()
        return outer_eigenvalues(*blended.unbind(1))[0].unsqueeze(1).clamp(0, 1)

    @property
    def deviation_scale(self) -> tuple[float, str]:
        return 90.0, "degrees"

    def comparable(self, prediction: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors; axes with the sign that brings them nearer to their label."""
        if not self._is_axial:
            return prediction, label
        is_opposite = (prediction * label).sum(1, keepdim=True) < 0
        return torch.where(is_opposite, -prediction, prediction), label

    @property
    def meaning(self) -> dict[str, Any]:
        return {"vector_order": self.vector_order, "orientation": self.orientation}

    def unreadable(self, writer: Target) -> str | None:
        """Axes are no oriented normals; normals are axes, too."""
        if isinstance(writer, NormalsTarget) and self._is_axial:
            return None
        return super().unreadable(writer)

    def plain_label(self, prediction: np.ndarray, writer: Target) -> np.ndarray:
        """Components in this target's order; NaN where there is no direction."""
        known = any_channel(prediction != 0)
        plain = super().plain_label(reordered(prediction, self.vector_order), writer)
        return np.where(known, plain, np.float32(np.nan))

    def encode(self, prediction: Tensor, dtype: np.dtype) -> np.ndarray:
        """Codes in `vector_order`; (0, 0, 0) stands for the zero vector, "no prediction"."""
        self.output_channels(dtype)
        vectors = prediction.float()
        if dtype.kind == "f":
            return np.ascontiguousarray(
                reordered(encode_float(unit(vectors), dtype), self.vector_order)
            )
        scale, offset = LINEAR_CODES[dtype.name]
        length = divisors(vectors)
        codes = (vectors / length).sub_(offset).div_(scale).round_()
        if not length.max().isfinite():  # a mask takes longer than all of the above
            codes.masked_fill_(~length.isfinite(), 0)
        codes = codes.cpu().numpy().astype(dtype)
        return np.ascontiguousarray(reordered(codes, self.vector_order))

    def encoding(self, dtype: np.dtype) -> dict[str, Any]:
        scale, offset = LINEAR_CODES[dtype.name]
        return {"kind": self.kind, **self.meaning, "scale": scale, "offset": offset, "zero_code": 0}

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Vectors (z, y, x), of length 1 to within half a step; 0 where nothing was predicted."""
        scale, offset = LINEAR_CODES[stored.dtype.name]
        vectors = stored.astype(np.float32) * np.float32(scale) + np.float32(offset)
        vectors *= any_channel(stored != 0)
        return np.ascontiguousarray(reordered(vectors, self.vector_order))

    def output_channels(self, dtype: np.dtype) -> int | None:
        check_dtype(dtype, NORMALS_DTYPES)
        return 3

    def picture(self, prediction: np.ndarray) -> np.ndarray:
        """(n + 1) / 2 of (x, y, z) as (R, G, B), |n| for axes; the zero vector is black."""
        colours = np.moveaxis(prediction[::-1].astype(np.float32), 0, -1)
        shown = np.abs(colours) if self._is_axial else (colours + 1) / 2
        has_direction = np.abs(colours).sum(-1, keepdims=True) > SHORTEST
        return np.where(has_direction, np.clip(shown, 0, 1), np.float32(0))

    def _label_code(self, dtype: np.dtype) -> tuple[float, float]:
        """(scale, offset) of a stored label.

        Raises:
            ValueError: neither the task nor the dtype says.
        """
        if self.label_encoding is not None:
            return self.label_encoding.scale, self.label_encoding.offset
        if dtype.name not in LINEAR_CODES:
            raise ValueError(
                f"normals of dtype {dtype.name} have no default encoding; "
                'give "encoding": {"scale": ..., "offset": ...}'
            )
        return LINEAR_CODES[dtype.name]

    def _label_scale(self, dtype: np.dtype) -> tuple[float, float, float]:
        """(scale, offset) of a stored label, in any unit of length, and the least length in it."""
        scale, offset = self._label_code(dtype)
        if dtype.kind == "f":
            return scale, offset, SHORTEST
        # A zero vector that was rounded to codes comes back up to 0.87 steps long.
        shortest = max(abs(scale), SHORTEST)
        if dtype.itemsize > 2 or scale == 0:
            return scale, offset, shortest
        # In steps of the code: a pass less, and sums of small whole numbers and halves are exact.
        return math.copysign(1.0, scale), offset / abs(scale), shortest / abs(scale)
