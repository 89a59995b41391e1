"""Which metrics are measured, by names and options as a task or a command line gives them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from vcmodels.errors import FaultError
from vcmodels.metrics.base import AnyMetric, BlockMetric, Metrics, VolumeMetric

NamedMetric = str | Mapping[str, Mapping[str, Any]]
"""A metric by its name, or as {name: {option: value}}."""


def default_metrics(metrics: Metrics) -> dict[str, AnyMetric]:
    """Those that are measured where none are named."""
    return {
        name: metric
        for name, metric in metrics.items()
        if not isinstance(metric, BlockMetric | VolumeMetric) or metric.is_default
    }


def measured_metrics(fitting: Metrics, wanted: Sequence[NamedMetric] | None) -> Metrics:
    """The metrics that are named, or by default those that are not costly.

    Raises:
        FaultError: as for `choose_metrics`.
    """
    return default_metrics(fitting) if wanted is None else choose_metrics(fitting, wanted)


def choose_metrics(fitting: Metrics, wanted: Sequence[NamedMetric]) -> Metrics:
    """The metrics that are named, with their options.

    Args:
        fitting: all that compare what is predicted, by name.
        wanted: those to measure.

    Raises:
        FaultError: one is not among `fitting`, or is named twice; an option is none of the metric, or
            has a value that it cannot have.
    """
    found: dict[str, AnyMetric] = {}
    for one in wanted:
        if not one:
            raise FaultError("an object names no metric", f"choose from {', '.join(fitting)}")
        for name, options in ({one: {}} if isinstance(one, str) else one).items():
            if name not in fitting:
                remedy = f"choose from {', '.join(fitting)}"
                raise FaultError(f'"{name}" is no metric of what is predicted', remedy)
            if name in found:
                raise FaultError(f'"{name}" is named twice', "name it once")
            found[name] = _with_options(name, fitting[name], options) if options else fitting[name]
    return found


def options_of(metric: AnyMetric) -> dict[str, Any]:
    """The options of a metric, with the types that their values have."""
    if not isinstance(metric, BlockMetric):
        return {}
    hints = get_type_hints(type(metric), include_extras=True)
    own = [field.name for field in fields(metric)]
    return {name: hints[name] for name in own if name not in ("compares", "is_default")}


def _with_options(name: str, metric: AnyMetric, options: Mapping[str, Any]) -> AnyMetric:
    known = options_of(metric)
    values: dict[str, Any] = {}
    for option, value in options.items():
        if option not in known:
            remedy = f"choose from {', '.join(known)}" if known else "leave it out"
            raise FaultError(f'"{option}" is no option of {name}', remedy)
        try:
            values[option] = TypeAdapter(known[option]).validate_json(
                json.dumps(value), strict=True
            )
        except ValidationError as error:
            found = f"{option} of {name} is {json.dumps(value)}: {error.errors()[0]['msg']}"
            raise FaultError(found, "correct it") from error
    try:
        return replace(metric, **values)
    except ValueError as error:
        raise FaultError(f"{name}: {error}", "correct its options") from error
