"""What of several predictions of one voxel is averaged: `tta` and `ensemble`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vcmodels.augment.exact import Axes, Plane
from vcmodels.section import Section


class Tta(Section):
    """`tta`: views of each patch, which are predicted, turned back and averaged."""

    flips: Axes = ()
    """Axes that are mirrored, by name."""
    quarter_turns: bool | tuple[Plane, ...] = False
    """Turns by 90 degrees in all planes, or in these, such as [["y", "x"]]; by 180 only where the two
    axes differ in voxel size or patch length."""

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if not self.flips and not self.quarter_turns:
            raise ValueError("names no view; give flips or quarter_turns, or null")
        return self


class EnsembleParams(Section):
    """`ensemble`: how several checkpoints are averaged."""

    by: Literal["mean", "variance"] = "mean"
    """`variance`: a checkpoint counts less where its own views disagree; needs `tta`."""
    weights: Annotated[list[Annotated[float, Field(gt=0, le=1e6)]], Field(min_length=1)] | None = (
        None
    )
    """Of the checkpoints, in their order, for `mean`; all alike when null."""

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.by == "variance" and self.weights is not None:
            raise ValueError('weights are for "by": "mean"; leave them out')
        return self
