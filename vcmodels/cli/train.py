"""The command `train`."""

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from vcmodels.cli.arguments import (
    Debug,
    FoldCount,
    FoldIndex,
    Overrides,
    Quiet,
    TaskFile,
    command_line,
    load,
    one_fold,
    with_folds,
)
from vcmodels.cli.console import Console
from vcmodels.cli.tune import choose_values
from vcmodels.errors import RefusedError

if TYPE_CHECKING:
    from vcmodels.config import Task


def train(
    context: typer.Context,
    task: TaskFile,
    set_: Overrides = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Move an earlier run aside and begin anew.")
    ] = False,
    accept_changed_data: Annotated[
        bool,
        typer.Option(
            "--accept-changed-data", help="Continue on inputs or labels that have changed since."
        ),
    ] = False,
    folds: FoldCount = None,
    fold: FoldIndex = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, max=100, metavar="N", help="Train N folds at once.")
    ] = 1,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Train, or continue the run that the run folder holds; with folds, one run for each."""
    from vcmodels import training
    from vcmodels.runs.run import Run
    from vcmodels.workflows.cascade import find_regions
    from vcmodels.workflows.postprocess import foresee_steps
    from vcmodels.workflows.tuning import judges_of, needs_tuning
    from vcmodels.workflows.whole_volumes import WholeVolumes

    console = Console(is_quiet=quiet)
    context.obj.begin()
    overrides = with_folds(set_, folds)
    loaded = load(task, overrides, console)
    find_regions(loaded, console)  # all that opens the volumes knows them then
    if fold is None and loaded.is_cross_validation:
        words = ["train", str(task.absolute()), *(w for o in overrides for w in ("--set", o))]
        words += ["--quiet"] if quiet else []
        words += ["--accept-changed-data"] if accept_changed_data else []
        code = _train_all(loaded, words, jobs=jobs, restart=restart, console=console)
        if code == 0:
            _say_next(loaded, command_line("infer", task, overrides, None), console)
        return code
    if jobs != 1:
        raise RefusedError("--jobs", "there is one training", "give --folds K, and no --fold")
    loaded = one_fold(loaded, fold)
    foresee_steps(loaded)  # what comes after the training: what is wrong with it is said now
    judges_of(loaded)
    code = training.train(
        loaded,
        reporter=console,
        restart=restart,
        accept_changed_data=accept_changed_data,
        whole_volumes=WholeVolumes,
    )
    console.say(f"curves: tensorboard --logdir {loaded.tensorboard_dir.parent}")
    has_best = Run(loaded.run_dir, loaded.tr_params.model_name).best.exists()
    if code == 0 and has_best and needs_tuning(loaded):
        code = choose_values(loaded, console)
    if code == 0 and has_best and fold is None:  # of folds, all together come next
        _say_next(loaded, command_line("infer", task, set_, None), console)
    return code


def _say_next(task: "Task", inference: str, console: Console) -> None:
    """Name the command that predicts with what was trained."""
    params = task.inference_params
    input_ = "" if params.input_path else " --input VOLUME"
    output = "" if params.output_dir else " --output FOLDER"
    console.say(f"next: {inference}{input_}{output}")


def _train_all(
    task: "Task", words: list[str], *, jobs: int, restart: bool, console: Console
) -> int:
    """Train all folds, and say how they compare; the exit code."""
    from vcmodels.cli.runs import write_report
    from vcmodels.workflows.cross_validation import cross_validate
    from vcmodels.workflows.fold_report import report_folds

    code = cross_validate(task, words, jobs=jobs, restart=restart, reporter=console)
    if code <= 1:
        with suppress(RefusedError):  # not one fold has begun
            write_report(report_folds(task.run_dir, task.tr_params.folds), console)
    shared = task.tr_params.tensorboard_log_dir
    curves = task.tensorboard_dir.parent if shared else task.run_dir
    console.say(f"curves: tensorboard --logdir {curves}")
    return code
