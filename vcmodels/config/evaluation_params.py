"""The section `evaluation`: what is scored, and by which metrics."""

from typing import Annotated, Any

from pydantic import Field

from vcmodels.config.values import TargetName, VolumeChoice
from vcmodels.section import Section

MetricChoice = Annotated[str, Field(min_length=1, max_length=64)] | dict[str, dict[str, Any]]


MetricChoices = dict[TargetName, Annotated[list[MetricChoice], Field(min_length=1)]]
"""By target."""


class EvaluationParams(Section):
    """`evaluation`: what `evaluate` scores; a training does not depend on it."""

    volumes: VolumeChoice | None = None
    """Which of the labelled volumes: `val`, what was held out of training; `test`, those with
    `"split": "test"`; `all`, as much of each as is used; or a list of their names. When null those
    that `inference_params.volumes` chooses, else `val`; or the one that a single `input_path` is."""
    metrics: MetricChoices = Field(default_factory=dict)
    """By target, which metrics: a list of names, or of {name: {option: value}}. Of a target that is
    not named all that fit it, but for those that are costly, see [evaluation](evaluation.md)."""
