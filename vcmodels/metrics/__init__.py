"""Metrics: figures of predictions against labels, by name in `METRICS`."""

from vcmodels.metrics.registry import METRICS, Metric, VolumeMetric, measure_volume

__all__ = ["METRICS", "Metric", "VolumeMetric", "measure_volume"]
