"""From an entry of `volume_paths` to labelled volumes: patterns expanded, arrays opened, keys looked up."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import get_args

from vcmodels.config import Task
from vcmodels.config.reading import (
    INPUT,
    expand_together,
    idle_notes,
    open_array,
    require_one_order,
    require_used,
)
from vcmodels.config.task import (
    DatasetConfig,
    GroupAttribute,
    PseudoLabel,
    SplitAttribute,
    SplitName,
    VolumeEntry,
)
from vcmodels.data.placing import placed_label, require_one_place
from vcmodels.data.predictions import PredictedLabel, prediction_notes
from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import TaskError, VolumeError
from vcmodels.formats import file_stem
from vcmodels.formats.imported import imported
from vcmodels.geometry.boxes import Box
from vcmodels.reporting import Reporter
from vcmodels.targets import AnyTarget, BinaryTarget
from vcmodels.targets.base import Target
from vcmodels.volumes import Volume
from vcmodels.volumes.location import parent
from vcmodels.volumes.nodes import read_node

OPENED_AT_ONCE = 16
_SEARCHED_GROUPS = 4


@dataclass(frozen=True)
class _Place:
    """Where the arrays of one volume are, with every pattern expanded."""

    stem: str
    inputs: tuple[str, ...]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class _Opening:
    """A volume that is to be opened."""

    entry: VolumeEntry
    place: _Place
    name: str
    key: str

    @property
    def locations(self) -> Iterator[tuple[str, str]]:
        """The key inside of its entry, and the location, of each array."""
        yield from ((INPUT, location) for location in self.place.inputs)
        yield from self.place.labels.items()


def open_each(task: Task, reporter: Reporter) -> list[TaskVolume]:
    """The volumes of a task, not yet compared with each other; only metadata is read.

    Args:
        task: the resolved task.
        reporter: told what is odd in one of them.

    Raises:
        VolumeError, TaskError: as from `open_volumes`.
    """
    config, names = task.dataset_config, dict[str, int]()
    every = [
        _Opening(entry, place, _unique(_name(entry, place), names), key)
        for number, entry in enumerate(config.volume_paths)
        for key in (f"dataset_config.volume_paths.{number}",)
        for place in _places(entry, key)
    ]
    for one in every:  # files that are no Zarr, one after the other: each shows its progress
        for array, location in one.locations:
            imported(location, f"{one.key}.{array}", reporter)
    with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:  # of 1,000 volumes, most of the time is waited
        found = list(pool.map(lambda one: _open(one, config, reporter), every))
    for one, volume in zip(every, found, strict=True):
        _report_opened(one, volume, reporter)
    return found


def _report_opened(one: "_Opening", volume: TaskVolume, reporter: Reporter) -> None:
    """Report what is odd in one volume."""
    _report_labels(volume, one.entry, reporter)
    for note in idle_notes(one.entry, (*volume.inputs, *volume.labels.values()), one.key):
        reporter.say(note)
    lacking = [label for label in one.entry.labels if label not in one.place.labels]
    if lacking:
        reporter.say(f"volume {one.name} has no {', '.join(lacking)}: no loss for it there")


def _places(entry: VolumeEntry, key: str) -> Iterator[_Place]:
    """The volumes that an entry stands for: one, or as many as its `*` matches."""
    for stem, inputs, labels in expand_together(entry.inputs, entry.labels, key):
        if entry.ref_label is not None and entry.ref_label not in labels:
            found = f"there is no such label for '*' = {stem}"
            raise TaskError(f"{key}.{entry.ref_label}", found, "ref_label needs one per volume")
        yield _Place(stem, inputs, labels)


def _open(one: _Opening, config: DatasetConfig, reporter: Reporter) -> TaskVolume:
    entry, place, name, key = one.entry, one.place, one.name, one.key
    targets = config.targets
    inputs = tuple(
        open_array(at, entry, INPUT, "any", key=f"{key}.input", number=number, reporter=reporter)
        for number, at in enumerate(place.inputs)
    )
    labels = {
        label: _open_label(
            partial(open_array, at, entry, label, key=f"{key}.{label}", reporter=reporter),
            reader_of(label, targets),
            entry.pseudo_label(label),
        )
        for label, at in place.labels.items()
    }
    arrays = {f"{INPUT} {number}": image for number, image in enumerate(inputs)} | labels
    require_used(entry, arrays, key)
    require_one_order(arrays)
    first = inputs[0]
    require_one_place(inputs)
    labels = {label: placed_label(array, first, reporter) for label, array in labels.items()}
    for other in (*inputs[1:], *labels.values()):
        if other.extent != first.extent:
            found = (
                f"{other.shown} has shape {_extent_text(other)}, but {first.key} "
                f"({first.shown}) has {_extent_text(first)}"
            )
            raise VolumeError(other.key, found, "the arrays of a volume must have equal shapes")
    ref = labels[entry.ref_label] if entry.ref_label is not None else None
    about = _about(entry.ref_label, targets)
    pseudo = _pseudo(entry, targets)
    is_counted = config.pseudo_in_val
    has_own = [
        name
        for name, target in targets.items()
        if (target.derive or name) in labels and (is_counted or name not in pseudo)
    ]
    is_true = bool(has_own or (labels and not pseudo))
    return TaskVolume(
        name, key, inputs, labels, ref, about,
        _region(entry, first, key), _split(entry, first, key, is_true=is_true), entry.weight, first.spacing,
        first.unit, pseudo, _group(entry, first, key),
        targets[about].ignored if about else (), targets[about].annotated if about else None,
        has_spacing=first.has_spacing,
        own=frozenset(targets[name].derive or name for name in has_own),
        cohort=entry.cohort,
        pseudo_in_val=is_counted,
    )  # fmt: skip


def _extent_text(volume: Volume) -> str:
    turned = f", stored as {', '.join(volume.axes.names)}" if volume.axes.is_transposed else ""
    return f"{volume.extent}{turned}"


def reader_of(label: str, targets: Mapping[str, AnyTarget]) -> Target:
    """The target of a label; of one that others are derived from, a mask as the first of them sees it."""
    if label in targets:
        return targets[label]
    deriving = [target for target in targets.values() if target.derive == label]
    return BinaryTarget(foreground=deriving[0].foreground if deriving else None)


def _open_label(
    opened: Callable[..., Volume], reader: Target, pseudo: PseudoLabel | None
) -> Volume:
    """A label array; a prediction of ours as its target reads it.

    Raises:
        VolumeError: it has other channels, is no such prediction, or holds no confidence.
    """
    least = pseudo.min_confidence if pseudo else None
    try:
        volume = opened(channels=reader.stored_channels)
    except VolumeError:
        volume = opened(channels="any")
        if prediction_notes(volume) is None:
            raise
    notes = prediction_notes(volume)
    if notes is not None:
        return PredictedLabel.of(volume, notes, reader, least)
    if least is not None:
        found = f"{volume.location} is no prediction of vcmodels, which min_confidence is for"
        raise VolumeError(volume.key, found, "leave it out of pseudo")
    return volume


def _report_labels(volume: TaskVolume, entry: VolumeEntry, reporter: Reporter) -> None:
    """Say which labels are predictions, and what becomes of pseudo-labels."""
    for name, label in volume.labels.items():
        if isinstance(label, PredictedLabel):
            told = f"volume {volume.name}: {name} is a prediction of ours, read by its own encoding"
            least = label.min_confidence
            sure = f", where its confidence is {least:g} or more" if least is not None else ""
            counts = '; it counts as a true label unless "pseudo" names it'
            reporter.say(f"{told}{sure}{'' if name in entry.pseudo else counts}")
    if volume.pseudo:
        listed = ", ".join(f"{name} (weight {w:g})" for name, w in volume.pseudo.items())
        no = "" if volume.pseudo_in_val else "not "
        reporter.say(f"volume {volume.name}: pseudo-labels, {no}validated against: {listed}")


def _about(label: str | None, targets: Mapping[str, AnyTarget]) -> str | None:
    """The target of a label, or the first that is derived from it."""
    if label is None or label in targets:
        return label
    return next((name for name, target in targets.items() if target.derive == label), None)


def _pseudo(entry: VolumeEntry, targets: Mapping[str, AnyTarget]) -> dict[str, float]:
    """The weights by target; what is derived from a pseudo-label is one too."""
    found = {
        n: entry.pseudo_label(n) or entry.pseudo_label(t.derive or n) for n, t in targets.items()
    }
    return {name: label.weight for name, label in found.items() if label is not None}


def _region(entry: VolumeEntry, volume: Volume, key: str) -> Box:
    """The bbox cut at the volume's border, or all of the volume."""
    if entry.bbox is None:
        return volume.box
    low, high = zip(*entry.bbox, strict=True)
    region = Box.between(low, high).intersect(volume.box)
    if not region.voxels:
        found = f"{[list(pair) for pair in entry.bbox]} lies outside of the shape {volume.extent}"
        raise TaskError(f"{key}.bbox", found, "give [[z0, z1], [y0, y1], [x0, x1]] inside it")
    return region


