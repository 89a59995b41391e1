"""What a training starts from, and the facts on program and machine that its files record."""

import math
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vcmodels
from vcmodels.checkpoint import (
    SCHEMA,
    Checkpoint,
    read_normalization,
    require_shapes,
)
from vcmodels.config import NormalizationConfig, Task
from vcmodels.config.load import fill_augment, fill_normalization
from vcmodels.config.messages import as_object
from vcmodels.config.train_params import TrainingParams
from vcmodels.data.normalization import Normalization, contradiction
from vcmodels.data.record import Change, DataRecord, changes, count_moved, record_of, with_names
from vcmodels.data.task_volume import TaskVolume
from vcmodels.devices import free_bytes, memory_bytes
from vcmodels.errors import CheckpointError, OutputError, TaskError
from vcmodels.exchange import load_state
from vcmodels.machine import cpu_name, instruction_sets, load, machine_bytes, usable_cores
from vcmodels.patches.resolve import Resolved
from vcmodels.reporting import Reporter, list_some
from vcmodels.runs.run import PRUNED
from vcmodels.stages import STAGES, carried_stages
from vcmodels.symmetry.findings import SymmetryFindings, as_findings
from vcmodels.targets import AnyTarget
from vcmodels.training.curves import main_metrics
from vcmodels.training.learner import Learner, take_weights
from vcmodels.training.progress import Counters, EarlyStop, best_watch
from vcmodels.training.run_folder import (
    RunFolder,
    changes_since,
    listed_changes,
    newest_checkpoint,
    resolved_task,
)
from vcmodels.training.teachers import load_teachers
from vcmodels.volumes import expand_location
from vcmodels.volumes.places import obstacle


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
        "instructions": list(instruction_sets()),
        "cpus": usable_cores(),
        "load": load(),
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


def describe_device(device: torch.device) -> str:
    """What a training computes with, in words: device, free memory, threads and cores."""
    name = "CPU" if device.type == "cpu" else f"{torch.cuda.get_device_name(device)} ({device})"
    free, there = free_bytes(device) / 2**30, memory_bytes(device) / 2**30
    cores = f"torch threads {torch.get_num_threads()}, cores {usable_cores()}"
    return f"{name}: {free:.1f} of {there:.1f} GiB memory free; {cores}"


COMPILE_REPAYS_AFTER_STEPS = 300
"""Compiling costs about a minute; it saves around half of a step of some tenths of a second."""
COMPILE_REPAYS_AFTER_MINUTES = 15
"""On one core of AVX2 compiling took 2.6 minutes, and a step 0.65 to 0.8 of its time from then on."""


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
        "unit": first.unit,
        "versions": versions(learner),
        **({STAGES: stages} if (stages := carried_stages(task)) else {}),
    }


def session(learner: Learner) -> dict[str, Any]:
    """What `environment.json` says of a training that starts now."""
    best = vars(best_watch(learner.settings, learner.targets))
    here = {"from_step": learner.step, "best": best, "metrics": main_metrics(learner.targets)}
    return here | environment() | versions(learner)


def compile_pays(learner: Learner) -> bool:
    """Whether to compile: as the task says, or when the run has enough steps and time to repay it.

    All steps count, not those that are left: a resumed run must compute as it did before.
    """
    wanted, minutes = learner.settings.compile, learner.settings.max_minutes
    if wanted != "auto":
        return wanted
    if minutes is not None and minutes < COMPILE_REPAYS_AFTER_MINUTES:
        return False
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


def saved_count(checkpoint: Checkpoint, key: str, default: int) -> int:
    """A number of things, 1 or more, in a checkpoint; `default` where it has none.

    Raises:
        CheckpointError: it is something else.
    """
    found = checkpoint.state.get(key, default)
    if type(found) is not int or found < 1:
        raise CheckpointError(str(checkpoint.path), f"{key} is {found!r}", "use another checkpoint")
    return found


