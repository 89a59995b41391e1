"""Fixed-point storage of values in a known range: one global scale, clipped, never wrapped."""

from typing import Any

import numpy as np
from torch import Tensor

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
