"""The section `evaluation`: what is scored, and by which metrics."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from vcmodels.config.values import TargetName, VolumeChoice
from vcmodels.errors import FaultError
from vcmodels.section import Section


def _require_one(given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    if len(given) != 1:
        found = f"names {len(given)} metrics"
        raise FaultError(found, 'give one in an object, as in {"surface": {"tolerances": [1, 2]}}')
    return given


MetricChoice = (
    Annotated[str, Field(min_length=1, max_length=64)]
    | Annotated[dict[str, dict[str, Any]], AfterValidator(_require_one)]
)


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
