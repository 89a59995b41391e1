"""What the voxels of an array are, and hence how those of another grid are made from them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from vcmodels.errors import FaultError
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.gridmap import GridMap
from vcmodels.prepare.curves import ValueCurve
from vcmodels.prepare.kernels import (
    Extend,
    Floats,
    Order,
    Orders,
    Read,
    outside,
    pick,
    resample,
    vote,
)
from vcmodels.targets.base import Target
from vcmodels.volumes import Volume

FLOAT = np.dtype(np.float32)


class Content(ABC):
    """How the voxels of one array are made."""

    outside: float
    """What stands where the derived grid lies past its source."""

    @abstractmethod
    def dtype(self, source: np.dtype[Any], grid: GridMap) -> np.dtype[Any]:
        """Of what is made."""

    @abstractmethod
    def make(self, read: Read, grid: GridMap, box: Box) -> np.ndarray:
        """The voxels of a box of the derived grid, (C, *box.shape)."""

    @property
    @abstractmethod
    def rules(self) -> dict[str, Any]:
        """JSON: all that decides what is made, besides the source and the grid."""

    @property
    def keeps_zero(self) -> bool:
        """Whether 0 comes of 0, so that what is not stored stays so."""
        return self.outside == 0


@dataclass(frozen=True)
class ImageContent(Content):
    """Intensities: interpolated, then made comparable. Where voxels only move, they stay what they are."""

    order: Order | Orders = "cubic"
    curves: tuple[ValueCurve | None, ...] = ()
    """Of each channel; none when empty."""
    outside: float = 0.0
    curves_first: bool = False
    """Make them comparable first."""

    def dtype(self, source: np.dtype[Any], grid: GridMap) -> np.dtype[Any]:
        stays = grid.is_exact and not any(self.curves)
        return source if stays else FLOAT

    def make(self, read: Read, grid: GridMap, box: Box) -> np.ndarray:
        if grid.is_exact:
            return with_outside(self._curved(pick(read, grid, box)), grid, box, self.outside)
        if self.curves_first:
            found = resample(
                lambda part: self._curved(_finite(read(part))), grid, box, self.order, self._extend
            )
        else:
            plain = resample(lambda part: _finite(read(part)), grid, box, self.order, self._extend)
            found = self._curved(plain)
        return with_outside(found, grid, box, self.outside)

    @property
    def _extend(self) -> Extend:
        return "edge" if "spline" in self.order else "line"

    def _curved(self, values: np.ndarray) -> np.ndarray:
        if not any(self.curves):
            return values
        each = zip(self.curves, values, strict=True)
        return np.stack([c(v) if c else v.astype(FLOAT) for c, v in each])

    @property
    def keeps_zero(self) -> bool:
        return super().keeps_zero and not any(self.curves)

    @property
    def rules(self) -> dict[str, Any]:
        curves = [curve and curve.to_json() for curve in self.curves]
        first = {"curves_first": True} if self.curves_first and any(self.curves) else {}
        order = self.order if isinstance(self.order, str) else list(self.order)
        return {"image": order, "curves": curves, "outside": self.outside, **first}


def _finite(values: np.ndarray) -> np.ndarray:
    """The same values.

    Raises:
        FaultError: one is not finite, which would spread over all around it.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        found = "holds NaN or infinity, and there is no value between that and others"
        raise FaultError(found, "fill it, or leave spacing out of dataset_config.prepare")
    return values


@dataclass(frozen=True)
class Classes(Content):
    """Masks, classes, ids: no value comes out that was not there."""

    order: Literal["nearest", "linear"] = "nearest"
    outside: float = 0.0

    def dtype(self, source: np.dtype[Any], grid: GridMap) -> np.dtype[Any]:
        del grid
        return source

    def make(self, read: Read, grid: GridMap, box: Box) -> np.ndarray:
        is_voted = self.order == "linear" and not grid.is_exact
        found = (vote if is_voted else pick)(read, grid, box)
        return with_outside(found, grid, box, self.outside)

    @property
    def rules(self) -> dict[str, Any]:
        return {"classes": self.order, "outside": self.outside}


