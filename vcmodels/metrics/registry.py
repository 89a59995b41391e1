"""Metrics by name: what they compare, how they are measured, and which way is better.

Every target kind that predicts what a metric compares is measured by it. `base` says what a metric is.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from torch import Tensor

from vcmodels.comparison import Compared
from vcmodels.geometry.boxes import Spacing
from vcmodels.metrics.base import (
    AnyMetric,
    Curve,
    CurveValues,
    FigureValues,
    Measure,
    Metric,
    Metrics,
    Sense,
    Sums,
    VolumeMetric,
)
from vcmodels.metrics.calibration import brier, calibration_error, reliability_curve
from vcmodels.metrics.components import Components
from vcmodels.metrics.curves import (
    average_precision,
    best_dice,
    best_threshold,
    probability_sums,
    roc_area,
    threshold_curves,
)
from vcmodels.metrics.instances import Instances
from vcmodels.metrics.overlap import (
    accuracy,
    centroid_distance,
    confusion,
    dice,
    iou,
    precision,
    ratio,
    recall,
    specificity,
)
from vcmodels.metrics.regression import (
    angle_counts,
    angle_histogram,
    angle_quantile,
    angle_sums,
    close_share,
    correlation,
    determination,
    endpoint_error,
    endpoint_sums,
    error_counts,
    error_histogram,
    error_quantile,
    error_sums,
    mean_absolute,
    mean_angle,
    moment_sums,
    root_mean_square,
    sign_accuracy,
    sign_sums,
)
from vcmodels.metrics.sheets import SheetPairs
from vcmodels.metrics.surface import SurfaceMetric
from vcmodels.metrics.surface_score import SurfaceScore
from vcmodels.metrics.thin import CENTRELINE_SENSES, centreline_dice
from vcmodels.metrics.topology import TopologyMetric

VOXELWISE: tuple[Compared, ...] = ("masks", "classes")
DIRECTED: tuple[Compared, ...] = ("vectors", "directions")
_confused = partial(Metric, confusion, takes_counts=True, compares=VOXELWISE)
_ranked = partial(
    Metric, probability_sums, takes_counts=True, needs_probabilities=True, compares=VOXELWISE
)

METRICS: dict[str, AnyMetric] = {
    "dice": _confused(dice, "max", by_class=True),
    "iou": _confused(iou, "max", by_class=True),
    "precision": _confused(precision, "max", by_class=True),
    "recall": _confused(recall, "max", by_class=True),
    "specificity": _confused(specificity, "max", by_class=True),
    "accuracy": _confused(accuracy, "max"),
    "average_precision": _ranked(
        average_precision, "max", by_class=True, curves=threshold_curves
    ),
    "roc_area": _ranked(roc_area, "max", by_class=True),
    "best_dice": _ranked(best_dice, "max", by_class=True),
    "best_threshold": _ranked(best_threshold, None, by_class=True),
    "calibration_error": _ranked(calibration_error, "min", curves=reliability_curve),
    "brier": _ranked(brier, "min"),
    "correlation": Metric(moment_sums, correlation, "max", compares="values"),
    "r2": Metric(moment_sums, determination, "max", compares="values"),
    "mae": Metric(error_sums, mean_absolute, "min", compares="values"),
    "rmse": Metric(error_sums, root_mean_square, "min", compares="values"),
    "median_error": Metric(
        error_counts, partial(error_quantile, share=0.5), "min", compares="values",
        curves=error_histogram,
    ),
    "p90_error": Metric(
        error_counts, partial(error_quantile, share=0.9), "min", compares="values"
    ),
    "p95_error": Metric(
        error_counts, partial(error_quantile, share=0.95), "min", compares="values"
    ),
    "sign_accuracy": Metric(sign_sums, sign_accuracy, "max", compares="values"),
    "endpoint_error": Metric(endpoint_sums, endpoint_error, "min", compares="vectors"),
    "angle_deg": Metric(angle_sums, mean_angle, "min", compares=DIRECTED),
    "angle_median_deg": Metric(
        angle_counts, partial(angle_quantile, share=0.5), "min", compares=DIRECTED,
        curves=angle_histogram,
    ),
    "angle_p90_deg": Metric(
        angle_counts, partial(angle_quantile, share=0.9), "min", compares=DIRECTED
    ),
    "angle_p95_deg": Metric(
        angle_counts, partial(angle_quantile, share=0.95), "min", compares=DIRECTED
    ),
    "within_10_deg": Metric(angle_sums, close_share, "max", compares="directions"),
    "centroid_distance": VolumeMetric(
        centroid_distance, {"centroid_distance": "min"}, compares=VOXELWISE
    ),
    "surface": SurfaceMetric(compares=VOXELWISE),
    "surface_score": SurfaceScore(compares=VOXELWISE, is_default=False),
    "components": Components(compares=VOXELWISE, is_default=False),
    "topology": TopologyMetric(compares=VOXELWISE, is_default=False),
    "cldice": VolumeMetric(
        centreline_dice, CENTRELINE_SENSES, compares=VOXELWISE, is_default=False
    ),
    "sheets": SheetPairs(compares=("masks", "instances"), is_default=False),
    "instances": Instances(compares="instances"),
}  # fmt: skip
"""In the order in which they are shown. Another package may add its own."""


def fitting_metrics(predicted: Compared) -> dict[str, AnyMetric]:
    """The members of `METRICS` that compare what is predicted."""
    return {name: metric for name, metric in METRICS.items() if metric.fits(predicted)}


def is_countable(metrics: Metrics) -> bool:
    """Whether those that are made of sums take numbers of voxels in the place of `valid`."""
    return all(metric.takes_counts for metric in _summed(metrics).values())


def senses(metrics: Metrics, classes: Sequence[str] = ()) -> dict[str, Sense]:
    """The figures of `summarise` of which less or more is better, and which of the two."""
    return {
        figure: metric.better
        for name, metric in _summed(metrics).items()
        if metric.better is not None
        for figure in (name, *(f"{name}_{c}" for c in classes if metric.by_class))
    }


def volume_senses(metrics: Metrics, classes: Sequence[str] = ()) -> dict[str, Sense]:
    """As `senses`, of all metrics that score a volume.

    Whether one that is not made of sums has a figure for each class shows when it is measured: here
    it is given one.
    """
    found = senses(metrics, classes)
    for metric in metrics.values():
        if not isinstance(metric, Metric):
            for figure, sense in metric.better.items():
                found |= dict.fromkeys((figure, *(f"{figure}_{c}" for c in classes)), sense)
    return found


def measure(metrics: Metrics, prediction: Tensor, label: Tensor, valid: Tensor) -> Sums:
    """The sums over the valid voxels of all metrics that are made of sums.

    Args:
        metrics: those that are not made of sums are passed over.
        prediction: (B, C, Z, Y, X) float32, in the form that the metrics compare.
        label: (B, L, Z, Y, X) float32, in the same.
        valid: (B, V, Z, Y, X) bool; where `is_countable` also int64, the number of voxels that each
            element stands for.
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
    own, figures = _own_sums(metrics, sums), dict[str, float]()
    for name, metric in _summed(metrics).items():
        figures |= named_figures(name, metric.summarise(own[metric.measure]), classes)
    return figures


