"""Values that follow from others are filled in, so that who reads a section needs no other."""

from typing import Any

from pydantic import ValidationError

from vcmodels.config.messages import Fault, listed, task_error
from vcmodels.config.parameters import TrainingParams
from vcmodels.config.task import Task
from vcmodels.models.planning import BATCH_SIZE
from vcmodels.section import PatchShape
from vcmodels.targets import AnyTarget


def fill_in(task: Task) -> Task:
    """The task with `tr_params`' label keys where targets use them, and its workers for inference.

    Where the patch size is given, the batch size need not be planned either.

    Raises:
        TaskError: a target cannot take a value that `tr_params` gives it.
    """
    settings, config = task.tr_params, task.dataset_config
    sources = [target.derive for target in config.targets.values() if target.derive]
    check_ignored_names(settings, list(dict.fromkeys([*config.targets, *sources])))
    if settings.given_patch_size is not None:
        task = fill_sizes(task, None, BATCH_SIZE)
    targets = {name: _filled(name, target, task) for name, target in config.targets.items()}
    inference = task.inference_params
    if inference.num_dataloader_workers is None:
        workers = {"num_dataloader_workers": settings.num_dataloader_workers}
        inference = inference.model_copy(update=workers)
    return task.model_copy(
        update={
            "inference_params": inference,
            "dataset_config": config.model_copy(update={"targets": targets}),
        }
    )


def fill_sizes(task: Task, patch: PatchShape | None, batch: int | None) -> Task:
    """The task with these as its patch and batch size, where it leaves them out."""
    settings = task.tr_params
    filled = {
        "given_patch_size": settings.given_patch_size or patch,
        "given_batch_size": settings.given_batch_size or batch,
    }
    return task.model_copy(update={"tr_params": settings.model_copy(update=filled)})


def check_ignored_names(settings: TrainingParams, targets: list[str]) -> None:
    """Refuse an `ignore_label` for a target that there is not."""
    if isinstance(settings.ignore_label, dict):
        for name in settings.ignore_label:
            if name not in targets:
                path = ("tr_params", "ignore_label", name)
                fault = Fault(path, "is no target", f"targets are {listed(targets)}")
                raise task_error([fault])


def _filled(name: str, target: AnyTarget, task: Task) -> AnyTarget:
    settings = task.tr_params
    inherited: dict[str, Any] = {
        "ignore_label": _ignored(name, target, task),
        "loss_only_on_label": settings.loss_only_on_label,
        "label_smoothing": settings.label_smoothing,
        "dilate_label": settings.dilate_label,
    }
    understood = {"ignore_label", *target.label_keys}
    missing = {
        key: value
        for key, value in inherited.items()
        if key in understood and getattr(target, key) is None
    }
    try:  # validated anew: a kind may check these keys against its own
        return type(target).model_validate({**target.model_dump(), **missing})
    except ValidationError as error:
        text = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        found, _, remedy = text.partition("; ")
        path = ("dataset_config", "targets", name)
        raise task_error([Fault(path, found, remedy or "change it in tr_params")]) from error


def _ignored(name: str, target: AnyTarget, task: Task) -> int | list[int] | None:
    """What a target ignores: by its own name, or as the label that it is derived from does."""
    ignore = task.tr_params.ignore_label
    if target.ignore_label is not None:
        return target.ignore_label
    if isinstance(ignore, dict) and name in ignore:
        return ignore[name]
    source = task.dataset_config.targets.get(target.derive or "")
    if source is not None and source.ignore_label is not None:
        return source.ignore_label
    return ignore.get(target.derive or name) if isinstance(ignore, dict) else ignore
