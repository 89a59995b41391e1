"""One training, told from top to bottom."""

import math
import platform
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vcmodels
from vcmodels.checkpoint import SCHEMA, Checkpoint, load_checkpoint
from vcmodels.config import Task
from vcmodels.config.parameters import TrainingParams
from vcmodels.data.dataset import PatchDataset
from vcmodels.data.folds import fold_volumes
from vcmodels.data.hard_order import draws_of_step
from vcmodels.data.normalization import Normalization, fit_normalization
from vcmodels.data.patch_cache import document, fingerprint, load_or_find_patches
from vcmodels.data.planning import open_planned
from vcmodels.data.split import Split, load_or_split
from vcmodels.data.volumes import TaskVolume, say_missing
from vcmodels.devices import choose_amp, choose_device, memory_bytes
from vcmodels.errors import CheckpointError, TaskError
from vcmodels.reporting import Reporter
from vcmodels.stopping import StopSignals
from vcmodels.training.board import Board, cut_json_lines
from vcmodels.training.class_weights import count_or_recall, weighted_targets
from vcmodels.training.counters import Counters
from vcmodels.training.early_stopping import EarlyStop, best_watch
from vcmodels.training.environment import environment
from vcmodels.training.feed import Feed
from vcmodels.training.learner import Learner
from vcmodels.training.loop import Loop
from vcmodels.training.mixing import require_pairs
from vcmodels.training.run_folder import RunFolder, resolved_task
from vcmodels.training.siblings import begun_sibling, require_alike
from vcmodels.training.sinks import main_metrics, open_board
from vcmodels.training.wandb_writer import require_wandb
from vcmodels.training.world import World, local_device
from vcmodels.volumes import expand_location

COMPILE_REPAYS_AFTER_STEPS = 300
"""Compiling costs about a minute; it saves around half of a step of some tenths of a second."""

ESTIMATE_SLACK = 2
"""A compiled step may keep half of what is estimated; sizes near the limit are left to try."""


def train(task: Task, *, reporter: Reporter, restart: bool = False) -> int:
    """Train until `max_epoch`, `max_minutes` or a signal, continuing the run that the folder holds.

    Args:
        task: the resolved task.
        reporter: where lines and progress bars go.
        restart: move an earlier run aside and begin anew.

    Returns:
        The exit code: 0 when finished, 128 + signal when stopped by one (the state is saved).

    Raises:
        RefusedError: the task, a volume or the run folder does not allow it; nothing was changed.
        RunError: a failure on the way; the last checkpoint is whole and the same command resumes.
    """
    settings = task.tr_params
    deadline = time.monotonic() + 60 * (settings.max_minutes or math.inf)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = choose_device(local_device(settings.device), "tr_params.device")
    _ = task.tensorboard_dir, task.cache_file  # a bad path is refused here
    require_wandb(task)
    world, run = World.join(device), RunFolder(task)
    with StopSignals() as stop, ExitStack() as held, world.together():
        held.callback(world.leave)
        world.once(lambda: held.enter_context(run) and None)
        resumed = None if restart else run.newest_checkpoint()
        if resumed is not None and (why := completion(task, resumed)) is not None:
            reporter.say(f"{run.path}: already complete ({why})")
            return 0

        given = given_checkpoint(task) if resumed is None else None
        source = resumed or given
        recorded = resolved_task(source) if source else begun_sibling(task)
        task, volumes = open_planned(task, reporter, recorded)
        run.task, settings = task, task.tr_params
        require_alike(task, volumes, reporter)
        fitting = volumes
        volumes = world.once(lambda: fold_volumes(task, fitting, reporter))
        refuse_too_large(task, volumes, device, world)
        say_missing(volumes, reporter)
        first = volumes[0]
        torch.manual_seed(settings.seed)
        network = task.model.build(first.channels, task.heads, settings.patch_size, first.spacing)
        total_steps = settings.max_epoch * settings.max_steps_per_epoch
        learner = Learner(network, task, total_steps, device, world)
        counters = start(learner, resumed, given, reporter)  # all that may be refused is above
        world.once(lambda: begin_anew(run, reporter, restart=restart) if resumed is None else None)
        split = world.once(lambda: find_and_split(run, volumes, reporter))
        if early := EarlyStop.of(settings, learner.targets):
            early.require(validates=len(split.val) > 0)
        # The weights are used to these intensities.
        if source is not None and source.state["in_channels"] == first.channels:
            normalization = Normalization.from_dict(source.state["normalization"])
        else:
            normalization = world.once(
                lambda: fit_normalization(task, volumes, split.train_regions)
            )
        continued = resumed or (None if settings.load_weights_only else given)
        saved = continued.state.get("class_counts", {}) if continued is not None else {}
        counts = world.once(
            lambda: count_or_recall(task, volumes, split.train_regions, saved, reporter)
        )
        learner.targets |= weighted_targets(task, counts, reporter)
        if world.is_first:
            run.write_task()
            run.begin(session(task, learner))
        if compile_pays(learner):
            learner.compile(reporter.say)

        facts = lasting_facts(task, first, learner) | {
            "normalization": normalization.to_dict(),
            "split": split.to_dict(),
            "class_counts": counts,
        }
        feed = Feed(*datasets(task, volumes, split, normalization), task, device, world)
        if continued is not None and continued.state["split"] == facts["split"]:
            feed.restore(continued.state)
        with ExitStack() as shown:
            board = Board([], reporter.say)
            if world.is_first:
                board = shown.enter_context(open_board(task, learner.step, reporter.say))
                cut_json_lines(run.log, learner.step)
            loop = Loop(learner, counters, feed, run, board, stop, reporter, facts, deadline)
            return loop.train()


