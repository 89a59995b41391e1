"""Options about the folds of a cross-validation, which commands share."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vcmodels.cli.arguments import load
from vcmodels.cli.console import Console
from vcmodels.errors import RefusedError

if TYPE_CHECKING:
    from vcmodels.config import Task

FoldCount = Annotated[
    int | None,
    typer.Option("--folds", min=2, max=100, metavar="K", help="Cross-validate with K folds."),
]
Fold = Annotated[
    int | None, typer.Option("--fold", min=0, metavar="I", help="Only this fold, from 0.")
]


def with_folds(overrides: Sequence[str] | None, count: int | None) -> list[str]:
    """The overrides, with the one that `--folds` stands for before them."""
    given = [] if count is None else [f"tr_params.folds.count={count}"]
    return [*given, *(overrides or ())]


def one_fold(task: "Task", fold: int | None) -> "Task":
    """The task of a fold, if one is asked for; how many there are, those that were begun tell, too.

    Raises:
        RefusedError: there is no such fold.
    """
    if fold is None:
        return task
    from vcmodels.config.folds import fold_task  # late, as in `load`
    from vcmodels.training.siblings import with_begun_folds

    return fold_task(with_begun_folds(task), fold)


def load_one(
    path: Path, overrides: Sequence[str] | None, console: Console, fold: int | None
) -> "Task":
    """Read a task file; of a cross-validation one fold, the first if none is named.

    Raises:
        RefusedError: there is no such fold.
    """
    from vcmodels.config.folds import is_cross_validation

    task = load(path, list(overrides or ()), console)
    if fold is None and is_cross_validation(task):
        assert task.tr_params.folds
        fold = 0
        console.say(f"fold 0 of {task.tr_params.folds.count}; --fold shows another")
    return one_fold(task, fold)


def refuse_all_folds(task: "Task") -> None:
    """Refuse to score what all folds predict together: each voxel was trained on by most of them.

    Raises:
        RefusedError: the task is a whole cross-validation.
    """
    from vcmodels.config.folds import is_cross_validation

    if is_cross_validation(task):
        found = "nothing is held out of all folds"
        remedy = "score one, predicted with infer --fold I, or give a --bbox"
        raise RefusedError("--fold", found, remedy)
