"""Stored arrays: which voxels of a label count, and codes of values in a known range."""

import math
import operator
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from vcmodels.errors import FaultError
from vcmodels.section import Section

KEY = "vcmodels"
"""The attribute of a group or an array that holds everything of ours; there `encoding` is one."""
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


_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_COMPARISON = re.compile(rf"\s*(>=|<=|==|!=|>|<)\s*({_NUMBER}(?:\s*,\s*{_NUMBER})*)\s*")


@dataclass(frozen=True)
class ForegroundRule:
    """Which stored values are foreground: `>= 0.5`, `== 1, 3`."""

    sign: str
    """One of >=, <=, >, <, ==, !=."""
    bounds: tuple[float, ...]
    """What values are compared with; several for == and != only, where each is one of the values."""

    @classmethod
    def parse(cls, text: str) -> "ForegroundRule":
        """The comparison that a text states.

        Raises:
            FaultError: it states none.
        """
        match = _COMPARISON.fullmatch(text)
        if match is None:
            raise FaultError(
                f'"{text}" is no comparison', 'write one such as ">= 0.5" or "== 1, 3"'
            )
        bounds = tuple(float(number) for number in match[2].split(","))
        if len(bounds) > 1 and match[1] not in ("==", "!="):
            raise FaultError(f'"{text}" compares with several values', 'give one, or "== 1, 3"')
        if not all(map(math.isfinite, bounds)):
            raise FaultError(f'"{text}" compares with infinity', "give a number")
        return cls(match[1], bounds)

    def __str__(self) -> str:
        return f"{self.sign} {', '.join(f'{bound:g}' for bound in self.bounds)}"

    def of(self, stored: np.ndarray) -> np.ndarray:
        """Where values are foreground: bool of the same shape; NaN never is."""
        if stored.dtype == bool:
            stored = stored.view(np.uint8)
        # A bound that is no value of the dtype, as 300 is none of uint8, compares as a number does.
        is_whole = stored.dtype.kind in "iu"
        bounds = [int(b) if is_whole and b.is_integer() else b for b in self.bounds]
        if self.sign not in ("==", "!="):
            return np.asarray(_OPERATORS[self.sign](stored, bounds[0]))
        found = np.logical_or.reduce([stored == bound for bound in bounds])
        return found if self.sign == "==" else ~found & (stored == stored)

    def meets(self, value: float) -> bool:
        """Whether one value is foreground."""
        return bool(self.of(np.array([value], np.float64))[0])


def countable(stored: np.ndarray, ignored: Sequence[int], only_on_label: bool | None) -> np.ndarray:
    """Voxels that are `known` and, with `only_on_label`, not zero.

    Args:
        stored: (S, Z, Y, X), the dtype on disk.
        ignored: values of `ignore_label`.
        only_on_label: `loss_only_on_label`.

    Returns:
        (1, Z, Y, X) bool.
    """
    valid = known(stored, ignored)
    if only_on_label:
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


class StoredTarget(Section):
    """The part of a target that writes predictions, on one fixed global scale, and reads them.

    A kind says what its values mean; the rest is right for values in `value_range`.
    """

    @property
    def stored_channels(self) -> int | None:
        """Channels of the label array on disk; None when it has no channel axis (Z, Y, X)."""
        return None

    @property
    @abstractmethod
    def meaning(self) -> dict[str, Any]:
        """Attributes that say what stored values are, such as {"quantity": "probability"}."""

    @property
    def value_range(self) -> tuple[float, float]:
        """What integers span: 0 stands for the first, the largest code for the second."""
        return 0.0, 1.0

    def output_channels(self, dtype: np.dtype) -> int | None:
        """S': channels of the stored prediction; None when it is written as (Z, Y, X).

        Raises:
            ValueError: this kind cannot be stored as `dtype`; the message names those it can.
        """
        check_dtype(dtype, OUTPUT_DTYPES)
        return self.stored_channels

    def encode(self, prediction: Tensor, dtype: np.dtype) -> np.ndarray:
        """The stored form: (P, Z, Y, X) -> (S', Z, Y, X) of `dtype`.

        Floats hold the value. Integers hold its place in `value_range`, clipped and never wrapped;
        NaN is 0.
        """
        self.output_channels(dtype)
        return encode_range(prediction, *self.value_range, dtype)

    def encoding(self, dtype: np.dtype) -> dict[str, Any]:
        """Attributes that let a reader undo `encode`: JSON values, written next to the array."""
        kind = type(self).model_fields["kind"].default
        return {"kind": kind, **self.meaning, **range_attributes(*self.value_range, dtype)}

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Undo `encode` to within half a step: (S', Z, Y, X) -> (P, Z, Y, X) float32."""
        return decode_range(stored, *self.value_range)