def curves(metrics: Metrics, sums: Sums, classes: Sequence[str] = ()) -> dict[str, Curve]:
    """The lines of what `measure` counted, by title; of classes one for each, named after it.

    Arguments as for `summarise`.
    """
    own, found = _own_sums(metrics, sums), dict[str, Curve]()
    for metric in _summed(metrics).values():
        lines = metric.curves(own[metric.measure]) if metric.curves else {}
        for title, line in lines.items():
            found |= _titled(title, line, classes)
    return found


def _titled(title: str, line: CurveValues, classes: Sequence[str]) -> dict[str, Curve]:
    """A curve by its title; one by class by that and the name of the class."""
    if isinstance(line, Curve):
        return {title: line}
    if len(line) == 1 and not classes:
        return {title: line[0]}
    names = classes or [str(number) for number in range(1, len(line) + 1)]
    return {f"{title}: {name}": one for name, one in zip(names, line, strict=True)}


def _own_sums(metrics: Metrics, sums: Sums) -> Mapping[Measure, Sums]:
    """The sums of each function that measures, by its own names."""
    return {
        function: {
            key.removeprefix(f"{owner}."): value
            for key, value in sums.items()
            if key.startswith(f"{owner}.")
        }
        for function, owner in _owners(metrics).items()
    }


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


def named_figures(name: str, figure: FigureValues, classes: Sequence[str]) -> dict[str, float]:
    """A figure by its name; one by class as the mean of the known ones, then each on its own."""
    if not isinstance(figure, Sequence):
        return {name: float(figure)}
    known = [value for value in figure if value == value]
    each = {f"{name}_{c}": value for c, value in zip(classes, figure, strict=bool(classes))}
    return {name: ratio(sum(known), len(known)), **each}
