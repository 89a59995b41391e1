"""Objects that post-processing made of predictions, against labels of ids.

An output of ids is scored against the stored label of the same name, from which heads were derived.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from vcmodels.config import Task
from vcmodels.config.evaluation_params import MetricChoices
from vcmodels.data.predictions import PredictedLabel
from vcmodels.errors import VolumeError
from vcmodels.evaluation.evaluate import ScoredRegion
from vcmodels.evaluation.pairs import InstancePair
from vcmodels.evaluation.scoring import ScoredTarget
from vcmodels.metrics.choice import measured_metrics
from vcmodels.metrics.registry import fitting_metrics
from vcmodels.postprocess import kinds_of_outputs
from vcmodels.postprocess.base import IDS
from vcmodels.reporting import Reporter
from vcmodels.results import is_complete, our_attributes
from vcmodels.targets import AnyTarget
from vcmodels.volumes import Place, Volume, open_volume

Objects = Mapping[str, tuple[int, ...]]
"""Names of outputs that hold ids, with the labelled values that do not count."""


def objects_of(task: Task) -> dict[str, tuple[int, ...]]:
    """The outputs of a task's steps that can be scored: ids with a label of the same name."""
    targets = task.dataset_config.targets
    kinds = kinds_of_outputs(task.postprocess, {n: t.kind_name for n, t in targets.items()})
    labels = {name for volume in task.dataset_config.volume_paths for name in volume.labels}
    return {
        name: ignored_ids(name, targets.values())
        for name, kind in kinds.items()
        if kind == IDS and name in labels
    }


def ignored_ids(label: str, targets: Iterable[AnyTarget]) -> tuple[int, ...]:
    """The values of a label of ids that do not count for the targets that are derived from it."""
    return tuple(sorted({v for one in targets if one.derive == label for v in one.ignored}))


def scored_objects(
    region: ScoredRegion,
    root: Place,
    objects: Objects,
    metrics: MetricChoices,
    reporter: Reporter,
) -> Iterator[ScoredTarget]:
    """What is scored of the objects in a result.

    Args:
        region: a part of a labelled volume.
        root: the group of its result.
        objects: names, with the labelled values that do not count.
        metrics: which ones, by name of the output; those that are measured by default for others.
        reporter: told of objects that were not made yet.

    Raises:
        VolumeError: objects have another extent than their label.
    """
    for name, ignored in objects.items():
        label = region.volume.labels.get(name)
        if label is None or name in region.volume.pseudo or isinstance(label, PredictedLabel):
            continue
        place = root / name
        if not is_complete(our_attributes(place)):
            reporter.say(f"note: {place} is not made yet: run vcmodels postprocess, then again")
            continue
        found = open_volume(str(place / "0"), key=str(place))
        yield scored_ids(name, found, label, region, ignored, metrics.get(name))


def scored_ids(
    name: str,
    found: Volume,
    label: Volume,
    region: ScoredRegion,
    ignored: tuple[int, ...],
    metrics: Sequence[object] | None = None,
) -> ScoredTarget:
    """Ids against labelled ids, over a part of a volume.

    Raises:
        VolumeError: they have different extents.
    """
    if found.extent != label.extent:
        text = f"has extent {found.extent}, its label {label.extent}"
        raise VolumeError(found.location, text, "predict again into another output_dir")
    pair = InstancePair(found, label, region.box, region.volume.spacing, ignored)
    measured = measured_metrics(fitting_metrics("instances"), metrics)  # pyright: ignore[reportArgumentType]
    return ScoredTarget(name, pair, measured, label_location=label.location)
