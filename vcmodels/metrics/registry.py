"""Metrics by name: what they compare, how they are measured, and which way is better.

Every target kind that predicts what a metric compares is measured by it. `base` says what a metric is.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from vcmodels.comparison import Compared
from vcmodels.geometry.boxes import Spacing
from vcmodels.metrics.base import (
    AnyMetric,
    Curve,
    FigureValues,
    Measure,
    Metric,
    Metrics,
    Sense,
    Sums,
    VolumeMetric,
)
from vcmodels.metrics.overlap import (
    accuracy,
    centroid_distance,
    confusion,
    dice,
    iou,
    precision,
    ratio,
    recall,
)
from vcmodels.metrics.regression import (
    angle_sums,
    close_share,
    correlation,
    endpoint_error,
    endpoint_sums,
    error_sums,
    mean_absolute,
    mean_angle,
    moment_sums,
    root_mean_square,
    sign_accuracy,
    sign_sums,
)

METRICS: dict[str, AnyMetric] = {
    "dice": Metric(confusion, dice, "max", by_class=True, compares=("masks", "classes")),
    "iou": Metric(confusion, iou, "max", by_class=True, compares="masks"),
    "precision": Metric(confusion, precision, "max", by_class=True, compares="masks"),
    "recall": Metric(confusion, recall, "max", by_class=True, compares="masks"),
    "accuracy": Metric(confusion, accuracy, "max", compares="classes"),
    "correlation": Metric(moment_sums, correlation, "max", compares="values"),
    "mae": Metric(error_sums, mean_absolute, "min", compares="values"),
    "rmse": Metric(error_sums, root_mean_square, "min", compares="values"),
    "sign_accuracy": Metric(sign_sums, sign_accuracy, "max", compares="values"),
    "endpoint_error": Metric(endpoint_sums, endpoint_error, "min", compares="vectors"),
    "angle_deg": Metric(angle_sums, mean_angle, "min", compares=("vectors", "directions")),
    "within_10_deg": Metric(angle_sums, close_share, "max", compares="directions"),
    "centroid_distance": VolumeMetric(
        centroid_distance, {"centroid_distance": "min"}, compares=("masks", "classes")
    ),
}
"""In the order in which they are shown. Another package may add its own."""


def fitting_metrics(predicted: Compared) -> dict[str, AnyMetric]:
    """The members of `METRICS` that compare what is predicted."""
    return {name: metric for name, metric in METRICS.items() if metric.fits(predicted)}


def senses(metrics: Metrics, classes: Sequence[str] = ()) -> dict[str, Sense]:
    """The figures that `summarise` returns, and whether less or more of each is better."""
    return {
        figure: metric.better
        for name, metric in _summed(metrics).items()
        for figure in (name, *(f"{name}_{c}" for c in classes if metric.by_class))
    }


def measure(metrics: Metrics, prediction: Tensor, label: Tensor, valid: Tensor) -> Sums:
    """The sums over the valid voxels of all metrics that are made of sums.

    Args:
        metrics: those that are not made of sums are passed over.
        prediction: (B, C, Z, Y, X) float32, in the form that the metrics compare.
        label: (B, L, Z, Y, X) float32, in the same.
        valid: (B, V, Z, Y, X) bool.
    """
    sums: Sums = {}
    for function, owner in _owners(metrics).items():
        found = function(prediction, label, valid)
        sums |= {f"{owner}.{key}": value for key, value in found.items()}
    return sums


def add_sums(a: Sums, b: Sums) -> Sums:
    """The sums of two parts together; an empty dict stands for nothing."""
    if not a or not b:
        return a or b
    return {name: a[name] + b[name] for name in a}


def summarise(metrics: Metrics, sums: Sums, classes: Sequence[str] = ()) -> dict[str, float]:
    """The figures of what `measure` counted with these metrics, NaN where nothing was valid.

    Args:
        metrics: as given to `measure`.
        sums: of everything that was measured.
        classes: names of the classes but the background; none for masks, values and vectors.
    """
    figures: dict[str, float] = {}
    for name, metric, own in _with_own_sums(metrics, sums):
        figures |= named_figures(name, metric.summarise(own), classes)
    return figures


def curves(metrics: Metrics, sums: Sums, classes: Sequence[str] = ()) -> dict[str, Curve]:
    """The lines for a report, by title, of what `measure` counted; arguments as for `summarise`."""
    del classes
    found: dict[str, Curve] = {}
    for _, metric, own in _with_own_sums(metrics, sums):
        found |= metric.curves(own) if metric.curves is not None else {}
    return found


def measure_volume(
    metrics: Metrics,
    prediction: np.ndarray,
    label: np.ndarray,
    valid: np.ndarray,
    spacing: Spacing,
    classes: Sequence[str] = (),
) -> dict[str, float]:
    """The figures of a whole volume.

    Args:
        metrics: those that do not see a volume whole are passed over.
        prediction: (C, Z, Y, X) float32, in the form that the metrics compare.
        label: (L, Z, Y, X) float32, in the same.
        valid: (V, Z, Y, X) bool.
        spacing: length of a voxel along (z, y, x).
        classes: as for `summarise`.
    """
    figures: dict[str, float] = {}
    for metric in metrics.values():
        if isinstance(metric, VolumeMetric):
            for name, figure in metric(prediction, label, valid, spacing).items():
                figures |= named_figures(name, figure, classes)
    return figures


def _summed(metrics: Metrics) -> dict[str, Metric]:
    return {name: metric for name, metric in metrics.items() if isinstance(metric, Metric)}


def _owners(metrics: Metrics) -> dict[Measure, str]:
    """Each function that measures, and the first metric that uses it, whose name its sums bear."""
    owners: dict[Measure, str] = {}
    for name, metric in _summed(metrics).items():
        owners.setdefault(metric.measure, name)
    return owners


def _with_own_sums(metrics: Metrics, sums: Sums) -> Iterator[tuple[str, Metric, Sums]]:
    """Each metric that is made of sums, with those of its own by the names that it gave them."""
    owners = _owners(metrics)
    for name, metric in _summed(metrics).items():
        owner = f"{owners[metric.measure]}."
        yield (
            name,
            metric,
            {k.removeprefix(owner): v for k, v in sums.items() if k.startswith(owner)},
        )


def named_figures(name: str, figure: FigureValues, classes: Sequence[str]) -> dict[str, float]:
    """A figure by its name; one by class as the mean of the known ones, then each on its own."""
    if not isinstance(figure, Sequence):
        return {name: float(figure)}
    known = [value for value in figure if value == value]
    each = {f"{name}_{c}": value for c, value in zip(classes, figure, strict=bool(classes))}
    return {name: ratio(sum(known), len(known)), **each}
