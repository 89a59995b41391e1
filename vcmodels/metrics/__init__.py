"""Metrics: figures of predictions against labels, by name in `METRICS`."""

from vcmodels.metrics.base import BlockMetric, Curve, Metric, Pair, VolumeMetric
from vcmodels.metrics.plugins import installed_metrics
from vcmodels.metrics.registry import METRICS, measure_volume

__all__ = ["METRICS", "BlockMetric", "Curve", "Metric", "Pair", "VolumeMetric", "measure_volume"]

METRICS.update(installed_metrics(METRICS))  # last: they import from here