@dataclass(frozen=True)
class StartingPoint:
    """The checkpoints that a training may start from, one of them at most."""

    resumed: Checkpoint | None
    """The newest of this run."""
    given: Checkpoint | None
    """The file that `checkpoint_path` names, for a run that has none yet."""
    weights_only: bool
    """Whether the given one has no more to give than its weights."""
    teacher: Checkpoint | None = None
    """Whose normalisation a new run takes, where neither weights nor its task say another."""

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
        given = None if path is None else load_state(Path(expand_location(path)))
        teachers = load_teachers(settings.distill) if resumed is None and given is None else []
        teacher = teachers[0] if teachers else None
        return cls(resumed, given, bool(settings.load_weights_only), teacher)

    @property
    def source(self) -> Checkpoint | None:
        """Where weights come from."""
        return self.resumed or self.given

    @property
    def continued(self) -> Checkpoint | None:
        """Whose training goes on."""
        return self.resumed or (None if self.weights_only else self.given)

    @property
    def carried(self) -> dict[str, Any]:
        """What every checkpoint of the run goes on to say: that its network was pruned."""
        state = self.source.state if self.source is not None else {}
        return {PRUNED: state[PRUNED]} if PRUNED in state else {}

    def normalization(
        self, volume: TaskVolume, wanted: NormalizationConfig
    ) -> Normalization | None:
        """How the source normalises, which its weights are used to; None if it has other channels.

        Of a run that is taught, as its first teacher does, unless another way is `wanted`.
        """
        source = self.source or self.teacher
        if source is None or source.state.get("in_channels") != volume.channels:
            return None
        source.require("normalization")
        found = read_normalization(source.state, source.path)
        if self.source is None and contradiction(wanted, found):
            return None
        stats = found.channels or next(iter(found.volumes.values()), ())
        # Slices and coordinates are channels, too, which have no statistics of their own.
        return found if len(stats) in (0, volume.stored_channels) else None

    def with_augment(self, task: Task) -> Task:
        """The task with the `augment` of the training that goes on, where it leaves it out."""
        before = resolved_task(self.continued) if self.continued is not None else None
        return task if before is None else fill_augment(task, before.augment)

    @property
    def symmetry(self) -> SymmetryFindings | None:
        """What the training that goes on has found of its data; older ones have nothing."""
        return None if self.continued is None else as_findings(self.continued.state.get("symmetry"))

    def with_normalization(self, task: Task, volume: TaskVolume) -> Task:
        """The task with the normalisation that its run has, or its weights are used to.

        Raises:
            TaskError: the task asks for another one.
        """
        if self.resumed is not None:
            before = resolved_task(self.resumed)
            return fill_normalization(task, before.dataset_config.normalization) if before else task
        used = self.normalization(volume, task.dataset_config.normalization)
        if used is None:
            return task
        if found := contradiction(task.dataset_config.normalization, used):
            remedy = "leave it out: its weights are used to what they were trained with"
            raise TaskError("dataset_config.normalization", found, remedy)
        return fill_normalization(task, used.config)


def idle_keys(settings: TrainingParams, resumed: Checkpoint | None) -> Iterator[str]:
    """A line for each key about the start that a run which goes on has no use for."""
    if resumed is None:
        return
    before = as_object(resumed.state["task"].get("tr_params")) or {}
    for key in ("checkpoint_path", "load_weights_only"):
        if (value := getattr(settings, key)) and value != before.get(key):
            reason = "the run goes on from its own checkpoint; --restart begins again"
            yield f"note: tr_params.{key}: has no effect: {reason}"


def check_start(task: Task, first: TaskVolume, origin: StartingPoint) -> None:
    """Refuse what a training would be refused for that is neither in the task nor in its volumes.

    Args:
        task: the resolved task.
        first: its first volume.
        origin: of the training.

    Raises:
        OutputError: the run folder cannot be written.
        CheckpointError: the file that a new run starts from does not fit.
        TaskError: it has no more to give than its weights.
    """
    settings, given = task.tr_params, origin.given
    if origin.source is None:
        size = (first.channels, task.heads, settings.patch_size, first.spacing)
        task.model.first_weights(task.model.outline(*size))
    if found := obstacle(task.run_dir):
        raise OutputError("tr_params.ckpt_out_base", found, "choose a writable folder")
    if given is None:
        return
    given.require("model")
    network = task.model.outline(first.channels, task.heads, settings.patch_size, first.spacing)
    if settings.load_weights_only:
        partial = settings.load_weights_only == "partial"
        take_weights([network], given.state, str(given.path), task.heads, partial=partial)
    else:
        require_continuable(given, settings)
        require_shapes(network, given.state["model"], str(given.path))


def unkept(task: Task) -> Iterator[str]:
    """In words, what a training can do without, but could not keep."""
    config = task.dataset_config
    for key, folder, given in (
        ("tr_params.tensorboard_log_dir", task.tensorboard_dir, task.tr_params.tensorboard_log_dir),
        ("dataset_config.cache_file", task.cache_file.parent, config.cache_file),
        ("dataset_config.index_dir", task.index_dir, True),
    ):
        if given and (found := obstacle(folder)):
            yield f"note: {key}: {found}; it will not be kept"


@dataclass(frozen=True)
class KnownData:
    """What is trained on, compared with what it was when the run was saved."""

    volumes: Sequence[TaskVolume]
    """By the names that the run knows them by."""
    record: DataRecord
    accepted: list[str]
    """What has changed, in words, and is trained on all the same."""


