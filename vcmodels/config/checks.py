"""What must agree between the keys of a task; no file is opened."""

import os
from collections.abc import Iterator
from math import prod
from pathlib import Path as FilePath

from vcmodels.config.label_checks import derive_faults, pseudo_faults, turn_faults
from vcmodels.config.messages import Fault, listed, shown
from vcmodels.config.recipe_checks import recipe_faults
from vcmodels.config.task import Task
from vcmodels.errors import OutputError, VolumeError
from vcmodels.volumes.location import expand_location, is_remote

MAX_PATCH_VOXELS = 2**30
_STORE_FILES = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
_SPACINGS = ((1.0, 1.0, 1.0), (4.0, 1.0, 1.0), (1.0, 4.0, 1.0), (1.0, 1.0, 4.0))
"""What the voxels may be like: a coarse axis is halved less often. The volumes will tell."""


def check_task(task: Task) -> list[Fault]:
    """The faults between keys, in the order of the file."""
    return [
        *_patch_faults(task),
        *_target_faults(task),
        *derive_faults(task.dataset_config),
        *turn_faults(task.dataset_config.targets, task.augment),
        *_volume_faults(task),
        *pseudo_faults(task.dataset_config),
        *_output_faults(task),
        *recipe_faults(task),
    ]


def _patch_faults(task: Task) -> Iterator[Fault]:
    """A patch size that the network cannot take, or that no machine can."""
    planned = task.tr_params.given_patch_size
    if planned is None:
        return  # checked once the volumes are open
    patches = {"tr_params": planned}
    inference = task.inference_params.patch_size
    if inference is not None and inference != planned:
        patches["inference_params"] = inference
    for section, patch in patches.items():
        path = (section, "patch_size")
        if prod(patch) > MAX_PATCH_VOXELS:
            yield Fault(
                path, f"{list(patch)} has {prod(patch):.3g} voxels", "give at most 1024^3 in all"
            )
            continue
        errors = [_network_error(task, patch, spacing) for spacing in _SPACINGS]
        if all(errors):  # otherwise `open_volumes` decides, which knows the spacing
            found, _, remedy = str(errors[0]).partition(". ")
            yield Fault(path, found, remedy or "change it, or model_config")
    stride = task.dataset_config.patch_stride
    if stride and any(s > p for s, p in zip(stride, planned, strict=True)):
        found = f"{list(stride)} exceeds tr_params.patch_size {list(planned)}"
        yield Fault(("dataset_config", "patch_stride"), found, "give at most the patch size")


def _network_error(
    task: Task, patch: tuple[int, int, int], spacing: tuple[float, float, float]
) -> ValueError | None:
    planned = task.tr_params.patch_size
    try:
        task.model.check_patch(patch, spacing, planned=None if patch == planned else planned)
    except ValueError as error:
        return error
    return None


def _target_faults(task: Task) -> Iterator[Fault]:
    targets = task.dataset_config.targets
    lowered: dict[str, str] = {}
    for name in targets:
        path = ("dataset_config", "targets", name)
        other = lowered.setdefault(name.lower(), name)
        if other != name:
            yield Fault(path, f"differs from {shown(other)} only in case", "rename one of them")
    wanted = task.inference_params.output_targets
    for name in () if isinstance(wanted, str) else wanted:
        if name not in targets:
            path = ("inference_params", "output_targets")
            yield Fault(path, f"{shown(name)} is no target", f"targets are {listed(targets)}")
    if not isinstance(wanted, str) and len(set(wanted)) != len(wanted):
        path = ("inference_params", "output_targets")
        yield Fault(path, "names a target twice", "name each once")


