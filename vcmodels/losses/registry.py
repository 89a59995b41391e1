"""Losses by name, and the `loss` block of a target: names, weights and options, checked.

All of them compute in float32 under autocast too, give exactly zero gradient where `valid` is false,
and return 0 with zero gradient when nothing is valid. Keyword-only parameters other than `weight` and
`label_smoothing` are options that the task file may set.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from torch import Tensor

from vcmodels.comparison import Comparator, Compared
from vcmodels.errors import FaultError
from vcmodels.losses.cross_entropy import bce, ce, focal, mean_class_weight, topk_ce
from vcmodels.losses.overlap import (
    focal_tversky,
    generalised_dice,
    soft_dice,
    soft_jaccard,
    tversky,
)
from vcmodels.losses.regression import axial_cosine, cosine, l1, l2, smooth_l1, unit_length
from vcmodels.losses.shape import boundary, cldice, gap, skeleton_recall


@dataclass(frozen=True)
class Loss(Comparator):
    """A loss, and what it compares: every target kind that predicts it takes the loss."""

    function: Callable[..., Tensor]
    """(logits, label, valid, *, weight=None, ...) -> scalar: a protocol cannot say that each has its
    own options."""
    mean_weight: Callable[..., Tensor | float] | None = None
    """For a loss that is divided by the sum of the weights in its options: their mean over the valid
    voxels, of (logits, label, valid, **those options)."""


REGIONS: tuple[Compared, ...] = ("masks", "classes")

LOSSES: dict[str, Loss] = {
    "bce": Loss(bce, compares=("masks", "values")),
    "ce": Loss(ce, compares="classes", mean_weight=mean_class_weight),
    "focal": Loss(focal, compares=REGIONS),
    "topk_ce": Loss(topk_ce, compares=REGIONS),
    "soft_dice": Loss(soft_dice, compares=REGIONS),
    "soft_jaccard": Loss(soft_jaccard, compares=REGIONS),
    "tversky": Loss(tversky, compares=REGIONS),
    "focal_tversky": Loss(focal_tversky, compares=REGIONS),
    "generalised_dice": Loss(generalised_dice, compares=REGIONS),
    "cldice": Loss(cldice, compares=REGIONS),
    "skeleton_recall": Loss(skeleton_recall, compares=REGIONS),
    "boundary": Loss(boundary, compares=REGIONS),
    "gap": Loss(gap, compares=REGIONS),
    "l1": Loss(l1, compares=("values", "vectors")),
    "l2": Loss(l2, compares=("values", "vectors")),
    "smooth_l1": Loss(smooth_l1, compares=("values", "vectors")),
    "cosine": Loss(cosine, compares=("vectors", "directions")),
    "axial_cosine": Loss(axial_cosine, compares="directions"),
    "unit_length": Loss(unit_length, compares="directions"),
}
"""By the name in the task file. Another package may add its own."""

Option = float | int | bool | str | list[float]
LossBlock = str | dict[str, float | dict[str, Option]]
"""A name; {name: weight}; or {name: {"weight": ..., and the options of that loss}}."""

_ARGUMENTS = {"weight", "label_smoothing"}
"""Keywords of losses that are no options: they come from the sample and from the target."""


@dataclass(frozen=True)
class LossTerm:
    """One of the losses of a target."""

    name: str
    factor: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self,
        logits: Tensor,
        label: Tensor,
        valid: Tensor,
        weight: Tensor | None,
        smoothing: float,
        *,
        is_part: bool = False,
    ) -> Tensor:
        """The loss times its factor; arguments as for `Target.compute_loss`."""
        loss, options = LOSSES[self.name], dict(self.options)
        factor: Tensor | float = self.factor
        if is_part and loss.mean_weight is not None:
            factor = factor * loss.mean_weight(logits, label, valid, **options)
        if "label_smoothing" in inspect.signature(loss.function).parameters:
            options["label_smoothing"] = smoothing
        return factor * loss.function(logits, label, valid, weight=weight, **options)


def parse_loss(block: LossBlock) -> tuple[LossTerm, ...]:
    """The terms of a block, options checked against the signature of each loss.

    Raises:
        ValueError: a name or an option that is not known, a value that an option cannot have, or
            factors that are all 0; the message names it and what there is.
    """
    named = {block: 1.0} if isinstance(block, str) else block
    terms = tuple(_term(name, value) for name, value in named.items())
    factors = [term.factor for term in terms]
    if min(factors, default=0) < 0 or not any(factors):
        raise ValueError(f"loss weights must be 0 or more and not all 0, got {block}")
    return terms


def _term(name: str, value: float | Mapping[str, Any]) -> LossTerm:
    if name not in LOSSES:
        raise FaultError(f'no loss "{name}"', f"choose from {', '.join(sorted(LOSSES))}")
    given = dict(value) if isinstance(value, Mapping) else {"weight": value}
    section = _options_of(LOSSES[name].function)
    known = list(section.model_fields)
    for option in given:
        if option not in known:
            near = get_close_matches(option, known, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"it takes {', '.join(known)}"
            raise FaultError(f'loss "{name}" has no option "{option}"', hint)
    try:
        block = section.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f'loss "{name}": {where}: {first["msg"]}') from error
    options = block.model_dump()
    return LossTerm(name, options.pop("weight"), options)


@lru_cache
def _options_of(function: Callable[..., Tensor]) -> type[BaseModel]:
    """The keyword-only parameters of a loss, as a section that checks them."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    options: dict[str, Any] = {
        p.name: (p.annotation, p.default)
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in _ARGUMENTS
    }
    options["weight"] = (float, 1.0)
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return create_model("LossOptions", __config__=config, **options)
