"""Where the curves and pictures of a run go."""

import json
from collections.abc import Callable

from vcmodels.config import Task
from vcmodels.runs.differences import leaves
from vcmodels.training.board import Board, Sink
from vcmodels.training.changes import may_change
from vcmodels.training.events import EventWriter, Parameters
from vcmodels.training.wandb_writer import WandbWriter

_SECTIONS = ("tr_params", "model_config", "dataset_config.targets", "dataset_config.sampling")
"""Of the task: what people vary from run to run, and compare."""


def open_board(task: Task, step: int, say: Callable[[str], None]) -> Board:
    """The board of a run that has done `step` steps."""

    def events() -> EventWriter:
        return EventWriter(
            task.tensorboard_dir,
            step,
            task=task.to_json(),
            parameters=hyperparameters(task),
            metrics=main_curves(task),
        )

    sinks = [Sink("TensorBoard", events)]
    if task.tr_params.wandb is not None:
        # Of whatever a service and its client raise, nothing is worth a training.
        sinks.append(Sink("Weights & Biases", lambda: WandbWriter(task), (Exception,)))
    return Board(sinks, say)


def main_metrics(task: Task) -> dict[str, str]:
    """The metric by which each target is judged first."""
    return {name: target.metric for name, target in task.dataset_config.targets.items()}


def main_curves(task: Task) -> list[str]:
    """The curves whose last values stand for a run."""
    return ["val/loss", *(f"val/{metric}_{name}" for name, metric in main_metrics(task).items())]


def hyperparameters(task: Task) -> Parameters:
    """What sets a run apart from others: the keys of a task that change what is learnt."""
    found: dict[str, bool | int | float | str] = {}
    for key, value in leaves(task.to_json()):
        if value is not None and not may_change(key) and key.startswith(_SECTIONS):
            is_plain = isinstance(value, bool | int | float | str)
            found[key] = value if is_plain else json.dumps(value)
    return found