def _volume_faults(task: Task) -> Iterator[Fault]:
    config = task.dataset_config
    labelled = {name for volume in config.volume_paths for name in volume.labels}
    names: dict[str, int] = {}
    for index, volume in enumerate(config.volume_paths):
        path = ("dataset_config", "volume_paths", index)
        if not volume.labels:
            found = f"has no label (targets: {listed(config.targets)})"
            yield Fault(path, found, "give the path of at least one target")
        if volume.ref_label is not None and volume.ref_label not in volume.labels:
            found = f"{shown(volume.ref_label)} is no label of this volume"
            yield Fault((*path, "ref_label"), found, f"give one of {listed(volume.labels)}")
        first = names.setdefault(volume.name, index) if volume.name else index
        if first != index:
            found = f"{shown(volume.name)} is also the name of volume_paths.{first}"
            yield Fault((*path, "name"), found, "give each volume its own")
    for name, target in config.targets.items():
        if target.derive is None and name not in labelled:
            found = f"no volume has a label for it (labels in volume_paths: {listed(labelled)})"
            remedy = f'add "{name}": path to a volume, or remove the target'
            yield Fault(("dataset_config", "targets", name), found, remedy)


def _output_faults(task: Task) -> Iterator[Fault]:
    """Results and run files may not lie inside a store that is read."""
    outputs = {
        ("inference_params", "output_dir"): task.inference_params.output_dir,
        ("tr_params", "ckpt_out_base"): task.tr_params.ckpt_out_base,
        ("tr_params", "tensorboard_log_dir"): task.tr_params.tensorboard_log_dir,
        ("dataset_config", "cache_file"): task.dataset_config.cache_file,
    }
    for path, text in outputs.items():
        found = _store_around(task, text) if text else None
        if found:
            yield Fault(path, found, "write elsewhere")


def refuse_in_input(task: Task, key: str, place: str) -> None:
    """Refuse an output that lies inside a store that the task reads.

    Raises:
        OutputError: naming the store and the key of the input.
    """
    found = _store_around(task, place)
    if found:
        raise OutputError(key, found, "write elsewhere")


def _store_around(task: Task, text: str) -> str | None:
    """In words, the input's store in which a place lies; None if it lies in none."""
    place = _real(text)
    if place is None:
        return None
    for key, given in _inputs(task):
        location = _real(given)
        store = location and _store_of(location)
        if store and (place == store or store in place.parents):
            return f"{place} lies in the input {store} ({key})"
    return None


def _inputs(task: Task) -> Iterator[tuple[str, str]]:
    given = task.inference_params.input_path
    for text in [given] if isinstance(given, str) else given or []:
        yield "inference_params.input_path", text
    for index, volume in enumerate(task.dataset_config.volume_paths):
        for text in (*volume.inputs, *volume.labels.values()):
            yield f"dataset_config.volume_paths.{index}", text


def _real(text: str) -> FilePath | None:
    """The local path without links; None for a URL, or with a variable that is not set here."""
    if is_remote(text):
        return None
    try:
        return FilePath(os.path.realpath(expand_location(text)))
    except (VolumeError, OSError, ValueError):  # what is wrong with it is told when it is opened
        return None


def _store_of(place: FilePath) -> FilePath:
    """The outermost folder, `place` or around it, that is a Zarr store by name or by content.

    In a pattern the part with the `*`, if it is below a store, belongs to that store.
    """
    store = place
    for folder in (place, *place.parents):
        # Unlike Path.is_file, this is false, and no error, for a name that is too long.
        is_node = any(os.path.isfile(folder / name) for name in _STORE_FILES)  # noqa: PTH113
        if folder.suffix == ".zarr" or is_node:
            store = folder
    return store


def output_notes(task: Task) -> list[str]:
    """What inference will refuse, said before a training is spent on it."""
    params = task.inference_params
    if params.output_dir is None:
        return []
    notes: list[str] = []
    for name, target in task.dataset_config.targets.items():
        if params.output_targets == "all" or name in params.output_targets:
            try:
                target.output_channels(params.dtype)
            except ValueError as error:
                notes.append(f"inference will refuse dataset_config.targets.{name}: {error}")
    return notes
