"""A training that keeps few checkpoints and its watcher, for workers that are killed."""

import torch

from tests.faults.learning import LATE, train_on
from vcmodels.config import load_task
from vcmodels.reporting import Silent
from vcmodels.workflows.watch import WatchOptions, watch

__all__ = ["LATE", "follow", "learn"]


def learn(task: str) -> None:
    """Begin or continue the training of a task file."""
    train_on(task, 0)


def follow(task: str) -> int:
    """Score what the training of a task file writes, until all is scored."""
    torch.set_num_threads(1)
    options = WatchOptions("sheet.dice", 2, "cpu", 0.1)
    return int(not watch(load_task(task).task, options, Silent(), lambda: False))
