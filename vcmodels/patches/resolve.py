"""A task with nothing left out: sizes planned, volumes opened, one fold of them chosen."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from vcmodels.config import Task, parse_task
from vcmodels.config.checks import check_task
from vcmodels.config.load import fill_sizes
from vcmodels.config.messages import task_error
from vcmodels.data.volumes import TaskVolume, check_patch, open_volumes
from vcmodels.errors import TaskError
from vcmodels.patches.find import PatchCriteria
from vcmodels.patches.folds import all_folds
from vcmodels.patches.index_build import Indexer
from vcmodels.patches.sizes import plan_sizes
from vcmodels.reporting import Reporter, Silent
from vcmodels.runs.run import Run


@dataclass(frozen=True)
class Resolved:
    """A task as training takes it."""

    task: Task
    """With its patch and batch size."""
    volumes: Sequence[TaskVolume]
    """All, or those of the fold that the task is, each with its `split`."""
    folds: Sequence[Sequence[TaskVolume]] = ()
    """In a cross-validation, the volumes of every fold."""


def resolve(
    task: Task,
    reporter: Reporter | None = None,
    *,
    recorded: Task | Literal["run"] | None = "run",
    reads_labels: bool = True,
    sharing: int = 1,
) -> Resolved:
    """Open the volumes of a task, and fill in what it leaves to them.

    Args:
        task: as it was loaded.
        reporter: shows what `open_volumes` finds odd, and sizes that are filled in.
        recorded: a task with sizes, which are taken where this one leaves them out; "run" is the one
            that the run folder holds, if it does; None plans them.
        reads_labels: divide the volumes into `folds`, by their labels; all volumes are given else.
        sharing: how many trainings are to divide the memory of the device, if sizes are planned.

    Raises:
        VolumeError, TaskError: as `open_volumes` and `all_folds`.
        TaskError: nothing fits the memory, or a planned size does not fit another key.
    """
    reporter = reporter or Silent()
    volumes = open_volumes(task, reporter)
    if task.tr_params.given_patch_size is None:
        if recorded == "run":
            recorded = recorded_task(Run(task.run_dir))
        task = _with_sizes(task, volumes, recorded, sharing, reporter)
    folds = task.tr_params.folds
    if folds is None or not reads_labels:
        return Resolved(task, volumes)
    indexer = Indexer.of(task, reporter)
    every = all_folds(task.tr_params, volumes, PatchCriteria.of(task), indexer)
    return Resolved(task, volumes if folds.index is None else every[folds.index], every)


def recorded_task(run: Run) -> Task | None:
    """The task of a run that has its sizes; None if none has begun, or it cannot be read."""
    with suppress(TaskError):
        found = parse_task(run.task(), str(run.task_file))[0]
        return found if found.tr_params.given_patch_size is not None else None
    return None


def _with_sizes(
    task: Task,
    volumes: Sequence[TaskVolume],
    recorded: Task | None,
    sharing: int,
    reporter: Reporter,
) -> Task:
    """The task with a recorded patch and batch size, or planned ones, which are reported."""
    if recorded is not None:
        sizes, origin = recorded.tr_params, "as the run has them"
        full = fill_sizes(task, sizes.given_patch_size, sizes.given_batch_size)
    else:
        plan = plan_sizes(task.tr_params, task.model, task.heads, volumes, sharing)
        origin = "planned, `vcmodels plan` says why"
        full = fill_sizes(task, plan.patch, plan.batch)
    patch, batch = full.tr_params.patch_size, full.tr_params.batch_size
    reporter.say(f"patch_size {list(patch)}, batch_size {batch}: {origin}")
    if faults := check_task(full):
        raise task_error(faults)
    check_patch(patch, full.model, full.dataset_config.targets, volumes, reporter)
    return full
