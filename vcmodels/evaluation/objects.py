"""Objects that post-processing made of predictions, against labels of ids.

An output of ids is scored against the stored label of the same name, from which heads were derived.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vcmodels.config import Task
from vcmodels.config.evaluation_params import MetricChoices
from vcmodels.data.predictions import PredictedLabel
from vcmodels.errors import VolumeError
from vcmodels.evaluation.evaluate import ScoredRegion
from vcmodels.evaluation.pairs import InstancePair
from vcmodels.evaluation.report import Report
from vcmodels.evaluation.scoring import ScoredTarget
from vcmodels.metrics.choice import measured_metrics
from vcmodels.metrics.registry import fitting_metrics
from vcmodels.postprocess import kinds_of_outputs
from vcmodels.postprocess.base import IDS
from vcmodels.postprocess.tuning import TunedStep, read_tuned, tuning_curves
from vcmodels.reporting import Reporter
from vcmodels.results import is_complete, our_attributes
from vcmodels.targets import AnyTarget
from vcmodels.volumes import Place, Volume, is_array, open_volume


@dataclass(frozen=True)
class Objects:
    """What post-processing makes that can be scored."""

    ignored: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By name of an output of ids, the labelled values that do not count."""
    tuned: tuple[TunedStep, ...] = ()
    """How values of steps were chosen."""


def objects_of(task: Task) -> Objects:
    """The outputs of a task's steps that can be scored: ids with a label of the same name."""
    targets = task.dataset_config.targets
    kinds = kinds_of_outputs(task.postprocess, {n: t.kind_name for n, t in targets.items()})
    labels = {name for volume in task.dataset_config.volume_paths for name in volume.labels}
    ignored = {
        name: ignored_ids(name, targets.values())
        for name, kind in kinds.items()
        if kind == IDS and name in labels
    }
    return Objects(ignored, read_tuned(task.run_dir))


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
        objects: which outputs.
        metrics: which ones, by name of the output; those that are measured by default for others.
        reporter: told of objects that were not made yet.

    Raises:
        VolumeError: objects have another extent than their label.
    """
    for name, ignored in objects.ignored.items():
        label = region.volume.labels.get(name)
        if label is None or name in region.volume.pseudo or isinstance(label, PredictedLabel):
            continue
        place = root / name
        if not is_complete(our_attributes(place)):
            reporter.say(f"note: {place} is not made yet: run vcmodels postprocess, then again")
            continue
        if not _is_of_these(root, our_attributes(place)):
            remedy = "vcmodels postprocess with --overwrite makes it again"
            reporter.say(f"note: {place} was made of other predictions, and is left out; {remedy}")
            continue
        found = open_volume(str(place / "0"), key=str(place))
        yield scored_ids(name, found, label, region, ignored, metrics.get(name))


def _is_of_these(root: Place, notes: Mapping[str, Any]) -> bool:
    """Whether what objects were made of is what stands beside them now."""
    for source in notes.get("made_of", {}).values():
        place = root / source["name"] / "0"
        if is_array(place):
            volume = open_volume(str(place), key=str(place), channels="any")
            if volume.fingerprint() != source["content"]:
                return False
    return True


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


def with_tuning(report: Report, tuned: Iterable[TunedStep]) -> Report:
    """The same with how values of steps were chosen, as curves of the first volume that has them."""
    volumes = list(report.volumes)
    for step in tuned:
        at = next((n for n, one in enumerate(volumes) if step.output in one.targets), None)
        if at is not None:
            scores = volumes[at].targets[step.output]
            drawn = replace(scores, curves={**scores.curves, **tuning_curves(step)})
            targets = {**volumes[at].targets, step.output: drawn}
            volumes[at] = replace(volumes[at], targets=targets)
    return replace(report, volumes=tuple(volumes))
