"""What must agree between the keys of a task; no file is opened.

The checks stand in the order in which `check_task` makes them.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path as FilePath

from vcmodels.augment import AnyAugmentation
from vcmodels.augment.base import ElasticAugmentation, LinearAugmentation
from vcmodels.config.inference_params import InferenceParams
from vcmodels.config.messages import Fault, fault_at, listed, nearest, shown
from vcmodels.config.task import DatasetConfig, PseudoLabel, Task, epoch_curves
from vcmodels.config.train_params import TrainingParams
from vcmodels.config.values import check_target_name
from vcmodels.errors import OutputError, VolumeError
from vcmodels.models import AnyModel
from vcmodels.section import PatchShape
from vcmodels.targets import AnyTarget
from vcmodels.volumes.location import expand_location, is_remote

MAX_PATCH_VOXELS = 2**30
_SPACINGS = ((1.0, 1.0, 1.0), (4.0, 1.0, 1.0), (1.0, 4.0, 1.0), (1.0, 1.0, 4.0))
"""What the voxels may be like: a coarse axis is halved less often. The volumes will show."""
_STORE_FILES = ("zarr.json", ".zgroup", ".zarray", ".zattrs")


def check_task(task: Task) -> list[Fault]:
    """The faults between keys, in the order of the file."""
    settings, config, targets = task.tr_params, task.dataset_config, task.dataset_config.targets
    return [
        *_patch_faults(task),
        *_target_faults(targets, task.inference_params),
        *_derive_faults(config),
        *_turn_faults(targets, task.augment),
        *_volume_faults(config),
        *_pseudo_faults(config),
        *_output_faults(task),
        *_mixup_faults(settings, config, task.model),
        *_curve_faults(settings, targets),
        *_start_faults(settings),
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
        elif error := _network_error(task.model, patch, None if patch == planned else planned):
            yield fault_at(path, error, "change it, or model_config")
    stride = task.dataset_config.patch_stride
    if stride and any(s > p for s, p in zip(stride, planned, strict=True)):
        found = f"{list(stride)} exceeds tr_params.patch_size {list(planned)}"
        yield Fault(("dataset_config", "patch_stride"), found, "give at most the patch size")


def _network_error(
    model: AnyModel, patch: PatchShape, planned: PatchShape | None
) -> ValueError | None:
    """Why the network takes the patch at no spacing; `open_volumes` decides, which knows it."""
    errors: list[ValueError] = []
    for spacing in _SPACINGS:
        try:
            model.check_patch(patch, spacing, planned=planned)
        except ValueError as error:
            errors.append(error)
    return errors[0] if len(errors) == len(_SPACINGS) else None


def _target_faults(targets: Mapping[str, AnyTarget], inference: InferenceParams) -> Iterator[Fault]:
    """Names of targets that differ too little, and outputs that name none."""
    lowered: dict[str, str] = {}
    for name in targets:
        path = ("dataset_config", "targets", name)
        other = lowered.setdefault(name.lower(), name)
        if other != name:
            yield Fault(path, f"differs from {shown(other)} only in case", "rename one of them")
    if inference.output_targets == "all":
        return
    path = ("inference_params", "output_targets")
    for name in inference.output_targets:
        if name not in targets:
            yield Fault(path, f"{shown(name)} is no target", f"targets are {listed(targets)}")
    if len(set(inference.output_targets)) != len(inference.output_targets):
        yield Fault(path, "names a target twice", "name each once")


def _derive_faults(config: DatasetConfig) -> Iterator[Fault]:
    """Faults of `derive`: it names a stored label that is a mask or holds ids."""
    for name, target in config.targets.items():
        if target.derive is not None:
            found = _source_fault(target.derive, config)
            if found:
                path = ("dataset_config", "targets", name, "derive")
                yield Fault(path, *found)
                continue
            yield from _stored_too(name, target, config)


def _source_fault(source: str, config: DatasetConfig) -> tuple[str, str] | None:
    """What is wrong with a source, and what to do."""
    other = config.targets.get(source)
    if other is None:
        try:
            check_target_name(source)
        except ValueError as error:
            return f"{shown(source)} can be no label: {error}", "give the label another name"
    elif other.derive is not None:
        return f"{shown(source)} is itself derived", "derive from a label that is stored"
    elif other.stored_channels is not None:
        found = f"{shown(source)} of kind {shown(other.kind)} is no mask and holds no ids"
        return found, "derive from a label with one whole number for each voxel"
    labels = {name for volume in config.volume_paths for name in volume.labels}
    if source not in labels:
        guess = nearest(source, labels)
        remedy = f"did you mean {shown(guess)}?" if guess else f'add "{source}": path to a volume'
        return f"no volume has a label {shown(source)} (they have {listed(sorted(labels))})", remedy
    return None


def _stored_too(name: str, target: AnyTarget, config: DatasetConfig) -> Iterator[Fault]:
    """Faults of stored labels of a derived target: which of the two is meant is not guessed."""
    for index, volume in enumerate(config.volume_paths):
        if name in volume.labels:
            found = f"dataset_config.targets.{name} is derived from {shown(target.derive)}"
            remedy = "remove this path, or that derive"
            yield Fault(("dataset_config", "volume_paths", index, name), found, remedy)


def _turn_faults(
    targets: Mapping[str, AnyTarget], augment: Sequence[AnyAugmentation]
) -> Iterator[Fault]:
    """Faults of labels that may be mirrored and turned, but that the list rotates or warps."""
    names = [a.name for a in augment if isinstance(a, LinearAugmentation | ElasticAugmentation)]
    for name, target in targets.items():
        if names and not target.turns_freely:
            found = f"a stored label of kind {shown(target.kind)} cannot follow {listed(names)}"
            remedy = f'give "derive": the ids it comes from, or take {listed(names)} out of augment'
            yield Fault(("dataset_config", "targets", name), found, remedy)


def _volume_faults(config: DatasetConfig) -> Iterator[Fault]:
    """Volumes without a label or with the name of another, targets without a volume."""
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


def _pseudo_faults(config: DatasetConfig) -> Iterator[Fault]:
    """Faults of `pseudo`: it names labels of its volume, and leaves some to validate against."""
    for index, volume in enumerate(config.volume_paths):
        path = ("dataset_config", "volume_paths", index)
        derived = {
            name: target.derive
            for name, target in config.targets.items()
            if target.derive in volume.labels
        }
        for name, given in volume.pseudo.items():
            if name not in volume.labels and name not in derived:
                found, remedy = "is no label of this volume", f"it has {listed(volume.labels)}"
                yield Fault((*path, "pseudo", name), found, remedy)
            elif name in derived and isinstance(given, PseudoLabel) and given.min_confidence:
                found, remedy = "is derived", f"give it to its source, {shown(derived[name])}"
                yield Fault((*path, "pseudo", name, "min_confidence"), found, remedy)
        stored = [name for name in volume.labels if name in config.targets]
        labels = {**derived, **dict.fromkeys(stored, "")}
        are_pseudo = all({n, source} & volume.pseudo.keys() for n, source in labels.items())
        if volume.split == "val" and labels and are_pseudo:
            found = "all labels of this volume are pseudo-labels, which are not validated against"
            yield Fault((*path, "split"), found, 'give "train", or true labels')


def _output_faults(task: Task) -> Iterator[Fault]:
    """Results and run files may not lie inside a store that is read."""
    inputs = list(_inputs(task))
    outputs = {
        ("inference_params", "output_dir"): task.inference_params.output_dir,
        ("tr_params", "ckpt_out_base"): task.tr_params.ckpt_out_base,
        ("tr_params", "tensorboard_log_dir"): task.tr_params.tensorboard_log_dir,
        ("dataset_config", "cache_file"): task.dataset_config.cache_file,
    }
    for path, text in outputs.items():
        found = _store_around(text, inputs) if text else None
        if found:
            yield Fault(path, found, "write elsewhere")


def _mixup_faults(
    settings: TrainingParams, config: DatasetConfig, model: AnyModel
) -> Iterator[Fault]:
    """Faults of `mixup`: two patches are there to mix, and what looks at single ones is off."""
    if settings.mixup is None:
        return
    path = ("tr_params", "mixup")
    if settings.given_batch_size == 1:
        found = "needs two patches to mix, tr_params.batch_size is 1"
        yield Fault(path, found, "raise it, or remove mixup")
    if config.sampling is not None and config.sampling.hard > 0:
        found = "and dataset_config.sampling.hard exclude each other"
        yield Fault(path, found, "remove one: the loss of a mixed patch is of two")
    if settings.mixup.manifold and not model.mixes_features:
        found = f"{model.name} cannot mix the features of its levels"
        yield Fault((*path, "manifold"), found, "set it to false: the image alone is mixed")


def _curve_faults(settings: TrainingParams, targets: Mapping[str, AnyTarget]) -> Iterator[Fault]:
    """Curves that choose the best checkpoint or end the run, but that there are not."""
    curves = epoch_curves(targets)
    named: dict[tuple[str, ...], str | None] = {("best_metric",): settings.best_metric}
    if settings.early_stopping is not None:
        named["early_stopping", "metric"] = settings.early_stopping.metric
    for path, curve in named.items():
        if curve is not None and curve not in curves:
            found = f"{shown(curve)} is no curve of this run"
            yield Fault(("tr_params", *path), found, f"give one of {listed(curves)}")


def _start_faults(settings: TrainingParams) -> Iterator[Fault]:
    """Keys about a start from other weights that have nothing to act on."""
    if settings.freeze_epochs is not None and not settings.freeze:
        found = "is given, but nothing is frozen"
        yield Fault(("tr_params", "freeze_epochs"), found, "name what in freeze, or remove it")
    if settings.load_weights_only and settings.checkpoint_path is None:
        found = "is given, but no weights are: checkpoint_path is not set"
        yield Fault(("tr_params", "load_weights_only"), found, "set checkpoint_path, or remove it")


def refuse_in_input(task: Task, key: str, place: str) -> None:
    """Refuse an output that lies inside a store that the task reads.

    Raises:
        OutputError: naming the store and the key of the input.
    """
    found = _store_around(place, _inputs(task))
    if found:
        raise OutputError(key, found, "write elsewhere")


def _store_around(text: str, inputs: Iterable[tuple[str, str]]) -> str | None:
    """In words, the input's store in which a place lies; None if it lies in none.

    Args:
        text: the place, as in the task file.
        inputs: the key and the place of everything that is read.
    """
    place = _real(text)
    if place is None:
        return None
    for key, given in inputs:
        location = _real(given)
        store = location and _store_of(location)
        if store and (place == store or store in place.parents):
            return f"{place} lies in the input {store} ({key})"
    return None


def _inputs(task: Task) -> Iterator[tuple[str, str]]:
    """The key and the place of everything that the task reads."""
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
    except (
        VolumeError,
        OSError,
        ValueError,
    ):  # what is wrong with it is reported when it is opened
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


def output_notes(params: InferenceParams, targets: Mapping[str, AnyTarget]) -> list[str]:
    """What inference will refuse, reported before a training is spent on it."""
    if params.output_dir is None:
        return []
    notes: list[str] = []
    for name, target in targets.items():
        if params.output_targets == "all" or name in params.output_targets:
            try:
                target.output_channels(params.dtype)
            except ValueError as error:
                notes.append(f"inference will refuse dataset_config.targets.{name}: {error}")
    return notes
