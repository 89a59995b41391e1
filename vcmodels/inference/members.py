"""Which checkpoints a prediction is made with: those named, the run's best, or the best of its folds."""

from collections.abc import Callable, Sequence
from pathlib import Path

from vcmodels.config import Task
from vcmodels.config.folds import fold_folders, fold_name, is_cross_validation
from vcmodels.errors import CheckpointError
from vcmodels.volumes import expand_location


def choose_checkpoints(task: Task, named: str | Sequence[str] | None = None) -> list[Path]:
    """Those given, else the task's, else the best of the run or of all its folds.

    Raises:
        CheckpointError: there is none.
    """
    named = named or task.inference_params.checkpoint_path
    if named:
        paths = [named] if isinstance(named, str) else named
        return [Path(expand_location(path)) for path in paths]
    if is_trained_in_folds(task):
        return best_of_folds(task)
    best = task.run_dir / _best(task)
    if not best.exists():
        found = f"holds no {best.name}"
        raise CheckpointError(str(task.run_dir), found, "train first, or give a checkpoint_path")
    return [best]


def is_trained_in_folds(task: Task) -> bool:
    """Whether the run is a cross-validation, also when only the command line said so."""
    has_best = (task.run_dir / _best(task)).exists()
    return is_cross_validation(task) or (not has_best and bool(fold_folders(task.run_dir)))


def best_of_folds(
    task: Task,
    wanted: Sequence[int] | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> list[Path]:
    """The best checkpoint of each fold.

    Args:
        task: the task of them all.
        wanted: the folds to take; all that have one when None.
        say: told which are taken, and which have none.

    Raises:
        CheckpointError: none has one, or one that is wanted has not.
    """
    folds, begun = task.tr_params.folds, fold_folders(task.run_dir)
    count = max([folds.count if folds else 0, *(index + 1 for index in begun)])
    chosen = range(count) if wanted is None else sorted(set(wanted))
    paths = {index: task.run_dir / fold_name(index) / _best(task) for index in chosen}
    lacking = [index for index, path in paths.items() if not path.exists()]
    if len(lacking) == len(paths) or (lacking and wanted is not None):
        subject = str(paths[lacking[0]] if lacking else task.run_dir)
        raise CheckpointError(subject, "there is no such fold to predict with", "train it first")
    for index in lacking:
        say(f"fold {index} has no {_best(task)} yet: it is left out")
    taken = [index for index in chosen if index not in lacking]
    say(f"predicting with the best of folds {', '.join(map(str, taken))} in {task.run_dir}")
    return [paths[index] for index in taken]


def _best(task: Task) -> str:
    return f"{task.tr_params.model_name}_best.pth"
