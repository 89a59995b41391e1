"""Stored labels: which voxels count, and fixed-point codes of values in a known range."""

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from vcmodels.targets.base import Target

OUTPUT_DTYPES = ("uint8", "uint16", "float16", "float32")


def check_dtype(dtype: np.dtype, allowed: tuple[str, ...], why: str = "") -> None:
    """Refuse a dtype that is not allowed; the ValueError names those that are."""
    if dtype.name not in allowed:
        reason = f" ({why})" if why else ""
        raise ValueError(f"cannot be stored as {dtype.name}{reason}; use {', '.join(allowed)}")


def encode_range(values: Tensor, low: float, high: float, dtype: np.dtype) -> np.ndarray:
    """Integer dtypes: [low, high] -> [0, max of the dtype], rounded; NaN is stored as 0.

    Float dtypes keep the values (NaN too) and clip them to the range of the dtype.
    """
    if dtype.kind == "f":
        return encode_float(values, dtype)
    most = int(np.iinfo(dtype).max)
    codes = (values.float() - low).mul_(most / (high - low))  # new, so what follows is in place
    codes.nan_to_num_(nan=0.0).clamp_(0, most).round_()
    return codes.cpu().numpy().astype(dtype)


def encode_float(values: Tensor, dtype: np.dtype) -> np.ndarray:
    """Values as a float dtype, clipped to its range; NaN stays NaN."""
    bound = float(np.finfo(dtype).max)
    return values.float().clamp(-bound, bound).cpu().numpy().astype(dtype)


def decode_range(stored: np.ndarray, low: float, high: float) -> np.ndarray:
    """Undo `encode_range`: float32."""
    values = stored.astype(np.float32)
    if stored.dtype.kind == "f":
        return values
    return values * np.float32((high - low) / np.iinfo(stored.dtype).max) + np.float32(low)


def range_attributes(low: float, high: float, dtype: np.dtype) -> dict[str, Any]:
    """`scale` and `offset` of value = stored * scale + offset."""
    if dtype.kind == "f":
        return {"scale": 1.0, "offset": 0.0}
    return {"scale": (high - low) / int(np.iinfo(dtype).max), "offset": low}


class LabelError(ValueError):
    """A stored value that the kind cannot have.

    Args:
        value: as stored.
        place: its (z, y, x) in the array that was read; the caller adds that array's origin.
        remedy: what the kind expects and what to do.
    """

    def __init__(self, value: float | int, place: tuple[int, int, int], remedy: str) -> None:
        self.value, self.place, self.remedy = value, place, remedy
        super().__init__(f"value {value} at (z, y, x) = {place}; {remedy}")

    def __reduce__(self) -> tuple[type, tuple[float | int, tuple[int, int, int], str]]:
        """Pickle by the three parts: a data worker raises this in its own process."""
        return type(self), (self.value, self.place, self.remedy)


def refuse_first(bad: np.ndarray, stored: np.ndarray, remedy: str) -> NoReturn:
    """Raise LabelError for the first true voxel of `bad` (1, Z, Y, X), in (z, y, x) order."""
    _, z, y, x = (int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
    raise LabelError(stored[0, z, y, x].item(), (z, y, x), remedy)


def countable(stored: np.ndarray, target: Target) -> np.ndarray:
    """Voxels that are `known` and, with `loss_only_on_label`, not zero.

    Args:
        stored: (S, Z, Y, X), the dtype on disk.
        target: its `ignore_label` and `loss_only_on_label` are honoured.

    Returns:
        (1, Z, Y, X) bool.
    """
    valid = known(stored, target.ignored)
    if target.loss_only_on_label:
        valid &= any_channel(stored != 0)
    return valid


def known(stored: np.ndarray, ignored: Sequence[int]) -> np.ndarray:
    """Voxels that are finite and not ignored: (S, Z, Y, X) -> (1, Z, Y, X) bool.

    A voxel of several channels is ignored when all of them hold the ignored value.
    """
    if stored.dtype.kind == "f":
        valid = ~any_channel(~np.isfinite(stored))
    else:
        valid = np.ones((1, *stored.shape[1:]), bool)
    for value in ignored:
        valid &= any_channel(stored != value)
    return valid


def any_channel(mask: np.ndarray) -> np.ndarray:
    """Where any channel is true: (S, Z, Y, X) bool -> (1, Z, Y, X) bool."""
    return mask if len(mask) == 1 else np.logical_or.reduce(mask, axis=0, keepdims=True)
