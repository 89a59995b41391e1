"""What must agree between the keys of a task; no file is opened.

The checks stand in the order in which `check_task` makes them.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod

from vcmodels.augment import AnyAugmentation
from vcmodels.augment.base import Axis, ElasticAugmentation, LinearAugmentation
from vcmodels.augment.geometric import Affine, Compress
from vcmodels.config.evaluation_params import MetricChoices
from vcmodels.config.inference_params import InferenceParams
from vcmodels.config.messages import Fault, KeyPath, fault_at, listed, nearest, shown
from vcmodels.config.reading import MASK, key_faults
from vcmodels.config.task import (
    OF_VOLUMES,
    DatasetConfig,
    PseudoLabel,
    Task,
    epoch_curves,
    volume_curves,
)
from vcmodels.config.train_params import TrainingParams
from vcmodels.config.values import check_new_name, check_target_name
from vcmodels.errors import FaultError, OutputError, VolumeError
from vcmodels.geometry.symmetries import AXES
from vcmodels.metrics.base import Metrics
from vcmodels.metrics.choice import choose_metrics
from vcmodels.metrics.registry import fitting_metrics
from vcmodels.models import AnyModel
from vcmodels.postprocess import AnyStep, kinds_of_outputs
from vcmodels.postprocess.base import IDS
from vcmodels.section import PatchShape
from vcmodels.targets import AffinitiesTarget, AnyTarget
from vcmodels.volumes.location import expand_location
from vcmodels.volumes.places import cache_folder, input_stores, refuse_in_stores

MAX_PATCH_VOXELS = 2**30
_SPACINGS = ((1.0, 1.0, 1.0), (4.0, 1.0, 1.0), (1.0, 4.0, 1.0), (1.0, 1.0, 4.0))
"""What the voxels may be like: a coarse axis is halved less often. The volumes will show."""


def check_task(task: Task, *, is_record: bool = False) -> list[Fault]:
    """The faults between keys, in the order of the file.

    Args:
        task: with every default.
        is_record: it was checked when a run or a result was made, by the rules of then; names, the
            places that the run wrote to and what is evaluated are not looked at again.
    """
    settings, config, targets = task.tr_params, task.dataset_config, task.dataset_config.targets
    return [
        *(() if is_record else _name_faults(task)),
        *_coordinate_faults(task),
        *_slice_faults(task),
        *_patch_faults(task),
        *_target_faults(targets, task.inference_params),
        *_derive_faults(config),
        *_prepare_faults(config),
        *_turn_faults(targets, task.augment),
        *_volume_faults(config, settings),
        *_sampling_faults(config),
        *_reading_faults(task),
        *_pseudo_faults(config),
        *_output_faults(task, is_record=is_record),
        *_mixup_faults(settings, config, task.model),
        *_lesson_faults(settings),
        *_validation_faults(settings, targets),
        *_start_faults(settings),
        *_step_faults(task),
        *(() if is_record else _evaluation_faults(task)),
    ]


def _step_faults(task: Task) -> Iterator[Fault]:
    """Steps of post-processing that read what is not there by then, or write over something."""
    written = task.inference_params.output_targets
    kinds = {
        name: target.kind_name
        for name, target in task.dataset_config.targets.items()
        if written == "all" or name in written
    }
    for number, step in enumerate(task.postprocess):
        path = ("postprocess", number)
        yield from _from_faults(step, kinds, (*path, "from"))
        if step.output in kinds or step.output.lower() in {name.lower() for name in kinds}:
            found = f"{shown(step.output)} is also a target, or the output of a step before"
            yield Fault((*path, "output"), found, "give it another name")
        kinds |= kinds_of_outputs([step], kinds)


def _from_faults(step: AnyStep, kinds: Mapping[str, str], path: KeyPath) -> Iterator[Fault]:
    """What a step reads that is not there, or that it cannot read."""
    for role, name in step.sources.items():
        if name not in kinds:
            guess = nearest(name, kinds)
            remedy = f"did you mean {shown(guess)}?" if guess else f"give one of {listed(kinds)}"
            yield Fault(path, f"{shown(name)} is no target and no output of a step before", remedy)
        elif kinds[name] not in (wanted := step.roles[role].kinds):
            found = f"{shown(name)} is of kind {kinds[name]}, {role} takes {listed(sorted(wanted))}"
            yield Fault(path, found, "name another, or another step")


def _name_faults(task: Task) -> Iterator[Fault]:
    """Names that files, arrays or options of a command cannot have."""
    config = task.dataset_config
    names: list[tuple[tuple[str | int, ...], str]] = [
        (("tr_params", "model_name"), task.tr_params.model_name),
        *((("dataset_config", "targets", name), name) for name in config.targets),
    ]
    for index, volume in enumerate(config.volume_paths):
        path = ("dataset_config", "volume_paths", index)
        names += [((*path, label), label) for label in volume.labels if label not in config.targets]
        if volume.name is not None:
            names.append(((*path, "name"), volume.name))
    for path, name in names:
        try:
            check_new_name(name)
        except FaultError as error:
            yield fault_at(path, error, "")
    yield from _case_faults(config)


def _case_faults(config: DatasetConfig) -> Iterator[Fault]:
    """Names of volumes that are the same where file names have no case."""
    lowered: dict[str, str] = {}
    for index, volume in enumerate(config.volume_paths):
        if volume.name is not None:
            other = lowered.setdefault(volume.name.lower(), volume.name)
            if other != volume.name:
                path = ("dataset_config", "volume_paths", index, "name")
                yield Fault(path, f"differs from {shown(other)} only in case", "rename one of them")


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


def _coordinate_faults(task: Task) -> Iterator[Fault]:
    """A network that is to know where its patch lies, and is not told."""
    if task.model.needs_coordinates and not task.dataset_config.coordinates:
        found = f"is false, and {task.model.name} is told by it where a patch lies"
        yield Fault(
            ("dataset_config", "coordinates"), found, "give true, or choose another network"
        )


def _slice_faults(task: Task) -> Iterator[Fault]:
    """Keys that contradict that patches are slices."""
    config, stack = task.dataset_config, task.dataset_config.stack
    axis, section = config.slice_axis, ("dataset_config",)
    if axis is None:
        return
    if stack is not None and stack.axis != axis:
        found = f'"{stack.axis}" is not dataset_config.slice_axis, "{axis}"'
        yield Fault((*section, "stack", "axis"), found, "leave slice_axis out, or give the same")
    sizes = {
        ("tr_params", "patch_size"): task.tr_params.given_patch_size,
        ("inference_params", "patch_size"): task.inference_params.patch_size,
        (*section, "patch_stride"): config.patch_stride,
    }
    for path, size in sizes.items():
        if size is not None and (length := size[AXES.index(axis)]) != 1:
            found = f"is {length} along {axis}, across which patches are slices"
            yield Fault(path, found, "give 1 there, or leave dataset_config.slice_axis out")
    yield from _leaving_faults(task.augment, axis)


def _leaving_faults(augment: Sequence[AnyAugmentation], axis: Axis) -> Iterator[Fault]:
    """Rotations and presses out of the plane of slices, which are asked for by name."""
    for number, one in enumerate(augment):
        path = ("augment", number)
        if isinstance(one, Affine) and isinstance(one.rotation_degrees, tuple):
            turned = zip(AXES, one.rotation_degrees, strict=True)
            if any(degrees for about, degrees in turned if about != axis):
                found = f"turns slices across {axis} about other axes than {axis}"
                yield Fault((*path, "rotation_degrees"), found, "give 0 for these, or one number")
        elif isinstance(one, Compress) and one.direction == axis:
            found = f"is {axis}, along which slices are one voxel thick"
            yield Fault((*path, "direction"), found, "give another")


def slice_notes(task: Task) -> list[str]:
    """What of a given `augment` slices do not get."""
    axis = task.dataset_config.slice_axis
    if axis is None or "augment" not in task.model_fields_set:
        return []
    if task.augmentations == task.augment:
        return []
    return [f"augment: slices across {axis} are mirrored and turned in their plane alone"]


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


def _prepare_faults(config: DatasetConfig) -> Iterator[Fault]:
    """Targets whose predictions cannot be brought back from another grid."""
    prepare = config.prepare
    if prepare is None or not (prepare.orientation or prepare.spacing):
        return
    for name, target in config.targets.items():
        if isinstance(target, AffinitiesTarget):
            found = "is of pairs of voxels, which dataset_config.prepare changes"
            remedy = "leave orientation and spacing out of prepare"
            yield Fault(("dataset_config", "targets", name), found, remedy)


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
        if target.paired_axes:
            yield from _pair_faults(name, augment)


def _pair_faults(name: str, augment: Sequence[AnyAugmentation]) -> Iterator[Fault]:
    """Faults of rotations that could turn a side into the other: no one knows its class after them."""
    for number, one in enumerate(augment):
        if isinstance(one, Affine):
            angles = one.rotation_degrees
            largest = max(angles) if isinstance(angles, tuple) else angles
            if largest >= QUARTER:
                found = f"{largest:g} degrees turn sides about, and {shown(name)} has mirror_pairs"
                path = ("augment", number, "rotation_degrees")
                yield Fault(path, found, f"give less than {QUARTER}")


QUARTER = 90
"""Degrees from which on an axis may run backwards."""


def _volume_faults(config: DatasetConfig, settings: TrainingParams) -> Iterator[Fault]:
    """Volumes without a label or with the name of another, targets without a volume."""
    labelled = {name for volume in config.volume_paths for name in volume.labels}
    names: dict[str, int] = {}
    for index, volume in enumerate(config.volume_paths):
        path = ("dataset_config", "volume_paths", index)
        if not volume.labels and not settings.learns_unlabelled:
            found = f"has no label (targets: {listed(config.targets)})"
            remedy = "give the path of at least one target, tr_params.distill or consistency"
            yield Fault(path, found, remedy)
        elif not volume.labels and volume.split in ("val", "test"):
            found = "this volume has no label to compare with"
            yield Fault((*path, "split"), found, 'give "train", or labels')
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


def _sampling_faults(config: DatasetConfig) -> Iterator[Fault]:
    """Faults of `sampling` that no label need be read for."""
    given, path = config.sampling, ("dataset_config", "sampling")
    if given is None:
        return
    sources = {name: target.derive or name for name, target in config.targets.items()}
    stored = list(dict.fromkeys(name for volume in config.volume_paths for name in volume.labels))
    if given.label is not None and sources.get(given.label, given.label) not in stored:
        found = f"{shown(given.label)} is no label of any volume"
        yield Fault((*path, "label"), found, f"give one of {listed(stored)}")
    if isinstance(given.classes, dict) and not any(given.classes.values()):
        yield Fault((*path, "classes"), "has no weight above 0", "give one, or remove classes")
    if given.foreground > 0 and given.label is None:
        several = _several_labels(config)
        if len(several) == len(config.volume_paths):
            found = f"is not given, and volumes without ref_label have labels {listed(several[0])}"
            yield Fault((*path, "label"), found, f"give {shown(several[0][0])}, or another of them")


def _several_labels(config: DatasetConfig) -> list[list[str]]:
    """The labels of targets in each volume where neither `ref_label` nor their number says which counts."""
    sources = dict.fromkeys(target.derive or name for name, target in config.targets.items())
    return [
        there
        for volume in config.volume_paths
        if volume.ref_label is None
        and len(there := [name for name in sources if name in volume.labels]) > 1
    ]


def sampling_notes(config: DatasetConfig) -> list[str]:
    """Volumes of which `sampling` cannot tell the label, where others have one."""
    given = config.sampling
    several = _several_labels(config)
    if given is None or given.foreground == 0 or given.label is not None or not several:
        return []
    count = f"{len(several)} of {len(config.volume_paths)}"
    found = f"dataset_config.sampling draws for no label in {count} volumes"
    return [f"{found}, which have several and no ref_label; give label, or their ref_label"]


def _reading_faults(task: Task) -> Iterator[Fault]:
    """Faults of the keys that say how stored arrays are read."""
    for index, volume in enumerate(task.dataset_config.volume_paths):
        path = ("dataset_config", "volume_paths", index)
        yield from key_faults(volume, path, len(volume.inputs), volume.labels)
    params = task.inference_params
    inputs, mask = params.input_path, params.skip.mask
    count = len(inputs) if isinstance(inputs, list) else 1
    others = {MASK: mask} if mask is not None else {}
    yield from key_faults(params, ("inference_params",), count, others)
    if mask is not None and params.volumes is not None:
        found, remedy = "is of one input, and volumes chooses several", "remove one of them"
        yield Fault(("inference_params", "skip", "mask"), found, remedy)
    elif mask is not None and "*" in mask and not params.is_pattern:
        found = "holds a '*', and input_path none"
        yield Fault(("inference_params", "skip", "mask"), found, "put a '*' in both")


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
        is_asked = config.pseudo_in_val and volume.split == "val"
        if volume.split in ("val", "test") and labels and are_pseudo and not is_asked:
            against = "validated against" if volume.split == "val" else "scored against"
            found = f"all labels of this volume are pseudo-labels, which are not {against}"
            asked = ', or "pseudo_in_val": true' if volume.split == "val" else ""
            yield Fault((*path, "split"), found, f'give "train", or true labels{asked}')


def _output_faults(task: Task, *, is_record: bool) -> Iterator[Fault]:
    """Results and run files may not lie inside a store that is read."""
    given, settings, config = task.inference_params, task.tr_params, task.dataset_config
    outputs = {("inference_params", "output_dir"): given.output_dir}
    if not is_record:  # where a run once wrote is no fault of whoever reads its checkpoint
        outputs |= {
            ("tr_params", "ckpt_out_base"): settings.ckpt_out_base,
            ("tr_params", "tensorboard_log_dir"): settings.tensorboard_log_dir,
            ("inference_params", "tensorboard_log_dir"): given.tensorboard_log_dir,
            ("dataset_config", "cache_file"): config.cache_file,
            ("dataset_config", "index_dir"): config.index_dir or cache_folder(),
        }
    stores = input_stores(read_places(task))
    for path, text in outputs.items():
        try:
            if text:
                refuse_in_stores("", expand_location(text), stores)
        except OutputError as error:
            yield Fault(path, error.found, error.remedy)
        except VolumeError:  # what is wrong with it is reported when it is used
            continue


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


def _lesson_faults(settings: TrainingParams) -> Iterator[Fault]:
    """Teachers see images, and what they say of one has no part in the features of two."""
    if settings.learns_unlabelled and settings.mixup is not None and settings.mixup.manifold:
        name = "distill" if settings.distill is not None else "consistency"
        found = f"is on, and tr_params.{name} has no image for its teachers then"
        yield Fault(("tr_params", "mixup", "manifold"), found, "set it to false: images are mixed")
    if settings.consistency is not None and settings.ema_decay is None:
        found = "is null, and tr_params.consistency learns from the averaged weights"
        yield Fault(("tr_params", "ema_decay"), found, "give one, such as 0.995")


def _validation_faults(
    settings: TrainingParams, targets: Mapping[str, AnyTarget]
) -> Iterator[Fault]:
    """Metrics of whole volumes and curves that there are not."""
    path = ("tr_params", "validation", "metrics")
    fitting = {name: target.stored_metrics for name, target in targets.items()}
    if faults := list(_metric_faults(path, settings.validation.metrics, fitting)):
        yield from faults
    else:
        yield from _curve_faults(settings, targets)


def _curve_faults(settings: TrainingParams, targets: Mapping[str, AnyTarget]) -> Iterator[Fault]:
    """Curves that choose the best checkpoint or end the run, but that there are not."""
    validation = settings.validation
    curves, of_volumes = epoch_curves(targets, validation), volume_curves(targets, validation)
    named: dict[tuple[str, ...], str | None] = {("best_metric",): settings.best_metric}
    if settings.early_stopping is not None:
        named["early_stopping", "metric"] = settings.early_stopping.metric
    for path, curve in named.items():
        if curve is not None and curve not in curves:
            found, remedy = (
                f"{shown(curve)} is no curve of this run",
                f"give one of {listed(curves)}",
            )
            if curve.startswith(OF_VOLUMES) and not validation.whole_volumes:
                remedy = 'give "validation": {"whole_volumes": true}, or another'
            yield Fault(("tr_params", *path), found, remedy)
        elif curve in of_volumes and validation.every > settings.max_epoch:
            found = f"{shown(curve)} has no value before epoch {validation.every}"
            remedy = f"lower validation.every to at most max_epoch {settings.max_epoch}"
            yield Fault(("tr_params", *path), found, remedy)


def _start_faults(settings: TrainingParams) -> Iterator[Fault]:
    """Keys about a start from other weights that have nothing to act on."""
    if settings.freeze_epochs is not None and not settings.freeze:
        found = "is given, but nothing is frozen"
        yield Fault(("tr_params", "freeze_epochs"), found, "name what in freeze, or remove it")
    if settings.load_weights_only and settings.checkpoint_path is None:
        found = "is given, but no weights are: checkpoint_path is not set"
        yield Fault(("tr_params", "load_weights_only"), found, "set checkpoint_path, or remove it")


def _evaluation_faults(task: Task) -> Iterator[Fault]:
    """Metrics of `evaluation` that targets, or the objects that are made of them, do not have."""
    targets = task.dataset_config.targets
    kinds = {name: target.kind_name for name, target in targets.items()}
    objects = [n for n, k in kinds_of_outputs(task.postprocess, kinds).items() if k == IDS]
    fitting = {name: target.stored_metrics for name, target in targets.items()}
    fitting |= dict.fromkeys(objects, fitting_metrics("instances"))
    yield from _metric_faults(("evaluation", "metrics"), task.evaluation.metrics, fitting)


def _metric_faults(
    section: tuple[str, ...], metrics: MetricChoices, fitting: Mapping[str, Metrics]
) -> Iterator[Fault]:
    """Targets and metrics that there are not, and options that a metric has not."""
    for name, wanted in metrics.items():
        path = (*section, name)
        if name not in fitting:
            yield Fault(path, "is no target", f"targets are {listed(fitting)}")
            continue
        try:
            choose_metrics(fitting[name], wanted)
        except FaultError as error:
            yield fault_at(path, error, "")


def read_places(task: Task) -> list[tuple[str, str]]:
    """The key and the location of everything that the task reads, as they are given."""
    given, params = task.inference_params.input_path, task.inference_params
    inputs = [given] if isinstance(given, str) else given or []
    found = [("inference_params.input_path", text) for text in inputs]
    if params.skip.mask is not None:
        found.append(("inference_params.skip.mask", params.skip.mask))
    for index, volume in enumerate(task.dataset_config.volume_paths):
        key = f"dataset_config.volume_paths.{index}"
        found += [(key, text) for text in (*volume.inputs, *volume.labels.values())]
    return found


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
