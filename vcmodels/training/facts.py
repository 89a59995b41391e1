"""What a run depends on besides its changing state: it goes into every checkpoint."""

import platform
from typing import Any

import numpy as np
import torch

import vcmodels
from vcmodels.checkpoint import SCHEMA
from vcmodels.config import Task
from vcmodels.data.volumes import TaskVolume
from vcmodels.training.early_stopping import best_watch
from vcmodels.training.environment import environment
from vcmodels.training.learner import Learner
from vcmodels.training.sinks import main_metrics

COMPILE_REPAYS_AFTER_STEPS = 300
"""Compiling costs about a minute; it saves around half of a step of some tenths of a second."""


def lasting_facts(task: Task, first: TaskVolume, learner: Learner) -> dict[str, Any]:
    """What every checkpoint of the run holds, besides its state, normalisation and split."""
    return {
        "schema": SCHEMA,
        "task": task.to_json(),
        "heads": task.heads,
        "in_channels": first.channels,
        "patch_size": list(task.tr_params.patch_size),
        "spacing": list(first.spacing),
        "versions": versions(learner),
    }


def session(task: Task, learner: Learner) -> dict[str, Any]:
    """What `environment.json` says of a training that starts now."""
    best = vars(best_watch(task.tr_params, learner.targets))
    here = {"from_step": learner.step, "best": best, "metrics": main_metrics(task)}
    return here | environment() | versions(learner)


def compile_pays(learner: Learner) -> bool:
    """Whether to compile: as the task says, or when the run has enough steps to repay it.

    All steps count, not those that are left: a resumed run must compute as it did before.
    """
    wanted = learner.settings.compile
    if wanted != "auto":
        return wanted
    return learner.total_steps >= COMPILE_REPAYS_AFTER_STEPS


def versions(learner: Learner) -> dict[str, str | int | bool]:
    """What the numbers of a run depend on, besides the task."""
    return {
        "device": learner.device.type,
        "precision": str(learner.amp or torch.float32).removeprefix("torch."),
        "compiled": compile_pays(learner),
        "vcmodels": vcmodels.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "processes": learner.world.size,
    }
