"""One training, told from top to bottom."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vcmodels.config import Task
from vcmodels.data.normalization import Normalization, fit_normalization
from vcmodels.data.volumes import TaskVolume, report_missing
from vcmodels.devices import choose_amp, choose_device, memory_bytes
from vcmodels.errors import TaskError
from vcmodels.patches.cache import document, fingerprint, load_or_find_patches
from vcmodels.patches.folds import fold_volumes
from vcmodels.patches.sizes import open_planned
from vcmodels.patches.split import Split, load_or_split
from vcmodels.reporting import Reporter, StopSignals
from vcmodels.samples.dataset import PatchDataset
from vcmodels.samples.order import draws_of_step
from vcmodels.training.curves import Board, cut_json_lines, open_board, require_wandb
from vcmodels.training.feed import Feed, count_or_recall, weighted_targets
from vcmodels.training.learner import Learner
from vcmodels.training.loop import Loop
from vcmodels.training.other_folds import begun_sibling, require_alike
from vcmodels.training.progress import EarlyStop
from vcmodels.training.run_folder import RunFolder, resolved_task
from vcmodels.training.start import (
    StartingPoint,
    compile_pays,
    completion,
    lasting_facts,
    session,
    start,
)
from vcmodels.training.step import require_pairs
from vcmodels.training.world import World, local_device


@dataclass(frozen=True)
class DataSummary:
    """Which patches there are, and the statistics of those to train on."""

    split: Split
    normalization: Normalization
    class_counts: dict[str, list[int]]
    """Voxels of each class, for the targets whose loss asks for them."""

    def facts(self) -> dict[str, Any]:
        """As they go into a checkpoint."""
        return {
            "normalization": self.normalization.to_dict(),
            "split": self.split.to_dict(),
            "class_counts": self.class_counts,
        }


def find(
    run: RunFolder, volumes: list[TaskVolume], origin: StartingPoint, reporter: Reporter
) -> DataSummary:
    """Find and divide the patches, and measure the volumes; what a checkpoint knows is taken from it.

    The run folder keeps the patches and how they are divided.

    Raises:
        RefusedError: no patch qualifies, the volumes cannot be divided, or labels do not fit.
    """
    task = run.task
    patches = load_or_find_patches(task, volumes, reporter)
    run.keep_patches(lambda: document(patches, fingerprint(task, volumes), volumes))
    split = load_or_split(task, volumes, patches, reporter)
    reporter.say(f"{len(split.train)} training and {len(split.val)} validation patches")
    source, regions = origin.source, split.train_regions
    # The weights are used to these intensities.
    if source is not None and source.state["in_channels"] == volumes[0].channels:
        normalization = Normalization.from_dict(source.state["normalization"])
    else:
        normalization = fit_normalization(task, volumes, regions)
    saved = {} if origin.continued is None else origin.continued.state.get("class_counts", {})
    counts = count_or_recall(task, volumes, regions, saved, reporter)
    return DataSummary(split, normalization, counts)


def datasets(
    task: Task, volumes: list[TaskVolume], findings: DataSummary
) -> tuple[PatchDataset, PatchDataset | None]:
    """The training patches, and as many validation patches as one validation looks at."""
    settings, split = task.tr_params, findings.split
    normalization = findings.normalization
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
    deadline = time.monotonic() + 60 * (task.tr_params.max_minutes or math.inf)
    if task.tr_params.threads:
        torch.set_num_threads(task.tr_params.threads)
    device = choose_device(local_device(task.tr_params.device), "tr_params.device")
    _ = task.tensorboard_dir, task.cache_file  # a bad path is refused here
    require_wandb(task)
    world, run = World.join(device), RunFolder(task)
    with StopSignals() as stop, ExitStack() as held, world.together():
        held.callback(world.leave)
        world.once(lambda: held.enter_context(run) and None)
        origin = StartingPoint.of(task, run, restart=restart)
        if (ended := completion(task, origin)) is not None:
            reporter.say(f"{run.path}: already complete ({ended})")
            return 0

        given = task
        task, volumes = world.once(lambda: open_volumes(given, origin, device, world, reporter))
        run.task = task
        learner = build_learner(task, volumes, device, world)
        counters = start(learner, task, origin, reporter)  # nearly all that may be refused is above
        world.require_same((learner.step, origin.source and origin.source.sha256), "the checkpoint")
        if world.is_first and origin.resumed is None:
            begin_anew(run, reporter, restart=restart)
        findings = world.once(lambda: find(run, volumes, origin, reporter))
        learner.targets |= weighted_targets(task, findings.class_counts, reporter)
        if world.is_first:
            run.write_task()
            run.begin(session(task, learner))
        if compile_pays(learner):
            learner.compile(reporter.say)

        facts = lasting_facts(task, volumes[0], learner) | findings.facts()
        feed = Feed(*datasets(task, volumes, findings), task, device, world)
        held.callback(feed.close)
        if origin.continued is not None and origin.continued.state["split"] == facts["split"]:
            feed.restore(origin.continued.state)
        # Lines of the log are of whole epochs: one that was cut off is reported once more.
        reported = counters.epoch * task.tr_params.max_steps_per_epoch
        with shown_on(task, run, learner, reported, reporter) as board:
            loop = Loop(learner, counters, feed, run, board, stop, reporter, facts, deadline)
            return loop.train()


def open_volumes(
    task: Task, origin: StartingPoint, device: torch.device, world: World, reporter: Reporter
) -> tuple[Task, list[TaskVolume]]:
    """The task with its sizes filled in, and the volumes of this run: all, or those of its fold.

    Raises:
        RefusedError: a volume does not fit the task, the task not another fold or the device.
    """
    recorded = resolved_task(origin.source) if origin.source else begun_sibling(task)
    planned, volumes = open_planned(task, reporter, recorded)
    require_alike(planned, volumes, reporter)
    folded = fold_volumes(planned, volumes, reporter)
    refuse_too_large(planned, folded, device, world)
    if early := EarlyStop.of(planned.tr_params, planned.dataset_config.targets):
        is_cut = planned.tr_params.tr_val_split < 1
        early.require(validates=is_cut or any(volume.split == "val" for volume in folded))
    report_missing(folded, reporter)
    return planned, folded


def build_learner(
    task: Task, volumes: Sequence[TaskVolume], device: torch.device, world: World
) -> Learner:
    """A learner with random weights, the same for one seed."""
    settings, first = task.tr_params, volumes[0]
    torch.manual_seed(settings.seed)
    network = task.model.build(first.channels, task.heads, settings.patch_size, first.spacing)
    total_steps = settings.max_epoch * settings.max_steps_per_epoch
    return Learner(network, task, total_steps, device, world)


def begin_anew(run: RunFolder, reporter: Reporter, *, restart: bool) -> None:
    """Clear the folder for a new run: with `restart` of an earlier one, which is moved aside."""
    if restart and (aside := run.move_aside()) is not None:
        reporter.say(f"moved the earlier run to {aside}")
    # A split that nothing was trained with binds nobody.
    (run.path / "splits.json").unlink(missing_ok=True)


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


@contextmanager
def shown_on(
    task: Task, run: RunFolder, learner: Learner, reported: int, reporter: Reporter
) -> Iterator[Board]:
    """Where the curves go; in a world of several processes only the first has any.

    What the log holds of steps after `reported` is about to be written again, and is removed.
    """
    if not learner.world.is_first:
        yield Board([], reporter.say)
        return
    cut_json_lines(run.log, reported)
    with open_board(task, learner.step, reporter.say) as board:
        yield board
