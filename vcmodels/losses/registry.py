"""Losses by name: functions (logits, label, valid, *, weight, ...) -> scalar.

All of them compute in float32 whatever autocast hands them, give exactly zero gradient where
`valid` is false, and return 0 with zero gradient when nothing is valid. Keyword-only parameters
besides `weight` and `label_smoothing` are options that the task file may set.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from vcmodels.losses.overlap import soft_dice, soft_jaccard
from vcmodels.losses.vector import axial_cosine, cosine
from vcmodels.losses.voxel import bce, ce, l1, l2, smooth_l1


class Loss(Protocol):
    def __call__(
        self,
        logits: Tensor,
        label: Tensor,
        valid: Tensor,
        *,
        weight: Tensor | None = None,
        **options: Any,  # noqa: ANN401  each loss names and types its own
    ) -> Tensor: ...


LOSSES: Mapping[str, Loss] = {
    "bce": bce,
    "soft_dice": soft_dice,
    "soft_jaccard": soft_jaccard,
    "ce": ce,
    "l1": l1,
    "l2": l2,
    "smooth_l1": smooth_l1,
    "cosine": cosine,
    "axial_cosine": axial_cosine,
}
