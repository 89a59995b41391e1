"""What a training starts from, and the facts on program and machine that its files record."""

import math
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vcmodels
from vcmodels.checkpoint import SCHEMA, Checkpoint, load_checkpoint
from vcmodels.config import Task
from vcmodels.config.load import fill_normalization
from vcmodels.config.train_params import TrainingParams
from vcmodels.data.normalization import Normalization, contradiction
from vcmodels.devices import free_bytes, machine_bytes, memory_bytes
from vcmodels.errors import CheckpointError, TaskError
from vcmodels.patches.resolve import Resolved
from vcmodels.reporting import Reporter
from vcmodels.targets import AnyTarget
from vcmodels.training.curves import main_metrics
from vcmodels.training.learner import Learner
from vcmodels.training.progress import Counters, EarlyStop, best_watch
from vcmodels.training.run_folder import (
    RunFolder,
    changes_since,
    listed_changes,
    newest_checkpoint,
    resolved_task,
)
from vcmodels.volumes import expand_location


def environment() -> dict[str, Any]:
    """What a person needs to make the same run again, besides the task: JSON values."""
    return {
        "command": shlex.join([sys.executable, *sys.argv]),
        "vcmodels": vcmodels.__version__,
        "commit": commit(Path(vcmodels.__file__).parents[1]),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "zarr", "numcodecs")},
        "cuda": torch.version.cuda,
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cpus": available_cpus(),
        "memory_gb": round(machine_bytes() / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def commit(root: Path) -> str | None:
    """The commit of a checkout, with `-dirty` when files differ from it; None for no checkout."""
    if not (root / ".git").exists():  # else it might be the one of a folder around an installation
        return None
    options = ["--always", "--dirty", "--abbrev=40", "--exclude=*"]
    command = ["git", "-C", str(root), "describe", *options]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    return None


def cpu_name() -> str:
    """What the processor calls itself."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def available_cpus() -> int:
    """Processors that this process may use; others of the machine may be kept from it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_device(device: torch.device) -> str:
    """What a training computes with, in words: device, free memory, threads and cores."""
    name = "CPU" if device.type == "cpu" else f"{torch.cuda.get_device_name(device)} ({device})"
    free, there = free_bytes(device) / 2**30, memory_bytes(device) / 2**30
    cores = f"torch threads {torch.get_num_threads()}, cores {available_cpus()}"
    return f"{name}: {free:.1f} of {there:.1f} GiB memory free; {cores}"


COMPILE_REPAYS_AFTER_STEPS = 300
"""Compiling costs about a minute; it saves around half of a step of some tenths of a second."""


def lasting_facts(resolved: Resolved, learner: Learner) -> dict[str, Any]:
    """What every checkpoint of the run holds, besides its state, normalisation and split."""
    task, first = resolved.task, resolved.volumes[0]
    return {
        "schema": SCHEMA,
        "task": task.to_json(),
        "heads": task.heads,
        "in_channels": first.channels,
        "patch_size": list(task.tr_params.patch_size),
        "spacing": list(first.spacing),
        "versions": versions(learner),
    }


def session(learner: Learner) -> dict[str, Any]:
    """What `environment.json` says of a training that starts now."""
    best = vars(best_watch(learner.settings, learner.targets))
    here = {"from_step": learner.step, "best": best, "metrics": main_metrics(learner.targets)}
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


@dataclass(frozen=True)
class StartingPoint:
    """The checkpoints that a training may start from, one of them at most."""

    resumed: Checkpoint | None
    """The newest of this run."""
    given: Checkpoint | None
    """The file that `checkpoint_path` names, for a run that has none yet."""
    weights_only: bool
    """Whether the given one has no more to give than its weights."""

    @classmethod
    def of(cls, task: Task, run: RunFolder, *, restart: bool) -> "StartingPoint":
        """Load what there is; with `restart` the run's own is left out.

        Raises:
            CheckpointError: a checkpoint cannot be read.
            TaskError: the run was trained with other values of keys that must not change.
        """
        settings = task.tr_params
        resumed = None if restart else newest_checkpoint(run, task)
        path = settings.checkpoint_path if resumed is None else None
        given = None if path is None else load_checkpoint(Path(expand_location(path)))
        return cls(resumed, given, bool(settings.load_weights_only))

    @property
    def source(self) -> Checkpoint | None:
        """Where weights come from."""
        return self.resumed or self.given

    @property
    def continued(self) -> Checkpoint | None:
        """Whose training goes on."""
        return self.resumed or (None if self.weights_only else self.given)

    def normalization(self, channels: int) -> Normalization | None:
        """How the source normalises, which its weights are used to; None if it has other channels."""
        if self.source is None or self.source.state["in_channels"] != channels:
            return None
        return Normalization.from_dict(self.source.state["normalization"])

    def with_normalization(self, task: Task, channels: int) -> Task:
        """The task with the normalisation that its run has, or its weights are used to.

        Raises:
            TaskError: the task asks for another one.
        """
        if self.resumed is not None:
            before = resolved_task(self.resumed)
            return fill_normalization(task, before.dataset_config.normalization) if before else task
        used = self.normalization(channels)
        if used is None:
            return task
        if found := contradiction(task.dataset_config.normalization, used):
            remedy = "leave it out: its weights are used to what they were trained with"
            raise TaskError("dataset_config.normalization", found, remedy)
        return fill_normalization(task, used.config)


def completion(
    resumed: Checkpoint | None, settings: TrainingParams, targets: Mapping[str, AnyTarget]
) -> str | None:
    """In words, why the run of a checkpoint has ended for good; None if it goes on."""
    if resumed is None:
        return None
    counters = Counters(**resumed.state["counters"])
    if counters.epoch >= settings.max_epoch:
        return f"{settings.max_epoch} epochs"
    early = EarlyStop.of(settings, targets)
    return early.reason(counters) if early is not None and early.is_over(counters) else None


def start(
    learner: Learner, origin: StartingPoint, document: Mapping[str, Any], reporter: Reporter
) -> Counters:
    """Give the learner the state that it starts from.

    Args:
        learner: with random weights.
        origin: the checkpoint, if there is one.
        document: the task as JSON values.
        reporter: shows what is taken, and what is other than it was there.

    Raises:
        CheckpointError: the checkpoint does not fit the network.
        TaskError: it was trained with other optimiser or epochs, or for as many epochs as this run has.
    """
    resumed, given = origin.resumed, origin.given
    if given is not None and origin.weights_only:
        path, partial = str(given.path), learner.settings.load_weights_only == "partial"
        taken = learner.take_weights(given.state, path, partial=partial)
        reporter.say(f"weights of {path}: {taken}")
        return Counters()
    if given is not None:
        require_continuable(given, learner)
    resumed = resumed or given
    if resumed is None:
        if learner.freezing.holds(0):
            parts = ", ".join(learner.settings.freeze)
            reporter.say(f"{parts}: frozen with random weights, as there is no checkpoint_path")
        return Counters()
    learner.restore(resumed.state, str(resumed.path))
    counters = Counters(**resumed.state["counters"])
    if resumed is given:  # of another folder, where its best checkpoint stays
        counters.best, counters.watched = math.inf, ""
    reporter.say(f"continuing {resumed.path} at epoch {counters.epoch + 1}, step {learner.step}")
    if resumed is given and (changed := changes_since(resumed, document)):
        reporter.say(f"other than there: {listed_changes(changed, len(changed))}")
    before, now = resumed.state["versions"], versions(learner)
    updates = [
        f"{name} {value} instead of {before.get(name)}"
        for name, value in now.items()
        if value != before.get(name)
    ]
    if updates:
        reporter.say(f"{', '.join(updates)}: may no longer be bit-identical")
    return counters


def require_continuable(given: Checkpoint, learner: Learner) -> None:
    """Refuse to take more than the weights of a checkpoint that has nothing more to give.

    Raises:
        CheckpointError: it holds no state of a training.
        TaskError: its optimiser is another, or it has all epochs already.
    """
    settings, state, remedy = learner.settings, given.state, "set load_weights_only"
    lacking = {"optimizer", "scaler", "counters", "versions"} - state.keys()
    if lacking:
        raise CheckpointError(str(given.path), f"lacks {', '.join(sorted(lacking))}", remedy)
    for key in ("optimizer", "loss_balance", "max_steps_per_epoch"):
        default = TrainingParams.model_fields[key].default  # for a key that is newer
        before, now = state["task"]["tr_params"].get(key, default), getattr(settings, key)
        if before != now:
            found = f"is {now}, {given.path} was trained with {before}"
            raise TaskError(f"tr_params.{key}", found, f"change it back, or {remedy}")
    if state["epoch"] >= settings.max_epoch:
        found = f"is {settings.max_epoch}, {given.path} has {state['epoch']} epochs already"
        raise TaskError("tr_params.max_epoch", found, f"raise it, or {remedy}")
