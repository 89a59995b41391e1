"""Trainings that save at each step, for workers that are killed."""

import resource
import signal
from pathlib import Path

import torch

from vcmodels.boards import EventWriter
from vcmodels.cli import main
from vcmodels.config import load_task
from vcmodels.reporting import Silent
from vcmodels.training import loop, train
from vcmodels.workflows.whole_volumes import WholeVolumes

LATE = ("torch._dynamo", "torch.utils.tensorboard", "vcmodels.cli.app", "vcmodels.cli.train")
"""What a first training imports, for seconds: it is there before, so that a kill falls into the work."""

EventWriter._draw_network = lambda *_: None  # as in the process of the tests
loop.SAVE_EVERY_SECONDS = 0.0  # at each step, so that a kill falls into saving, too


def train_on(task: str | Path, workers: int) -> None:
    """Begin or continue the training of a task file."""
    torch.set_num_threads(1)
    parsed = load_task(task, [f"tr_params.num_dataloader_workers={workers}"]).task
    assert train(parsed, reporter=Silent(), whole_volumes=WholeVolumes) == 0


def command(arguments: list[str]) -> int:
    """A command line as a person gives it."""
    torch.set_num_threads(1)
    return main(arguments)


def train_within(task: str, limit: int) -> int:
    """Train where no file may become larger than so many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return command(["train", task, "--quiet"])
