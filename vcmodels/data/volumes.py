"""The labelled volumes of a task: opened, expanded, grouped and checked against each other."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import PurePosixPath
from typing import get_args

from vcmodels.config import Task
from vcmodels.config.messages import fault_at, task_error
from vcmodels.config.reading import (
    INPUT,
    expand_together,
    idle_notes,
    open_array,
    require_one_order,
    require_used,
)
from vcmodels.config.task import (
    GroupAttribute,
    PseudoLabel,
    SplitAttribute,
    SplitName,
    VolumeEntry,
)
from vcmodels.data.labels import Label, StoredLabel
from vcmodels.data.predictions import PredictedLabel, prediction_notes
from vcmodels.data.prepared import prepared_arrays
from vcmodels.data.regions import region_of
from vcmodels.data.scans import number_copies, number_scans, share_voxels
from vcmodels.errors import TaskError, VolumeError
from vcmodels.formats import file_stem
from vcmodels.geometry.boxes import Box, Shape, grow_shape
from vcmodels.geometry.gridmap import GridMap
from vcmodels.models import AnyModel
from vcmodels.prepare.plan import settled
from vcmodels.prepare.section import AS_IT_IS, Prepare
from vcmodels.regions.base import Region
from vcmodels.regions.section import RegionConfig
from vcmodels.reporting import Reporter, Silent
from vcmodels.targets import AnyTarget, BinaryTarget
from vcmodels.targets.base import Target
from vcmodels.targets.stored import ForegroundRule
from vcmodels.volumes import Volume
from vcmodels.volumes.location import parent
from vcmodels.volumes.nodes import read_node
from vcmodels.volumes.spacing import differs, in_unit


def settle_groups(volumes: "Sequence[TaskVolume]") -> "list[TaskVolume]":
    """The volumes, each with the `split` that another one of its group has of its own.

    Raises:
        TaskError: a group has volumes of two splits.
    """
    fixed: dict[str, TaskVolume] = {}
    for volume in volumes:
        if volume.group is not None and volume.split is not None:
            first = fixed.setdefault(volume.group, volume)
            if first.split != volume.split:
                found = (
                    f'is "{volume.split}", and {first.name}, also of group {volume.group}, is '
                    f'"{first.split}"'
                )
                raise TaskError(f"{volume.key}.split", found, "give a group one split")
    return [
        replace(v, split=fixed[v.group].split) if v.group in fixed and v.split is None else v
        for v in volumes
    ]


def units_of(volumes: "Sequence[TaskVolume]", numbers: Iterable[int]) -> list[list[int]]:
    """The numbers of volumes that stay together: those of a group, else each by itself.

    In the order of their first volume.
    """
    units: dict[str | int, list[int]] = {}
    for n in numbers:
        group = volumes[n].group
        units.setdefault(n if group is None else group, []).append(n)
    return list(units.values())


MOST_TOLD = 20
MOST_SOURCE_VOXELS = 1 << 27
"""A patch with the margin that its derived labels need; 512 MiB of ids."""
_SEARCHED_GROUPS = 4


@dataclass(frozen=True)
class TaskVolume:
    """One labelled volume: all its arrays have the same extent."""

    name: str
    """Unique among the volumes of the task."""
    key: str
    """The dotted key of its entry."""
    inputs: tuple[Volume, ...]
    """Stacked as channels, in this order."""
    labels: Mapping[str, Volume]
    """By name, of targets and of what they are derived from; a target whose label is missing here
    gets no loss from this volume."""
    ref: Volume | None
    """The label that decides which patches are used; None: all of them."""
    ref_target: str | None
    """Whose `ignore_label` is about that label: its own target, or one that is derived from it."""
    region: Box
    """The part that is used."""
    split: SplitName | None
    """Of its own; volumes of `test` are in no training, see `trained_on`."""
    weight: float
    spacing: tuple[float, float, float]
    """In the unit of the first volume that trains, if both have one; 1 where it is not known."""
    unit: str | None
    pseudo: Mapping[str, float] = field(default_factory=dict)
    """Targets whose label here is a pseudo-label, and how much it counts in the loss."""
    group: str | None = None
    """Volumes of one group are all of one split."""
    ref_ignored: tuple[int, ...] = ()
    """Stored values of `ref` that count as unlabelled, besides 0."""
    ref_foreground: ForegroundRule | None = None
    """Which other values of `ref` are labelled; all when None."""
    scan: int = -1
    """Equal for volumes that show the same voxels where they meet, see `scans`."""
    has_spacing: bool = True
    """Whether the voxel size is known."""
    own: frozenset[str] | None = None
    """Names of the labels that are not only pseudo-labels; all when None."""
    preparation: "Preparation | None" = None
    """What was done to the arrays before anything else; None: they are as they are stored."""

    @property
    def as_stored(self) -> "TaskVolume":
        """The volume before it was prepared."""
        return self.preparation.stored if self.preparation else self

    def box_as_stored(self, box: Box) -> Box:
        """A box of this volume in voxels as they are stored; all of it stands for all that is used."""
        if self.preparation is None:
            return box
        if box == self.region:
            return self.preparation.stored.region
        return self.preparation.grid.inverse().holding(box)

    def label(self, name: str, target: AnyTarget, region: Box) -> Label | None:
        """The label of a target, as far as a region goes; None if this volume lacks it."""
        array = self.labels.get(target.derive or name)
        if array is None:
            return None
        return Label(target, StoredLabel(self.name, array, region), self.spacing)

    @property
    def own_labels(self) -> list[Volume]:
        """The labels that a target is validated against."""
        return [
            label for name, label in self.labels.items() if self.own is None or name in self.own
        ]

    def is_twin(self, other: "TaskVolume") -> bool:
        """Whether it shows the very voxels of another."""
        return self.scan == other.scan >= 0 and self.region == other.region

    def meets(self, region: Box, other: "TaskVolume", other_region: Box) -> bool:
        """Whether a region of this volume shares voxels with one of another."""
        if not self.scan == other.scan >= 0:
            return False
        extent, other_extent = self.inputs[0].extent, other.inputs[0].extent
        return share_voxels(region, extent, other_region, other_extent)

    @property
    def channels(self) -> int:
        """Input channels."""
        return sum(volume.channels for volume in self.inputs)


@dataclass(frozen=True)
class Preparation:
    """What was done to the arrays of a volume."""

    stored: TaskVolume
    """The volume before."""
    grid: GridMap
    """To its grid."""
    prepare: Prepare
    """Settled."""


@dataclass(frozen=True)
class _Place:
    """Where the arrays of one volume are, with every pattern expanded."""

    stem: str
    inputs: tuple[str, ...]
    labels: Mapping[str, str]


def open_volumes(task: Task, reporter: Reporter | None = None) -> list[TaskVolume]:
    """Open all volumes of a task; only metadata is read, but where `prepare` asks for more.

    Args:
        task: the resolved task.
        reporter: shows what is odd but allowed, such as a volume that lacks a target.

    Raises:
        VolumeError: an array is missing, damaged, or does not fit the others; with `on_missing:
            error`, a chunk of an input is not stored.
        TaskError: patterns that do not match, a bbox outside its volume, a split that is unknown,
            a patch size that the network planned for these voxels cannot take. One that is left
            out is not checked: see `vcmodels.patches.resolve`.
    """
    reporter, config = reporter or Silent(), task.dataset_config
    found: list[TaskVolume] = []
    names: dict[str, int] = {}
    for number, entry in enumerate(config.volume_paths):
        key = f"dataset_config.volume_paths.{number}"
        for place in _places(entry, key):
            name = _unique(_name(entry, place), names)
            found.append(_open(entry, place, name, key, config.targets, reporter))
            _report_labels(found[-1], entry, reporter)
            arrays = (*found[-1].inputs, *found[-1].labels.values())
            for note in idle_notes(entry, arrays, key):
                reporter.say(note)
            lacking = [t for t in entry.labels if t not in place.labels]
            if lacking:
                reporter.say(f"volume {name} has no {', '.join(lacking)}: no loss for it there")
    scans = number_scans([(*volume.inputs, *volume.own_labels) for volume in found])
    found = [replace(volume, scan=scan) for volume, scan in zip(found, scans, strict=True)]
    found = settle_groups(found)
    trained = trained_on(found)
    if config.on_missing == "error":
        for array, region in ((array, v.region) for v in trained for array in v.inputs):
            array.require_stored(region, "dataset_config.on_missing")
    if config.prepare is not None or config.region is not None:
        prepare = AS_IT_IS if config.prepare is None else config.prepare
        found = _prepare_all(found, prepare, config.region, config.targets, reporter)
    first = [*trained_on(found), *found][0]
    found = in_one_unit(found, first.unit)
    _check_alike(found, first, reporter)
    _report_metadata([volume.as_stored for volume in found], reporter)
    _report_lengths(config.targets, found, reporter)
    if (trained := trained_on(found)) and (patch := task.tr_params.given_patch_size) is not None:
        check_patch(patch, task.model, config.targets, trained, reporter)
    return found


def _prepare_all(
    volumes: "Sequence[TaskVolume]",
    prepare: Prepare,
    wanted: RegionConfig | None,
    targets: Mapping[str, AnyTarget],
    reporter: Reporter,
) -> "list[TaskVolume]":
    """The volumes on their prepared grids; what `prepare` leaves open is learnt from those that train.

    Raises:
        VolumeError, TaskError: as `settled`, `region_of` and `prepared_arrays`.
    """
    trained = [*trained_on(volumes), *volumes]
    learnt = [v for v in trained_on(volumes) if v.split != "val"] or trained
    unit = trained[0].unit
    prepare = settled(prepare, [volume.inputs for volume in learnt], unit, reporter)
    regions = [wanted and region_of(wanted, v.name, v.inputs, v.labels, reporter) for v in volumes]
    pairs = zip(volumes, regions, strict=True)
    return [_prepared(v, prepare, region, targets, unit, reporter) for v, region in pairs]


def _prepared(
    volume: "TaskVolume",
    prepare: Prepare,
    wanted: Region | None,
    targets: Mapping[str, AnyTarget],
    unit: str | None,
    reporter: Reporter,
) -> "TaskVolume":
    """A volume with its arrays on the prepared grid; see `prepared_arrays`.

    Raises:
        TaskError: nothing of its bbox is left.
    """
    readers = {name: reader_of(name, targets) for name in volume.labels}
    made = prepared_arrays(prepare, volume.inputs, volume.labels, readers, unit, reporter, wanted)
    region, first = made.grid.holding(volume.region), made.inputs[0]
    if not region.voxels:
        found = f"nothing of it is left by the crop or the region of {volume.name}"
        raise TaskError(f"{volume.key}.bbox", found, "leave one of them out")
    ref = next((made.labels[n] for n, label in volume.labels.items() if label is volume.ref), None)
    return replace(
        volume,
        inputs=made.inputs,
        labels=made.labels,
        ref=ref,
        region=region,
        spacing=first.spacing,
        unit=first.unit,
        preparation=Preparation(volume, made.grid, prepare),
    )


def trained_on(volumes: "Sequence[TaskVolume]") -> "list[TaskVolume]":
    """The volumes that a training sees, to train or to validate: all but those of `test`."""
    return [volume for volume in volumes if volume.split != "test"]


def with_copies(volumes: Sequence[TaskVolume]) -> list[TaskVolume]:
    """The volumes, of one `scan` also where an input is a copy of another's; few voxels are read.

    Copies that have pseudo-labels alone may be trained on: validation compares with none of them.
    """
    inputs = [volume.inputs if volume.own_labels else () for volume in volumes]
    scans = number_copies(inputs, [volume.scan for volume in volumes])
    return [replace(volume, scan=scan) for volume, scan in zip(volumes, scans, strict=True)]


def check_patch(
    patch: Shape,
    network: AnyModel,
    targets: Mapping[str, AnyTarget],
    volumes: Sequence[TaskVolume],
    reporter: Reporter,
) -> None:
    """Check a patch size against the volumes.

    Raises:
        TaskError: the network cannot take it, or derived labels look too far around it.
    """
    _check_network(network, patch, volumes[0].spacing)
    _check_margins(targets, patch, volumes)
    _report_short(patch, volumes, reporter)


def report_missing(volumes: Sequence[TaskVolume], reporter: Reporter) -> None:
    """Report how many chunks are not stored: a mask, or a copy that was cut short, reads as fill.

    And what else is odd: stored chunks that hold nothing, a store that cannot be listed.
    """
    for volume in (one.as_stored for one in volumes[:MOST_TOLD]):
        arrays = [("input", image) for image in volume.inputs] + list(volume.labels.items())
        missing = [(name, array, array.missing_blocks()) for name, array in arrays]
        lines = [f"{name} {n} of {prod(a.names.counts)}" for name, a, n in missing if n]
        if lines:
            reporter.say(f"{volume.name}: chunks not stored, read as fill: {', '.join(lines)}")
        for name, array in arrays:
            if oddity := array.oddity:
                reporter.say(f"{volume.name}: {name} {oddity}")


def _places(entry: VolumeEntry, key: str) -> Iterator[_Place]:
    """The volumes that an entry stands for: one, or as many as its `*` matches."""
    for stem, inputs, labels in expand_together(entry.inputs, entry.labels, key):
        if entry.ref_label is not None and entry.ref_label not in labels:
            found = f"there is no such label for '*' = {stem}"
            raise TaskError(f"{key}.{entry.ref_label}", found, "ref_label needs one per volume")
        yield _Place(stem, inputs, labels)


def _open(
    entry: VolumeEntry,
    place: _Place,
    name: str,
    key: str,
    targets: Mapping[str, AnyTarget],
    reporter: Reporter,
) -> TaskVolume:
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
    has_own = [n for n, t in targets.items() if (t.derive or n) in labels and n not in pseudo]
    is_true = bool(has_own or not pseudo)
    return TaskVolume(
        name, key, inputs, labels, ref, about,
        _region(entry, first, key), _split(entry, first, key, is_true=is_true), entry.weight, first.spacing,
        first.unit, pseudo, _group(entry, first, key),
        targets[about].ignored if about else (), targets[about].annotated if about else None,
        has_spacing=first.has_spacing,
        own=frozenset(targets[name].derive or name for name in has_own),
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
        reporter.say(f"volume {volume.name}: pseudo-labels, not validated against: {listed}")


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

    What has pseudo-labels alone (not `is_true`) trains, as a validation would find nothing to compare
    with; but what is kept for testing stays out of any training.
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


def _check_alike(volumes: list[TaskVolume], first: TaskVolume, reporter: Reporter) -> None:
    """Refuse other numbers of channels than the first that trains has; report other voxel sizes."""
    for volume in volumes:
        if volume.channels != first.channels:
            found = f"{volume.name} has {volume.channels} channels, {first.name} {first.channels}"
            raise VolumeError(f"{volume.key}.input", found, "all inputs need equally many")
    differing = [
        v
        for v in volumes
        if differs(v.spacing, first.spacing)
        or (v.has_spacing != first.has_spacing and v.unit != first.unit)
    ]
    if differing:
        other = differing[0]
        reporter.say(
            f"voxel sizes differ: {first.name} has {spacing_text(first)}, {other.name} {spacing_text(other)}"
            f" ({len(differing)} of {len(volumes)} volumes differ); the network is planned for the first"
        )


def in_one_unit(volumes: "Sequence[TaskVolume]", unit: str | None) -> "list[TaskVolume]":
    """The volumes with their spacing in a unit, as far as units are known."""
    return [
        replace(v, spacing=in_unit(v.spacing, v.unit, unit), unit=unit) if v.unit and unit else v
        for v in volumes
    ]


def spacing_text(volume: "TaskVolume | Volume") -> str:
    """The voxel size along (z, y, x) with its unit, in words."""
    if not volume.has_spacing:
        return "unknown"
    unit = f" {volume.unit}" if volume.unit else ""
    return " x ".join(f"{length:g}" for length in volume.spacing) + unit


def _report_metadata(volumes: Sequence[TaskVolume], reporter: Reporter) -> None:
    """Report what the stores say and is not understood; the voxel size of labels is not used."""
    found: dict[str, None] = {}
    for volume in volumes:
        for image in volume.inputs:
            found |= dict.fromkeys(metadata_notes(image))
        for label in volume.labels.values():
            found |= dict.fromkeys(f"note: {label.shown}: {note}" for note in label.axes_notes)
    for note in [*found][:MOST_TOLD]:
        reporter.say(note)


def metadata_notes(image: Volume) -> list[str]:
    """What the store of an input says and is not understood, or is read in an unexpected way."""
    return [f"note: {image.shown}: {n}" for n in (*image.axes_notes, *image.spacing_notes)]


def _report_lengths(
    targets: Mapping[str, AnyTarget], volumes: Sequence[TaskVolume], reporter: Reporter
) -> None:
    """Report lengths of targets that count voxels, because no voxel size is known."""
    unknown = [volume for volume in volumes if not volume.has_spacing]
    names = [name for name, target in targets.items() if target.derive and _has_lengths(target)]
    if unknown and names:
        reporter.say(
            f"note: the voxel size of {unknown[0].name} is unknown: lengths of {', '.join(names)} count "
            f'voxels there; give "spacing" ({unknown[0].key}.spacing)'
        )


def _has_lengths(target: AnyTarget) -> bool:
    """Whether what is derived depends on the voxel size."""
    return target.source_margin((0.1, 0.1, 0.1)) != target.source_margin((10.0, 10.0, 10.0))


def _report_short(patch: Shape, volumes: Sequence[TaskVolume], reporter: Reporter) -> None:
    short = [v for v in volumes if any(n < p for n, p in zip(v.region.shape, patch, strict=True))]
    if short:
        reporter.say(
            f"{len(short)} of {len(volumes)} volumes are shorter than the patch {patch} along an "
            f"axis (the first: {short[0].name}, {short[0].region.shape}): patches are padded there"
        )


def _check_network(network: AnyModel, patch: Shape, spacing: tuple[float, float, float]) -> None:
    """The network's levels follow from the voxel size, so this waits until that is known."""
    try:
        network.check_patch(patch, spacing)
    except ValueError as error:
        raise task_error([fault_at(("tr_params", "patch_size"), error, "")]) from error


def _check_margins(
    targets: Mapping[str, AnyTarget], patch: Shape, volumes: Sequence[TaskVolume]
) -> None:
    """A length in another unit than the spacing makes a margin that no machine could read."""
    for name, target in targets.items():
        if target.derive is None:
            continue
        volume = min(volumes, key=lambda volume: min(volume.spacing))
        margin = target.source_margin(volume.spacing)
        if prod(grow_shape(patch, margin)) > MOST_SOURCE_VOXELS:
            found = (
                f"is derived from {margin} voxels (z, y, x) around a patch, too much to read, and "
                f"a voxel of {volume.name} is {volume.spacing} {volume.unit or 'units'}"
            )
            remedy = "give lengths such as clip, sigma and width in the unit of the spacing"
            raise TaskError(f"dataset_config.targets.{name}", found, remedy)