@dataclass(frozen=True)
class ValueContent(Content):
    """A label of values or vectors, as its target reads it: NaN where it does not count.

    What comes out is a plain float32 label, of which the target's own keys say what it means. A voxel
    counts if half of what it is made from does.
    """

    target: Target
    outside: float = float("nan")

    def dtype(self, source: np.dtype[Any], grid: GridMap) -> np.dtype[Any]:
        del source, grid
        return FLOAT

    def make(self, read: Read, grid: GridMap, box: Box) -> np.ndarray:
        spread, valid = self._spread(read, grid, box)
        turned, valid = turned_values(self.target, self.target.settle(spread), valid, grid)
        prediction = self.target.as_prediction(turned[None])[0].numpy()
        plain = self.target.plain_label(prediction, self.target).astype(FLOAT)
        plain[:, ~valid.all(0).numpy()] = np.nan
        return with_outside(plain, grid, box, self.outside)

    def _spread(self, read: Read, grid: GridMap, box: Box) -> tuple[torch.Tensor, torch.Tensor]:
        """What of the label is averaged, in the derived voxels, and which count."""
        reader = self.target.changed(loss_only_on_label=None)

        def channels(part: Box) -> np.ndarray:
            label, valid = reader.read_label(read(part))
            counts = valid.all(0, keepdims=True)
            spread = reader.spread(torch.from_numpy(label)).numpy() * counts
            return np.concatenate([spread, counts])

        if grid.is_exact or self.target.interpolation == "nearest":
            found: Floats = pick(channels, grid, box)
        else:
            found = resample(channels, grid, box, "linear", "edge")
        share = found[-1:]
        counts = share >= 0.5
        values = np.where(counts, found[:-1] / np.maximum(share, 0.5), 0).astype(FLOAT)
        return torch.from_numpy(values), torch.from_numpy(counts)

    @property
    def keeps_zero(self) -> bool:
        return False

    @property
    def rules(self) -> dict[str, Any]:
        keys = self.target.model_dump(mode="json", exclude=_OF_LOSSES)
        return {"values": keys, "outside": str(self.outside)}


_OF_LOSSES = {"weight", "loss", "label_smoothing", "dilate_label", "loss_only_on_label"}
"""Keys of a target that do not change how its stored label is read here."""


def turned_values(
    target: Target, values: torch.Tensor, valid: torch.Tensor, grid: GridMap
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values whose voxels were moved, as they are on the derived grid: components turn with the axes.

    Args:
        target: whose label, or logits, they are.
        values: (L, Z, Y, X) float32.
        valid: (V, Z, Y, X) bool.
        grid: the map; lengths in physical units do not change, those in voxels do.

    Returns:
        values and valid on the derived grid.
    """
    if target.predicts not in ("vectors", "directions"):
        return values, valid
    if getattr(target, "units", None) == "voxels":
        jacobian, reader = grid.linear, target.changed(units="physical")
    else:
        jacobian, reader = grid.symmetry.matrix, target
    matrix = torch.as_tensor(jacobian, dtype=torch.float32)
    return reader.turn(values, valid, matrix, (1.0, 1.0, 1.0))


def with_outside(values: np.ndarray, grid: GridMap, box: Box, value: float) -> np.ndarray:
    """The same with a value where a box of the derived grid lies outside of its source."""
    for axis, (start, length) in enumerate(zip(box.origin, box.shape, strict=True)):
        is_outside = outside(grid, axis, start, length)
        if is_outside.any():
            where = [slice(None)] * 4
            where[axis + 1] = is_outside  # pyright: ignore[reportCallIssue, reportArgumentType]
            values[tuple(where)] = value
    return values


def content_of(label: Volume, reader: Target, order: Literal["nearest", "linear"]) -> Content:
    """How a label is made.

    Args:
        label: as it is stored.
        reader: the target that reads it.
        order: of masks, classes and ids. Those in floats are `nearest`: they may hold thousands of
            values, as a map of probabilities does.
    """
    if reader.derive is not None or reader.predicts in ("masks", "classes"):
        return Classes("nearest" if label.dtype.kind == "f" else order)
    return ValueContent(reader)