def _split(entry: VolumeEntry, volume: Volume, key: str, *, is_true: bool) -> SplitName | None:
    """The entry's split, looked up in the array and the groups around it when it says so.

    What has pseudo-labels alone, or no label (not `is_true`), trains, as a validation would find
    nothing to compare with; but what is kept for testing stays out of any training.
    """
    if not isinstance(entry.split, SplitAttribute):
        return entry.split if is_true or entry.split == "test" else "train"
    name = entry.split.attribute
    value = _find_attribute(volume, name, key)
    for known in get_args(SplitName):
        if value == known:
            return known if is_true or known == "test" else "train"
    if not is_true:
        return "train"
    found = f"attribute {name!r} of {volume.location} and its groups is {value!r}"
    raise TaskError(f"{key}.split", found, 'it must be "train", "val" or "test"')


def _group(entry: VolumeEntry, volume: Volume, key: str) -> str | None:
    """The entry's group, looked up as its split is."""
    if not isinstance(entry.group, GroupAttribute):
        return entry.group
    name = entry.group.attribute
    value = _find_attribute(volume, name, key)
    if isinstance(value, str | int):
        return str(value)
    found = f"attribute {name!r} of {volume.location} and its groups is {value!r}"
    raise TaskError(f"{key}.group", found, "it must be a text or a whole number")


def _find_attribute(volume: Volume, name: str, key: str) -> object:
    if name in volume.attributes:
        return volume.attributes[name]
    location = parent(volume.location)
    for _ in range(_SEARCHED_GROUPS):
        node = read_node(location, key) if location else None
        if node is None:
            return None
        if name in node.attributes:
            return node.attributes[name]
        location = parent(node.location)
    return None


def _name(entry: VolumeEntry, place: _Place) -> str:
    if entry.name is not None:
        return f"{entry.name}-{place.stem}" if place.stem else entry.name
    parts = PurePosixPath(place.inputs[0]).parts
    return place.stem or file_stem(place.inputs[0]) or "/".join(parts[-2:]).lstrip("/")


def _unique(name: str, used: dict[str, int]) -> str:
    """The name, with a number when an earlier volume has it already."""
    used[name] = used.get(name, 0) + 1
    return name if used[name] == 1 else _unique(f"{name}#{used[name]}", used)
