"""One fold of a cross-validation as a task of its own, and where its files lie."""

from pathlib import Path, PurePath

from vcmodels.config.task import Task
from vcmodels.errors import RefusedError, TaskError
from vcmodels.runs.run import Run, fold_name


def fold_folders(folder: Path) -> dict[int, Path]:
    """The folders of folds that are in that of a cross-validation, by number, in its order."""
    return {index: run.folder for index, run in Run(folder).folds().items()}


def is_cross_validation(task: Task) -> bool:
    """Whether the task is all folds of a cross-validation, and not one of them."""
    folds = task.tr_params.folds
    return folds is not None and folds.index is None


def fold_task(task: Task, index: int) -> Task:
    """The task of one fold: whatever it writes lies in a `fold_<index>` of what the task names.

    A task that is this fold already comes back as it is.

    Raises:
        TaskError: the task has no folds, or is another one of them.
        RefusedError: there is no such fold.
    """
    settings, config = task.tr_params, task.dataset_config
    folds, name = settings.folds, fold_name(index)
    if folds is None:
        raise TaskError("tr_params.folds", "is not set", 'give "folds": {"count": 5}')
    if index >= folds.count:
        found = f"there is no fold {index} of {folds.count}"
        raise RefusedError("--fold", found, f"give one from 0 to {folds.count - 1}")
    if folds.index is not None:
        if folds.index == index:
            return task
        found = f"is {folds.index}, and fold {index} is asked for"
        raise TaskError("tr_params.folds.index", found, "remove it: each fold then has a folder")
    cache = config.cache_file and PurePath(config.cache_file)
    return task.with_values(
        tr_params={
            "folds": folds.model_copy(update={"index": index}),
            "ckpt_out_base": _inside(settings.ckpt_out_base, name),
            "tensorboard_log_dir": _inside(settings.tensorboard_log_dir, task.run_dir.name),
        },
        dataset_config={"cache_file": cache and str(cache.with_stem(f"{cache.stem}.{name}"))},
        inference_params={"output_dir": _inside(task.inference_params.output_dir, name)},
    )


def _inside(folder: str | None, name: str) -> str | None:
    return f"{folder.rstrip('/')}/{name}" if folder else None
