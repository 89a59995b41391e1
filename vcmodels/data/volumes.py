"""The labelled volumes of a task: opened, expanded, grouped and checked against each other."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Literal

from vcmodels.config import Task
from vcmodels.config.messages import fault_at, task_error
from vcmodels.data.opening import open_each, reader_of
from vcmodels.data.prepared import prepared_arrays
from vcmodels.data.regions import region_of
from vcmodels.data.scans import number_copies, number_scans
from vcmodels.data.task_volume import Preparation, TaskVolume
from vcmodels.errors import TaskError, VolumeError
from vcmodels.geometry.boxes import Shape, grow_shape
from vcmodels.models import AnyModel
from vcmodels.prepare.plan import settled
from vcmodels.prepare.section import AS_IT_IS, Prepare
from vcmodels.regions.base import Region
from vcmodels.regions.section import RegionConfig
from vcmodels.reporting import Reporter, Silent
from vcmodels.targets import AnyTarget
from vcmodels.volumes import Volume
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
    found = open_each(task, reporter)
    scans = number_scans([(*volume.inputs, *volume.own_labels) for volume in found])
    found = [
        replace(volume, scan=scan, stack=config.stack, coordinates=config.coordinates)
        for volume, scan in zip(found, scans, strict=True)
    ]
    found = settle_groups(found)
    trained = trained_on(found)
    require_balance(trained, config.balance)
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


def require_balance(
    volumes: "Sequence[TaskVolume]", balance: Literal["cohort", "group"] | None
) -> None:
    """Refuse to draw alike from all cohorts, or groups, where a volume that may train is in none.

    Raises:
        TaskError: naming the volume.
    """
    for volume in volumes:
        if balance and volume.split != "val" and getattr(volume, balance) is None:
            found = f"is not set, and dataset_config.balance draws alike from each {balance}"
            raise TaskError(f"{volume.key}.{balance}", found, "set it, or leave balance out")


def with_copies(volumes: Sequence[TaskVolume]) -> list[TaskVolume]:
    """The volumes, of one `scan` also where an input is a copy of another's; few voxels are read.

    Copies that have pseudo-labels alone may be trained on: validation compares with none of them.
    """
    inputs = [volume.as_stored.inputs if volume.own_labels else () for volume in volumes]
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


def _check_alike(volumes: list[TaskVolume], first: TaskVolume, reporter: Reporter) -> None:
    """Refuse other numbers of channels than the first that trains has; report other voxel sizes."""
    for volume in volumes:
        there, wanted = volume.stored_channels, first.stored_channels
        if there != wanted:
            found = f"{volume.name} has {there} channels, {first.name} {wanted}"
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
