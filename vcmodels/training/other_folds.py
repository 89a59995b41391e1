"""The other folds of a cross-validation: what a fold has in common with them, and must have."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from vcmodels.config import Task, parse_task
from vcmodels.config.folds import fold_folders, fold_name
from vcmodels.data.volumes import TaskVolume
from vcmodels.errors import TaskError
from vcmodels.patches.folds import all_folds
from vcmodels.reporting import Reporter
from vcmodels.runs.records import TASK
from vcmodels.training.run_folder import changed_keys, listed_changes
from vcmodels.volumes.places import read_json

_REMEDY = "change it back, choose another ckpt_out_base, or --restart with all folds"


def siblings(task: Task) -> list[tuple[int, Path, Task]]:
    """Number, folder and resolved task of the other folds that were begun beside this one."""
    folds = task.tr_params.folds
    if folds is None or folds.index is None or task.run_dir.name != fold_name(folds.index):
        return []
    return [found for found in begun_folds(task.run_dir.parent) if found[0] != folds.index]


def begun_sibling(task: Task) -> Task | None:
    """The resolved task of one of them, whose sizes are taken where this one leaves them out."""
    return next((other for _, _, other in siblings(task)), None)


def with_begun_folds(task: Task) -> Task:
    """The task with the folds that were begun in its run folder, if it names none of its own."""
    first = next((one for _, _, one in begun_folds(task.run_dir)), None)
    if task.tr_params.folds is not None or first is None or first.tr_params.folds is None:
        return task
    folds = first.tr_params.folds.model_copy(update={"index": None})
    settings = task.tr_params.model_copy(update={"folds": folds})
    return task.model_copy(update={"tr_params": settings})


def require_alike(task: Task, volumes: Sequence[TaskVolume], reporter: Reporter) -> None:
    """Refuse a fold that is trained otherwise, or divided otherwise, than those that were begun.

    Args:
        task: of one fold, with its sizes.
        volumes: as they were opened, before they are divided.
        reporter: told the progress when labels are counted.

    Raises:
        TaskError: naming the key, or the volume that another fold has divided otherwise.
    """
    others = siblings(task)
    for _, folder, other in others:
        changed = changed_keys(other.to_json(), task.to_json(), folder)
        changed = [found for found in changed if found[0] != "tr_params.folds.index"]
        if changed:
            found = f"differs from the fold in {folder} ({listed_changes(changed)})"
            raise TaskError(changed[0][0], found, _REMEDY)
    if others:
        _require_one_division(task, volumes, others, reporter)


def _require_one_division(
    task: Task,
    volumes: Sequence[TaskVolume],
    others: Sequence[tuple[int, Path, Task]],
    reporter: Reporter,
) -> None:
    """The labels may have changed since the others were begun, and with them who is in which fold."""
    folds = all_folds(task, volumes, reporter)
    for index, folder, _ in others:
        now = {v.name: _pairs(v) for v in folds[index] if v.split == "val"}
        before = dict(_validated(folder / "splits.json"))
        differing = [name for name in now.keys() | before if now.get(name) != before.get(name)]
        if before and differing:
            found = (
                f"fold {index} was begun with another division of the volumes "
                f"({min(differing)}): volumes or labels have changed since"
            )
            raise TaskError(str(folder), found, _REMEDY)


def begun_folds(folder: Path) -> Iterator[tuple[int, Path, Task]]:
    """Number, folder and resolved task of every fold in the folder of a cross-validation."""
    for index, place in fold_folders(folder).items():
        with suppress(OSError, ValueError, RecursionError, TaskError):
            task = parse_task(read_json(place / TASK), str(place / TASK))[0]
            folds, sizes = task.tr_params.folds, task.tr_params
            if folds and folds.index == index and sizes.given_patch_size is not None:
                yield index, place, task


def _validated(path: Path) -> Iterator[tuple[str, object]]:
    """Name and region of each volume that a saved split validates on; nothing if there is none."""
    with suppress(OSError, ValueError, RecursionError, LookupError, TypeError):
        saved = read_json(path)
        for name, region in zip(saved["volumes"], saved["val_regions"], strict=True):
            if region is not None:
                yield name, region


def _pairs(volume: TaskVolume) -> list[list[int]]:
    box = volume.region
    return [list(pair) for pair in zip(box.origin, box.end, strict=True)]
