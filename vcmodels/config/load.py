"""From a task file to a `Task`: read, override, bring to today's form, validate, cross-check."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vcmodels.augment import AnyAugmentation
from vcmodels.augment.base import Axis
from vcmodels.config.cases import read_cases
from vcmodels.config.checks import check_task, output_notes, sampling_notes, slice_notes
from vcmodels.config.effects import effect_notes
from vcmodels.config.instances import spell_out
from vcmodels.config.legacy import lift, modernise
from vcmodels.config.messages import (
    Block,
    Fault,
    KeyPath,
    as_list,
    as_object,
    fault_at,
    faults_of,
    listed,
    shown,
    task_error,
    unknown_key,
)
from vcmodels.config.read import apply_overrides, checked, read_task_file
from vcmodels.config.regions import fill_networks
from vcmodels.config.schema import task_schema
from vcmodels.config.task import NormalizationConfig, Task
from vcmodels.config.train_params import TrainingParams
from vcmodels.config.values import VOLUME_KEYS, IgnoreLabel
from vcmodels.errors import TaskError, VolumeError
from vcmodels.geometry.symmetries import AXES
from vcmodels.models import DEFAULT_MODEL
from vcmodels.models.plan import BATCH_SIZE
from vcmodels.postprocess import AnyStep
from vcmodels.prepare.section import Prepare
from vcmodels.runs.run import TASK, Run, starting_folder
from vcmodels.section import PatchShape, Section
from vcmodels.targets import AnyTarget
from vcmodels.volumes.location import counted_from, expand_location


@dataclass(frozen=True)
class LoadedTask:
    """A valid task, what a person should know of how it was read, and the file it came from."""

    task: Task
    notes: list[str]
    path: Path


def load_task(path: str | Path, overrides: Sequence[str] = ()) -> LoadedTask:
    """Read and validate a task file; no volume is opened.

    Args:
        path: a JSON file, or YAML when it ends in `.yaml` or `.yml`; or the folder of a run, for
            the task that it was trained with.
        overrides: `dotted.key=value` lines; the value is JSON, or a bare text.

    Raises:
        TaskError: the file or a key in it is not valid; one line that says where and what to do.
    """
    path = Path(path)
    data, about = read_run_task(path) if path.is_dir() else (read_task_file(path), list[str]())
    task, notes = parse_task(data, str(path), overrides, is_record=path.is_dir())
    return LoadedTask(task, about + notes, path)


def parse_task(
    data: object, source: str, overrides: Sequence[str] = (), *, is_record: bool = False
) -> tuple[Task, list[str]]:
    """Validate a task that is in memory; `source` is what messages call it.

    One that is the record of a run or a result is not held to rules of names and places that came
    later: what was made stays readable.

    Returns:
        The task, and what a person should know of how it was read.

    Raises:
        TaskError: as `load_task`.
    """
    document = as_object(checked(data))
    if document is None:
        raise TaskError(source, "this is no object", "give the sections of a task")
    lift(document)
    apply_overrides(document, overrides)
    notes = modernise(document)
    document.setdefault("dataset_config", {})
    model = as_object(document.setdefault("model_config", {}))
    if model is not None:
        model.setdefault("name", DEFAULT_MODEL)
    spell_out(document, task_schema)
    notes += read_cases(document)
    faults = _fold_labels(document)
    if faults:
        raise task_error(faults)
    try:
        task = Task.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise task_error(faults_of(error, document, task_schema())) from error
    if not is_record:  # of which every key is written, and some were planned
        notes += effect_notes(task)
    task = fill_networks(fill_in(task))
    notes += slice_notes(task)
    faults = check_task(task, is_record=is_record)
    if faults:
        raise task_error(faults)
    config = task.dataset_config
    notes += sampling_notes(config)
    return task, notes + output_notes(task.inference_params, config.targets)


class _Steps(Section):
    postprocess: tuple[AnyStep, ...]


def parse_steps(data: object) -> tuple[AnyStep, ...]:
    """The steps of post-processing in a list that is in memory.

    Raises:
        TaskError: as `load_task`, with the keys that they would have in a task.
    """
    document = {"postprocess": checked(data)}
    try:
        return _Steps.model_validate_json(json.dumps(document)).postprocess
    except ValidationError as error:
        raise task_error(faults_of(error, document, task_schema())) from error


LOCATIONS = {
    "tr_params": ("ckpt_out_base", "checkpoint_path", "tensorboard_log_dir", "split_from"),
    "dataset_config": ("cache_file", "index_dir"),
    "inference_params": ("input_path", "output_dir", "checkpoint_path", "tensorboard_log_dir"),
}
"""Keys that hold paths, next to those of the volumes, `inference_params.skip.mask` and
`tr_params.distill.teachers`."""


def read_run_task(folder: Path) -> tuple[Block, list[str]]:
    """The resolved task of a run, as it is to be read here, and what to note about it.

    Its relative paths count from where its training was started; the run folder is the one that is
    named, also when it was moved or copied.

    Raises:
        TaskError: the folder holds no run, or its task cannot be read.
    """
    if not Run(folder).is_begun():
        found = (
            f"is a folder, and no run: {TASK} and what a training writes beside it are not there"
        )
        raise TaskError(str(folder), found, "name a task file or a run folder")
    document, notes = read_task_file(folder / TASK), list[str]()
    origin = starting_folder(folder)
    if origin is not None and not origin.is_dir():
        notes.append(
            f"{origin}, where the run was started, is gone: relative paths count from here"
        )
    elif origin is not None and not origin.samefile(Path.cwd()):
        anchor(document, origin)
    settings = as_object(document.get("tr_params"))
    if settings is not None and not _is_same(settings.get("ckpt_out_base"), folder):
        settings["ckpt_out_base"] = str(Path.cwd() / folder)
    return document, notes


def _is_same(base: object, folder: Path) -> bool:
    """Whether a `ckpt_out_base` already means the folder."""
    try:
        return isinstance(base, str) and Path(expand_location(base)).samefile(folder)
    except (OSError, VolumeError):
        return False


def anchor(document: Block, folder: Path) -> None:
    """Make the relative paths of a resolved task absolute, from `folder`, in place."""
    for block, key in _places(document):
        items = as_list(block[key])
        if items is None:
            block[key] = _anchored(block[key], folder)
        else:
            block[key] = [_anchored(item, folder) for item in items]


def _places(document: Block) -> Iterator[tuple[Block, str]]:
    """Every (block, key) of the task that holds one or more locations."""
    sections = {name: as_object(document.get(name)) or {} for name in LOCATIONS}
    skip = as_object(sections["inference_params"].get("skip")) or {}
    distill = as_object(sections["tr_params"].get("distill")) or {}
    model = as_object(document.get("model_config")) or {}
    named = [(sections[name], key) for name, keys in LOCATIONS.items() for key in keys]
    named += [(skip, "mask"), (distill, "teachers"), (model, "encoder_weights")]
    yield from ((block, key) for block, key in named if key in block)
    volumes = [
        as_object(one) or {}
        for one in as_list(sections["dataset_config"].get("volume_paths")) or []
    ]
    yield from _region_places(as_object(sections["dataset_config"].get("region")) or {}, volumes)
    for volume in volumes:
        yield from ((volume, key) for key in volume if key == "input" or key not in VOLUME_KEYS)


def _region_places(region: Block, volumes: Sequence[Block]) -> Iterator[tuple[Block, str]]:
    """Those of what finds regions; a mask may be a label of the volumes, which is none."""
    labels = {name for volume in volumes for name in volume}
    for source in as_list(region.get("from")) or []:
        block = as_object(source) or {}
        for key in ("points", "mask", "checkpoint"):
            if block.get(key) is not None and not (key == "mask" and block[key] in labels):
                yield block, key


def _anchored(value: object, folder: Path) -> object:
    if not isinstance(value, str):
        return value
    return counted_from(value, str(folder))


def _fold_labels(document: Block) -> list[Fault]:
    """Gather the label keys of every volume entry under `labels`, in place.

    A label of null is left out: the volume lacks that target.

    Returns:
        A fault for each key that is neither a key of a volume, nor a target, nor what a target is
        derived from.
    """
    config = as_object(document.get("dataset_config")) or {}
    targets = as_object(config.get("targets"))
    sources = _sources(targets or {})
    names = list(dict.fromkeys([*(targets or ()), *sources]))
    faults: list[Fault] = []
    for index, entry in enumerate(as_list(config.get("volume_paths")) or []):
        block = as_object(entry)
        if block is not None:
            path = ("dataset_config", "volume_paths", index)
            if targets:
                faults += _unknown(block, path, names, sources)
            labels = {key: block.pop(key) for key in list(block) if key not in VOLUME_KEYS}
            labels.pop("labels", None)
            block["labels"] = {key: value for key, value in labels.items() if value is not None}
    return faults


def _sources(targets: Block) -> dict[str, str]:
    """By what they are derived from, the targets; what is no text is reported by the validation."""
    blocks = {name: as_object(target) or {} for name, target in targets.items()}
    return {
        source: name
        for name, block in blocks.items()
        if isinstance(source := block.get("derive"), str)
    }


def _unknown(block: Block, path: KeyPath, names: list[str], sources: dict[str, str]) -> list[Fault]:
    """Faults of keys that name nothing; both lists are named, as either may be what is wrong."""
    strange = [key for key in block if key not in VOLUME_KEYS and key not in names]
    labels = [key for key in block if key not in VOLUME_KEYS]
    faults: list[Fault] = []
    for key in strange:
        fault = unknown_key((*path, key), task_schema(), [*VOLUME_KEYS, *names])
        found = (
            f"is no target and no key of a volume (targets: {listed(names)}, "
            f"labels of this volume: {listed(labels)})"
        )
        remedy = fault.remedy
        if fault.meant in sources and fault.meant not in block:
            derived = f"dataset_config.targets.{sources[fault.meant]}"
            remedy = f"did you mean {shown(fault.meant)}, which {derived} is derived from?"
        faults.append(Fault(fault.path, found, remedy))
    return faults


def fill_in(task: Task) -> Task:
    """The task with `tr_params`' label keys where targets use them, and its workers for inference.

    Its `slice_axis` is filled in where other keys tell it. Where the patch size is given, the batch size need not be planned either.

    Raises:
        TaskError: a target cannot take a value that `tr_params` gives it.
    """
    settings, config = task.tr_params, task.dataset_config
    sources = [target.derive for target in config.targets.values() if target.derive]
    _check_ignored_names(settings, list(dict.fromkeys([*config.targets, *sources])))
    if settings.given_patch_size is not None:
        task = fill_sizes(task, None, BATCH_SIZE)
    targets = {name: _filled(name, settings, config.targets) for name in config.targets}
    workers = task.inference_params.num_dataloader_workers
    if workers is None:
        workers = settings.num_dataloader_workers
    return task.with_values(
        inference_params={"num_dataloader_workers": workers},
        dataset_config={"targets": targets, "slice_axis": _slice_axis(task)},
    )


def _slice_axis(task: Task) -> Axis | None:
    """The axis across which patches are slices: as given, that of `stack`, or of a patch size."""
    config, patch = task.dataset_config, task.tr_params.given_patch_size or ()
    if config.slice_axis is not None:
        return config.slice_axis
    if config.stack is not None:
        return config.stack.axis
    thin: list[Axis] = [a for a, n in zip(AXES, patch, strict=False) if n == 1]
    return thin[0] if len(thin) == 1 else None


def fill_sizes(task: Task, patch: PatchShape | None, batch: int | None) -> Task:
    """The task with these as its patch and batch size, where it leaves them out."""
    settings = task.tr_params
    sizes = {
        "given_patch_size": settings.given_patch_size or patch,
        "given_batch_size": settings.given_batch_size or batch,
    }
    return task.with_values(tr_params=sizes)


def fill_normalization(task: Task, used: NormalizationConfig) -> Task:
    """The task with what it leaves open of its normalisation as it was used."""
    wanted = task.dataset_config.normalization
    return task.with_values(dataset_config={"normalization": wanted.completed(used)})


def fill_prepare(task: Task, used: Prepare | None) -> Task:
    """The task with what its `prepare` leaves to the training volumes as it was found."""
    wanted = task.dataset_config.prepare
    if wanted is None or used is None or wanted.contradiction(used):
        return task
    return task.with_values(dataset_config={"prepare": used})


def has_own_augment(task: Task) -> bool:
    """Whether the task gives its `augment`, or took over that of a run."""
    return "augment" in task.model_fields_set


def fill_augment(task: Task, augment: Sequence[AnyAugmentation]) -> Task:
    """The task with this list, where it leaves `augment` out."""
    return task if has_own_augment(task) else task.changed(augment=list(augment))


def _check_ignored_names(settings: TrainingParams, targets: list[str]) -> None:
    """Refuse an `ignore_label` for a target that there is not."""
    if isinstance(settings.ignore_label, dict):
        for name in settings.ignore_label:
            if name not in targets:
                path = ("tr_params", "ignore_label", name)
                fault = Fault(path, "is no target", f"targets are {listed(targets)}")
                raise task_error([fault])


def _filled(name: str, settings: TrainingParams, targets: Mapping[str, AnyTarget]) -> AnyTarget:
    """A target with the label keys of `tr_params` that it uses and does not give itself."""
    target = targets[name]
    inherited: dict[str, Any] = {
        "ignore_label": _ignored(name, settings.ignore_label, targets),
        "foreground": _foreground_of_source(target, targets),
        "loss_only_on_label": settings.loss_only_on_label,
        "label_smoothing": settings.label_smoothing,
        "dilate_label": settings.dilate_label,
    }
    understood = {"ignore_label", "foreground", *target.label_keys}
    missing = {
        key: value
        for key, value in inherited.items()
        if key in understood and getattr(target, key) is None
    }
    try:  # validated again: a kind may check these keys against its own
        return type(target).model_validate({**target.model_dump(), **missing})
    except ValidationError as error:
        detail = error.errors()[0]
        reason = detail.get("ctx", {}).get("error") or ValueError(detail["msg"])
        path = ("dataset_config", "targets", name)
        raise task_error([fault_at(path, reason, "change it in tr_params")]) from error


def _foreground_of_source(target: AnyTarget, targets: Mapping[str, AnyTarget]) -> str | None:
    """What is derived from a mask sees as foreground what that mask does."""
    source = targets.get(target.derive or "")
    return None if source is None else source.foreground


def _ignored(
    name: str,
    ignore: IgnoreLabel | Mapping[str, IgnoreLabel | None] | None,
    targets: Mapping[str, AnyTarget],
) -> IgnoreLabel | None:
    """What a target ignores: by its own name, or as the label that it is derived from does."""
    target = targets[name]
    if target.ignore_label is not None:
        return target.ignore_label
    if isinstance(ignore, Mapping) and name in ignore:
        return ignore[name]
    source = targets.get(target.derive or "")
    if source is not None and source.ignore_label is not None:
        return source.ignore_label
    return ignore.get(target.derive or name) if isinstance(ignore, Mapping) else ignore