def completion(task: Task, resumed: Checkpoint) -> str | None:
    """In words, why the run of a checkpoint has ended for good; None if it goes on."""
    settings, counters = task.tr_params, Counters(**resumed.state["counters"])
    if counters.epoch >= settings.max_epoch:
        return f"{settings.max_epoch} epochs"
    early = EarlyStop.of(settings, task.dataset_config.targets)
    return early.reason(counters) if early is not None and early.is_over(counters) else None


def begin_anew(run: RunFolder, reporter: Reporter, *, restart: bool) -> None:
    """Clear the folder for a new run: with `restart` of an earlier one, which is moved aside."""
    if restart and (aside := run.move_aside()) is not None:
        reporter.say(f"moved the earlier run to {aside}")
    # A split that nothing was trained with binds nobody.
    (run.path / "splits.json").unlink(missing_ok=True)


def find_and_split(run: RunFolder, volumes: list[TaskVolume], reporter: Reporter) -> Split:
    """The patches of the task, divided into those to train on and those to validate with."""
    task = run.task
    patches = load_or_find_patches(task, volumes, reporter)
    run.keep_patches(lambda: document(patches, fingerprint(task, volumes), volumes))
    split = load_or_split(task, volumes, patches, reporter)
    reporter.say(f"{len(split.train)} training and {len(split.val)} validation patches")
    return split


def session(task: Task, learner: Learner) -> dict[str, Any]:
    """What `environment.json` says of a training that starts now."""
    best = vars(best_watch(task.tr_params, learner.targets))
    here = {"from_step": learner.step, "best": best, "metrics": main_metrics(task)}
    return here | environment() | versions(learner)


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


def refuse_too_large(
    task: Task, volumes: list[TaskVolume], device: torch.device, world: World
) -> None:
    """Compare what a step is estimated to need with what the device has, before allocating it.

    Raises:
        TaskError: it cannot fit, or there are more processes than samples in a step.
    """
    settings, samples = task.tr_params, draws_of_step(task)
    if samples < world.size:
        raise TaskError(
            "tr_params.batch_size",
            f"a step has {samples} samples, for {world.size} processes",
            "make batch_size or gradient_accumulation larger, or start fewer processes",
        )
    require_pairs(settings.mixup, min(settings.batch_size, samples // world.size))
    first = volumes[0]
    memory = task.model.estimate(first.channels, task.heads, settings.patch_size, first.spacing)
    batch = min(settings.batch_size, math.ceil(samples / world.size))
    value = 4 if choose_amp(settings.amp, device) is None else 2
    needed, there = memory.step_bytes(batch, value), memory_bytes(device)
    if needed > ESTIMATE_SLACK * there:
        raise TaskError(
            "tr_params.batch_size",
            f"a step needs about {needed / 2**30:,.0f} GiB, the {device.type} has "
            f"{there / 2**30:,.0f} GiB",
            "make batch_size, patch_size or f_maps smaller",
        )


def datasets(
    task: Task, volumes: list[TaskVolume], split: Split, normalization: Normalization
) -> tuple[PatchDataset, PatchDataset | None]:
    """The training patches, and as many validation patches as one validation looks at."""
    settings = task.tr_params
    training = PatchDataset(
        task,
        volumes,
        split.train,
        split.train_regions,
        normalization,
        seed=settings.seed,
        augment=True,
    )
    if not len(split.val):
        return training, None
    wanted = min(settings.max_val_steps_per_epoch * settings.batch_size, len(split.val))
    rows = split.val[np.linspace(0, len(split.val) - 1, wanted).astype(np.int64)]
    validation = PatchDataset(
        task, volumes, rows, split.val_regions, normalization, seed=settings.seed, augment=False
    )
    return training, validation


def given_checkpoint(task: Task) -> Checkpoint | None:
    """The file that `checkpoint_path` names, if it does.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = task.tr_params.checkpoint_path
    return None if path is None else load_checkpoint(Path(expand_location(path)))


def start(
    learner: Learner, resumed: Checkpoint | None, given: Checkpoint | None, reporter: Reporter
) -> Counters:
    """Load the state to start from: this run's last, else the given checkpoint, else none.

    Raises:
        CheckpointError: the checkpoint does not fit the network.
        TaskError: it was trained with other optimiser or epochs, or as long as this run shall last.
    """
    wanted = learner.settings.load_weights_only
    if given is not None and wanted:
        path, partial = str(given.path), wanted == "partial"
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
    before, now = resumed.state["versions"], versions(learner)
    changed = [
        f"{name} {value} instead of {before.get(name)}"
        for name, value in now.items()
        if value != before.get(name)
    ]
    if changed:
        reporter.say(f"{', '.join(changed)}: may no longer be bit-identical")
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
