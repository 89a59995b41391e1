"""How a derived label is stored, so that reading it back as a label of its kind gives the same."""

from typing import Any

import numpy as np
import torch

from vcmodels.targets import AnyTarget
from vcmodels.targets.base import Target
from vcmodels.targets.masks import MaskTarget

UNLABELLED = -1
"""In masks. Whoever forgets to name it as `ignore_label` gets an error, not a foreground."""


def stored_dtype(target: Target) -> np.dtype:
    """int8 for masks of 0 and 1, float32 for values: what is derived is kept exactly."""
    return np.dtype(np.int8 if isinstance(target, MaskTarget) else np.float32)


def missing_value(dtype: np.dtype) -> float:
    """What stands where the label does not count."""
    return float(UNLABELLED) if dtype.kind == "i" else float("nan")


def stored_form(target: AnyTarget, label: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """A label as it is stored: (L, Z, Y, X) float32 and (V, Z, Y, X) bool -> (S, Z, Y, X)."""
    dtype = stored_dtype(target)
    if dtype.kind == "i":
        return np.where(valid, label, UNLABELLED).astype(dtype)
    # NaN before the encoding, which brings the channels into their order on disk.
    known = torch.from_numpy(np.where(valid, label, np.float32(np.nan)))
    return target.encode(target.as_prediction(known[None])[0], dtype)


def encoding(target: AnyTarget) -> dict[str, Any]:
    """Attributes that tell a reader what the stored values mean."""
    attributes = target.encoding(np.dtype(np.float32))
    if stored_dtype(target).kind == "i":
        return {**attributes, "quantity": "mask", "ignore_label": UNLABELLED}
    return attributes


def keys_to_read(target: AnyTarget) -> dict[str, Any]:
    """Keys that the target needs, instead of `derive`, when it is read from what was stored."""
    ignored = [UNLABELLED] if stored_dtype(target).kind == "i" else []
    keys: dict[str, Any] = {"kind": target.kind, "ignore_label": ignored}
    # Done already, to the source.
    if target.loss_only_on_label:
        keys["loss_only_on_label"] = False
    if target.dilate_label:
        keys["dilate_label"] = False
    return keys
