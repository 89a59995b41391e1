"""Blocks on how weights are learnt: `recipe`, `early_stopping` and `mixup` of `tr_params`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from vcmodels.section import Section

RecipeName = Literal["adamw_constant", "adamw_poly", "adamw_cosine", "sgd_poly"]
DEFAULT_RECIPE: RecipeName = "adamw_constant"

_ADAMW = {
    "optimizer": "AdamW",
    "initial_lr": 1e-3,
    "weight_decay": 1e-4,
    "warmup_steps": 50,
    "gradient_clip": 5.0,
}
RECIPES: Mapping[RecipeName, Mapping[str, str | float]] = {
    # Averaging over the last ninth of the steps does what a falling rate does (Shamir & Zhang 2013).
    "adamw_constant": {**_ADAMW, "scheduler": "constant", "ema_decay": 0.9999},
    "adamw_poly": {**_ADAMW, "scheduler": "poly", "ema_decay": 0.995},
    "adamw_cosine": {**_ADAMW, "scheduler": "cosine", "ema_decay": 0.995},
    # nnU-Net's (Isensee et al. 2021; nnUNetTrainer.py of its version 2).
    "sgd_poly": {
        "optimizer": "SGD",
        "initial_lr": 1e-2,
        "weight_decay": 3e-5,
        "warmup_steps": 0,
        "gradient_clip": 12.0,
        "scheduler": "poly",
        "ema_decay": 0.995,
    },
}
"""What keys of `tr_params` are when they are left out, by recipe."""


def recipe_value(key: str) -> Any:  # noqa: ANN401 (what pydantic's own `Field` returns)
    """A field whose default is what the section's `recipe`, a field before it, says."""

    def default(given: dict[str, Any]) -> str | float:
        return RECIPES[given.get("recipe", DEFAULT_RECIPE)][key]

    shown: dict[str, Any] = {"default": RECIPES[DEFAULT_RECIPE][key]}
    return Field(default_factory=default, json_schema_extra=shown)


class EarlyStopping(Section):
    """`early_stopping`: end the run when a curve has not improved for a while."""

    metric: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Name of the curve, such as `val/loss` or `val/dice_sheet`; `best_metric` when null."""
    patience: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    """Epochs without an improvement after which the run ends. An epoch in which the curve has no
    value is one without."""
    min_delta: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """What is less than this better does not count as an improvement."""
    mode: Literal["auto", "min", "max"] = "auto"
    """Whether less or more is better; `auto` knows it of every curve."""


class Mixup(Section):
    """`mixup`: train on weighted means of two patches."""

    alpha: Annotated[float, Field(gt=0, le=100)] = 0.2
    """The share of the first patch is drawn from Beta(alpha, alpha): small values draw shares near 0
    and 1, the value 1 draws all alike."""
    p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the batches that are mixed."""
    manifold: bool = False
    """Mix the image or, as often, the features of any level of the encoder (manifold mixup); false
    mixes the image alone."""
