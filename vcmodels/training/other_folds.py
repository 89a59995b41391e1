"""The other folds of a cross-validation: what a fold has in common with them, and must have."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vcmodels.config import Task, parse_task
from vcmodels.config.load import fill_augment, fill_normalization, fill_prepare, fill_sizes
from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.runs.run import Run, read_starts
from vcmodels.training.run_folder import changed_keys, is_place, listed_changes

_REMEDY = "change it back, choose another ckpt_out_base, or --restart with all folds"


class BegunFold(NamedTuple):
    """A fold that was begun."""

    number: int
    folder: Path
    task: Task
    """Resolved."""


def begun_folds(folder: Path) -> Iterator[BegunFold]:
    """Every fold in the folder of a cross-validation that was begun, in their order."""
    for index, run in Run(folder).folds().items():
        with suppress(TaskError):
            task = parse_task(run.task(), str(run.task_file), is_record=True)[0]
            folds, sizes = task.tr_params.folds, task.tr_params
            if folds and folds.index == index and sizes.given_patch_size is not None:
                yield BegunFold(index, run.folder, task)


def siblings(run: Run, index: int | None) -> list[BegunFold]:
    """The other folds that were begun next to the run of fold `index`; [] if it is no fold."""
    parent = Run(run.folder.parent)
    if index is None or run.folder != parent.fold(index).folder:
        return []
    return [found for found in begun_folds(parent.folder) if found.number != index]


def with_begun_folds(task: Task) -> Task:
    """The task with the folds that were begun in its run folder, if it names none of its own."""
    first = next(begun_folds(task.run_dir), None)
    if task.tr_params.folds is not None or first is None or first.task.tr_params.folds is None:
        return task
    folds = first.task.tr_params.folds.model_copy(update={"index": None})
    settings = task.tr_params.model_copy(update={"folds": folds})
    return task.model_copy(update={"tr_params": settings})


def require_alike(task: Task, others: Sequence[BegunFold]) -> None:
    """Refuse a fold that is trained otherwise than those that were begun.

    Raises:
        TaskError: naming the key.
    """
    for other in others:
        sizes = other.task.tr_params
        now = fill_sizes(task, sizes.given_patch_size, sizes.given_batch_size)
        now = fill_normalization(now, other.task.dataset_config.normalization)
        now = fill_augment(now, other.task.augment)
        now = fill_prepare(now, other.task.dataset_config.prepare)
        changed = changed_keys(other.task.to_json(), now.to_json(), other.folder)
        free = is_place if data_identity(other) else "".__eq__  # see `require_same_data`
        changed = [c for c in changed if c[0] != "tr_params.folds.index" and not free(c[0])]
        if changed:
            found = f"differs from the fold in {other.folder} ({listed_changes(changed)})"
            raise TaskError(changed[0][0], found, _REMEDY)


def data_identity(fold: BegunFold) -> str:
    """`identity_of` what a fold was trained on last; "" where it does not say so."""
    starts = read_starts(fold.folder)
    return str(starts[-1].get("data_sha256", "")) if starts else ""


def require_same_data(others: Sequence[BegunFold], identity: str) -> None:
    """Refuse data that another fold was not trained on.

    Args:
        others: that were begun.
        identity: of the data of this one.

    Raises:
        TaskError: naming the fold.
    """
    for other in others:
        if data_identity(other) not in ("", identity):
            found = "was trained on inputs or labels that have changed since"
            remedy = "restore them, --accept-changed-data, or --restart with all folds"
            raise TaskError(str(other.folder), found, remedy)


def require_one_division(
    folds: Sequence[Sequence[TaskVolume]], others: Sequence[BegunFold]
) -> None:
    """Refuse volumes or labels that have changed since others were begun, and who is in which fold.

    Args:
        folds: the volumes of every fold, as they are divided now.
        others: that were begun.

    Raises:
        TaskError: naming a volume that another fold has divided otherwise.
    """
    for other in others:
        now = {v.name: v.region for v in folds[other.number] if v.split == "val"}
        before = _validated(Run(other.folder))
        if data_identity(other) and len(now) == len(before):  # other paths give other names
            before = dict(zip(now, before.values(), strict=True))
        differing = [name for name in now.keys() | before if now.get(name) != before.get(name)]
        if before and differing:
            found = (
                f"fold {other.number} was begun with another division of the volumes "
                f"({min(differing)}): volumes or labels have changed since"
            )
            raise TaskError(str(other.folder), found, _REMEDY)


def _validated(run: Run) -> Mapping[str, Box]:
    """What a run validates on; nothing yet where it has not divided its volumes."""
    splits = run.splits()
    return splits.held_out() if splits is not None else {}
