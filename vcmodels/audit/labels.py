"""Labels against their targets: values that cannot be, and labels with nothing in them."""

from collections.abc import Iterator

from vcmodels.audit.base import AuditScene, Check, Finding, listed
from vcmodels.patches.misfits import LabelCensus, find_misfits


def _find(scene: AuditScene) -> Iterator[Finding]:
    targets = scene.task.dataset_config.targets
    for key, misfit in find_misfits(targets, scene.censuses):
        severity = "error" if misfit.is_fatal else "warning"
        yield Finding(severity, key, misfit.found, misfit.remedy)
    seen: set[str] = set()
    for name, labels in scene.censuses.items():
        source = targets[name].derive or name
        if source not in seen:
            seen.add(source)
            yield from _uniform(source, labels, targets[name].ignored)


def _uniform(name: str, labels: list[LabelCensus], ignored: tuple[int, ...]) -> Iterator[Finding]:
    """Labels that hold one value, or nothing but ignored voxels."""
    held = {label.volume.name: _values(label, ignored) for label in labels if label.census.is_whole}
    nothing = [volume for volume, values in held.items() if not values]
    empty = [volume for volume, values in held.items() if values == {0}]
    subject = f"dataset_config.targets.{name}"
    if nothing:
        found = f"{listed(nothing)}: all voxels of the label are ignored"
        remedy = "correct ignore_label, or leave the label out of the volume"
        yield Finding("warning", subject, found, remedy, {"volumes": nothing})
    if empty:
        found = f"{listed(empty)}: the label is 0 everywhere, so there is background alone"
        remedy = "check the path; if there is no such object, keep the volume as it is"
        yield Finding("warning", subject, found, remedy, {"volumes": empty})
    for volume, values in held.items():
        if len(values) == 1 and 0 not in values:
            (value,) = values
            found = f"{volume}: the label is {value:g} everywhere"
            remedy = 'check the path and "bbox"; a label with one value teaches nothing'
            yield Finding("warning", subject, found, remedy, {"value": value})


def _values(label: LabelCensus, ignored: tuple[int, ...]) -> set[float]:
    """The values that a label holds besides ignored ones; a second one stands for many."""
    census = label.census
    held = {
        float(value) for value, count in census.counts.items() if count and value not in ignored
    }
    if census.figures.voxels or census.together:
        held |= {census.figures.low, census.figures.high}
    return held


CHECK = Check("labels", "Labels", _find)
