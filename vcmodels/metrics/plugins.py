"""Metrics of other packages, which name them as entry points of the group `vcmodels.metrics`.

See https://packaging.python.org/en/latest/specifications/entry-points/.
"""

from collections.abc import Collection
from importlib.metadata import entry_points

from vcmodels.errors import RefusedError
from vcmodels.metrics.base import AnyMetric

GROUP = "vcmodels.metrics"


def installed_metrics(taken: Collection[str] = ()) -> dict[str, AnyMetric]:
    """The metrics of installed packages, by the names of their entry points.

    Args:
        taken: names of metrics that are there already.

    Raises:
        RefusedError: one has a name that is taken, cannot be imported, or is no metric.
    """
    found: dict[str, AnyMetric] = {}
    for entry in entry_points(group=GROUP):
        subject = f"entry point {entry.name} = {entry.value}"
        if entry.name in taken or entry.name in found:
            raise RefusedError(subject, "there is a metric of this name", "rename it")
        try:
            metric = entry.load()
        except (ImportError, AttributeError) as error:
            remedy = "repair or uninstall the package that names it"
            raise RefusedError(subject, f"cannot be imported ({error})", remedy) from error
        if not isinstance(metric, AnyMetric):
            remedy = "make it a Metric, BlockMetric or VolumeMetric"
            raise RefusedError(subject, f"is a {type(metric).__name__}", remedy)
        found[entry.name] = metric
    return found
