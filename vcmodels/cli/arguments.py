"""Arguments and options that commands share, what is parsed from them, and the task they name."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vcmodels.cli import Session
from vcmodels.cli.console import Console
from vcmodels.errors import RefusedError

if TYPE_CHECKING:
    from vcmodels.config import Task


def _remember_debug(context: typer.Context, value: bool) -> bool:
    if isinstance(context.obj, Session):
        context.obj.debug = context.obj.debug or value
    return value


TaskFile = Annotated[Path, typer.Argument(metavar="TASK", help="The task file, or a run folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the task; may be repeated."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing but errors.")]
Debug = Annotated[
    bool, typer.Option("--debug", callback=_remember_debug, help="Show tracebacks of errors.")
]
FoldCount = Annotated[
    int | None,
    typer.Option("--folds", min=2, max=100, metavar="K", help="Cross-validate with K folds."),
]
FoldIndex = Annotated[
    int | None, typer.Option("--fold", min=0, metavar="I", help="Only this fold, from 0.")
]


def command_line(
    command: str, task: Path, overrides: Sequence[str] | None, fold: int | None
) -> str:
    """What to type to run another command on a task that this one was run on."""
    words = [command, str(task), *(word for line in overrides or () for word in ("--set", line))]
    return shlex.join(["vcmodels", *words, *(() if fold is None else ("--fold", str(fold)))])


def three_numbers(option: str, text: str) -> tuple[int, int, int]:
    """Three positive numbers from `z,y,x`.

    Raises:
        RefusedError: they are none.
    """
    parts = text.replace("x", ",").split(",")
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in parts]
    if len(numbers) != 3 or not all(1 <= number <= 2**20 for number in numbers):
        raise RefusedError(option, f'found "{text}"', "give three numbers, as in 96,128,128")
    return numbers[0], numbers[1], numbers[2]


def two_lengths(option: str, text: str) -> tuple[float, float]:
    """Two numbers from `low,high`, which may have decimals.

    Raises:
        RefusedError: they are none.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(re.fullmatch(r"\d{1,6}(\.\d{1,6})?", part) for part in parts):
        raise RefusedError(option, f'found "{text}"', "give two numbers, as in 2,6")
    return float(parts[0]), float(parts[1])


def spans(option: str, text: str) -> list[tuple[int, int]]:
    """Three [start, end) pairs from `z0:z1,y0:y1,x0:x1`.

    Raises:
        RefusedError: they are none, or one is empty.
    """
    matches = [re.fullmatch(r"(\d{1,12}):(\d{1,12})", part) for part in text.split(",")]
    found = [(int(match[1]), int(match[2])) for match in matches if match is not None]
    if len(matches) != 3 or len(found) != 3 or any(start >= end for start, end in found):
        raise RefusedError(
            option, f'found "{text}"', "give start:end for each, as in 0:8,0:64,0:64"
        )
    return found


def load(path: Path, overrides: list[str] | None, console: Console) -> "Task":
    """Read a task file, and report what of it was read otherwise than it was written."""
    from vcmodels.config import load_task  # late: `--help` needs none of it

    loaded = load_task(path, overrides or ())
    for note in loaded.notes:
        console.say(f"note: {note}")
    return loaded.task


def with_folds(overrides: Sequence[str] | None, count: int | None) -> list[str]:
    """The overrides, with the one that `--folds` stands for before them."""
    given = [] if count is None else [f"tr_params.folds.count={count}"]
    return [*given, *(overrides or ())]


def one_fold(task: "Task", fold: int | None) -> "Task":
    """The task of a fold, if one is asked for; the folds that were begun count, too.

    Raises:
        RefusedError: there is no such fold.
    """
    if fold is None:
        return task
    from vcmodels.training.other_folds import with_begun_folds

    return with_begun_folds(task).fold(fold)


def load_one(
    path: Path, overrides: Sequence[str] | None, console: Console, fold: int | None
) -> "Task":
    """Read a task file; of a cross-validation one fold, the first if none is named.

    Raises:
        RefusedError: there is no such fold.
    """
    task = load(path, list(overrides or ()), console)
    if fold is None and task.is_cross_validation:
        assert task.tr_params.folds
        fold = 0
        console.say(f"fold 0 of {task.tr_params.folds.count}; --fold shows another")
    return one_fold(task, fold)


def refuse_all_folds(task: "Task") -> None:
    """Refuse to score what all folds predict together: each voxel was trained on by most of them.

    Raises:
        RefusedError: the task is a whole cross-validation.
    """
    if task.is_cross_validation:
        found = "nothing is held out of all folds"
        remedy = "score one, predicted with infer --fold I, or give a --bbox"
        raise RefusedError("--fold", found, remedy)
