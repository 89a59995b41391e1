"""The uncertainty of a target as an output of its own, beside the target's."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from vcmodels.errors import TaskError
from vcmodels.targets import AnyTarget
from vcmodels.targets.codes import (
    OUTPUT_DTYPES,
    check_dtype,
    decode_range,
    encode_range,
    range_attributes,
)

SUFFIX = "_uncertainty"


def deviation_name(target: str) -> str:
    """Name of the array with the uncertainty of a target."""
    return target + SUFFIX


class Written(Protocol):
    """What the writer asks of a target, or of the uncertainty of one; see `Target`."""

    @property
    def kind(self) -> str: ...
    @property
    def channels(self) -> int: ...
    @property
    def blend_channels(self) -> int: ...
    @property
    def is_categorical(self) -> bool: ...
    def averageable(self, prediction: Tensor) -> Tensor: ...
    def unblend(self, blended: Tensor) -> Tensor: ...
    def encode(self, prediction: Tensor, dtype: np.dtype) -> np.ndarray: ...
    def encoding(self, dtype: np.dtype) -> dict[str, Any]: ...
    def decode(self, stored: np.ndarray) -> np.ndarray: ...
    def output_channels(self, dtype: np.dtype) -> int | None: ...


class Deviation:
    """The root of `Target.dispersion`, averaged over patches as a square."""

    kind = "uncertainty"
    channels = blend_channels = 1
    is_categorical = False

    def __init__(self, target: AnyTarget) -> None:
        self.largest, self.unit = target.deviation_scale
        self.of = target.kind

    def averageable(self, prediction: Tensor) -> Tensor:
        """(1, Z, Y, X): the square."""
        return prediction.square()

    def unblend(self, blended: Tensor) -> Tensor:
        """(1, Z, Y, X): the root."""
        return blended.sqrt()

    def encode(self, prediction: Tensor, dtype: np.dtype) -> np.ndarray:
        """[0, largest] on 0..max in integers, the value in floats."""
        return encode_range(prediction, 0.0, self.largest, dtype)

    def encoding(self, dtype: np.dtype) -> dict[str, Any]:
        """`scale` and `offset` of value = stored * scale + offset, and the unit of the value."""
        quantity = {"quantity": "standard deviation", "of": self.of, "unit": self.unit}
        return {"kind": self.kind, **quantity, **range_attributes(0.0, self.largest, dtype)}

    def decode(self, stored: np.ndarray) -> np.ndarray:
        return decode_range(stored, 0.0, self.largest)

    def output_channels(self, dtype: np.dtype) -> int | None:
        """None: (Z, Y, X).

        Raises:
            ValueError: no such dtype is written.
        """
        check_dtype(dtype, OUTPUT_DTYPES)
        return None


def deviations(targets: Mapping[str, AnyTarget]) -> "dict[str, Deviation]":
    """The uncertainty of each target, under its own name.

    Raises:
        TaskError: a target has that name.
    """
    for name in targets:
        if deviation_name(name) in targets:
            found = (
                f'"{deviation_name(name)}" would be the uncertainty of "{name}", and is a target'
            )
            raise TaskError("inference_params.uncertainty", found, "leave one out")
    return {deviation_name(name): Deviation(target) for name, target in targets.items()}