def compare_data(
    origin: StartingPoint, volumes: Sequence[TaskVolume], reporter: Reporter, *, accepts: bool
) -> KnownData:
    """Compare the volumes with the record of the checkpoint that is continued.

    Args:
        origin: the checkpoint, if there is one.
        volumes: of this run.
        reporter: shows what is known, and what has changed.
        accepts: go on with voxels that have changed.

    Raises:
        TaskError: an array holds something else than before; a run begun anew accepts all.
    """
    now, source = record_of(volumes), origin.continued
    before = source.state.get("data") if source is not None else None
    if source is not None and before is None:
        reporter.say(f"{source.path} does not say what its data were: changes are not noticed")
    if accepts and (before is None or source is origin.given):
        reporter.say("--accept-changed-data: there is nothing to compare with")
    if source is None or before is None:
        return KnownData(volumes, now, [])
    found = list(changes(before, now))
    if source is origin.given:
        if found:
            reporter.say(f"other data than in {source.path}: {_listed(found)}")
        return KnownData(volumes, now, [])
    if found and not (accepts and all(change.is_replaceable for change in found)):
        raise _changed(found, source)
    if found:
        reporter.say(f"accepted changes since {source.path.name} was saved: {_listed(found)}")
    elif count := count_moved(before, now):
        reporter.say(
            f"{count} arrays are copies or were written again, and hold the same as before"
        )
    elif accepts:
        reporter.say("--accept-changed-data: nothing has changed")
    return KnownData(with_names(volumes, before), now, [change.what for change in found])


def _changed(found: Sequence[Change], source: Checkpoint) -> TaskError:
    first = next((change for change in found if not change.is_replaceable), found[0])
    rest = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    what = f"has changed since {source.path.name} was saved: {first.what}{rest}"
    accept = "go on by --accept-changed-data, " if first.is_replaceable else ""
    return TaskError(first.key, what, f"restore it, {accept}or --restart")


def _listed(found: Sequence[Change]) -> str:
    return list_some((change.what for change in found), MOST_LISTED, between="; ")


MOST_LISTED = 3


def completion(
    resumed: Checkpoint | None, settings: TrainingParams, targets: Mapping[str, AnyTarget]
) -> str | None:
    """In words, why the run of a checkpoint has ended for good; None if it goes on."""
    if resumed is None:
        return None
    counters = Counters.of(resumed)
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
        require_continuable(given, learner.settings)
    resumed = resumed or given
    if resumed is None:
        if learner.freezing.holds(0):
            parts = ", ".join(learner.settings.freeze)
            reporter.say(f"{parts}: frozen with random weights, as there is no checkpoint_path")
        return Counters()
    resumed.require("model", "optimizer", "scaler", "step", "versions", "normalization")
    counters = Counters.of(resumed)
    _require_step(resumed, counters, learner.settings.max_steps_per_epoch)
    learner.restore(resumed.state, str(resumed.path))
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


def _require_step(checkpoint: Checkpoint, counters: Counters, steps: int) -> None:
    """Refuse a step that is not of the epoch.

    Raises:
        CheckpointError: naming both.
    """
    epoch, step = checkpoint.state.get("epoch", counters.epoch), checkpoint.state["step"]
    if epoch != counters.epoch or not 0 <= step - epoch * steps <= steps:
        found = f"step {step} is not in epoch {epoch} (counters: {counters.epoch}) of {steps} steps"
        raise CheckpointError(str(checkpoint.path), found, "use another checkpoint")


def require_continuable(given: Checkpoint, settings: TrainingParams) -> None:
    """Refuse to take more than the weights of a checkpoint that has nothing more to give.

    Raises:
        CheckpointError: it holds no state of a training.
        TaskError: its optimiser is another, or it has all epochs already.
    """
    state, remedy = given.state, "set load_weights_only"
    if "optimizer" not in state and given.path.suffix != ".pth":
        found = f"is not given, and {given.path} holds weights only"
        raise TaskError("tr_params.load_weights_only", found, "set it to true, or to partial")
    given.require("optimizer", "scaler", "counters", "versions", "task")
    trained = as_object(state["task"].get("tr_params")) or {}
    for key in ("optimizer", "loss_balance", "max_steps_per_epoch"):
        field = TrainingParams.model_fields[key]  # its default is for a key that is newer
        default = field.get_default(call_default_factory=True, validated_data={})
        before, now = trained.get(key, default), getattr(settings, key)
        if before != now:
            found = f"is {now}, {given.path} was trained with {before}"
            raise TaskError(f"tr_params.{key}", found, f"change it back, or {remedy}")
    if (epoch := Counters.of(given).epoch) >= settings.max_epoch:
        found = f"is {settings.max_epoch}, {given.path} has {epoch} epochs already"
        raise TaskError("tr_params.max_epoch", found, f"raise it, or {remedy}")
