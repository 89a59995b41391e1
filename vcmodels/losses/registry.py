"""Losses by name: functions (logits, label, valid, *, weight, ...) -> scalar.

All of them compute in float32 whatever autocast hands them, give exactly zero gradient where
`valid` is false, and return 0 with zero gradient when nothing is valid. Keyword-only parameters
besides `weight` and `label_smoothing` are options that the task file may set.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from vcmodels.losses.boundary import boundary
from vcmodels.losses.cross_entropy import bce, ce, focal, topk_ce
from vcmodels.losses.overlap import (
    focal_tversky,
    generalised_dice,
    soft_dice,
    soft_jaccard,
    tversky,
)
from vcmodels.losses.regression import l1, l2, smooth_l1
from vcmodels.losses.skeleton import cldice, skeleton_recall
from vcmodels.losses.vector import axial_cosine, cosine, unit_length

Loss = Callable[..., Tensor]
"""(logits, label, valid, *, weight=None, ...): a protocol cannot say that each has its own options."""

LOSSES: Mapping[str, Loss] = {
    "bce": bce,
    "ce": ce,
    "focal": focal,
    "topk_ce": topk_ce,
    "soft_dice": soft_dice,
    "soft_jaccard": soft_jaccard,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "generalised_dice": generalised_dice,
    "cldice": cldice,
    "skeleton_recall": skeleton_recall,
    "boundary": boundary,
    "l1": l1,
    "l2": l2,
    "smooth_l1": smooth_l1,
    "cosine": cosine,
    "axial_cosine": axial_cosine,
    "unit_length": unit_length,
}

MASK_LOSSES = frozenset(
    {
        "focal",
        "topk_ce",
        "soft_dice",
        "soft_jaccard",
        "tversky",
        "focal_tversky",
        "generalised_dice",
        "cldice",
        "skeleton_recall",
        "boundary",
    }
)
"""Those that take masks and classes alike, besides `bce` for the one and `ce` for the other."""
