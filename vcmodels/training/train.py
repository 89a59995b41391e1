"""One training, told from top to bottom."""

import math
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vcmodels
from vcmodels.checkpoint import SCHEMA, Checkpoint, load_checkpoint, save_checkpoint
from vcmodels.config import Task
from vcmodels.data.dataset import PatchDataset
from vcmodels.data.loader import Batch, batches, finish_batch
from vcmodels.data.normalization import Normalization, fit_normalization
from vcmodels.data.patch_cache import load_or_find_patches
from vcmodels.data.split import Split, load_or_split
from vcmodels.data.volumes import TaskVolume, open_volumes
from vcmodels.devices import choose_device
from vcmodels.errors import RunError
from vcmodels.reporting import Advance, Reporter
from vcmodels.training.board import Board, append_json_line
from vcmodels.training.learner import Learner, StepResult
from vcmodels.training.run_folder import RunFolder
from vcmodels.training.stopping import StopSignals
from vcmodels.training.validation import Validation, validate

BAD_STEPS_IN_A_ROW = 10
SAVE_EVERY_SECONDS = 300.0
COMPILE_REPAYS_AFTER_STEPS = 300
"""Compiling costs about a minute; it saves around half of a step of some tenths of a second."""


@dataclass
class Counters:
    """Where a run stands, besides the learner's own state. All of it goes into the checkpoint."""

    epoch: int = 0
    best: float = math.inf
    bad_steps: int = 0
    loss_sums: dict[str, float] = field(default_factory=dict)
    loss_counts: dict[str, int] = field(default_factory=dict)

    def add(self, result: StepResult) -> None:
        """Count the losses of a step towards the epoch's means."""
        for name, value in result.losses.items():
            if math.isfinite(value):
                self.loss_sums[name] = self.loss_sums.get(name, 0.0) + value
                self.loss_counts[name] = self.loss_counts.get(name, 0) + 1

    def end_epoch(self, targets: Mapping[str, object]) -> dict[str, float]:
        """The mean training loss per target; the sums start anew.

        Raises:
            RunError: a target had no valid voxel in the whole epoch: its head learns nothing.
        """
        for name in targets:
            if not self.loss_counts.get(name):
                raise RunError(
                    f"dataset_config.targets.{name}",
                    f"not one valid label voxel in epoch {self.epoch + 1}",
                    "check ignore_label, loss_only_on_label and the label volumes, or remove the target",
                )
        means = {name: self.loss_sums[name] / self.loss_counts[name] for name in targets}
        self.loss_sums, self.loss_counts = {}, {}
        self.epoch += 1
        return means


@dataclass(frozen=True)
class Feed:
    """The two streams of batches."""

    training: PatchDataset
    validation: PatchDataset | None
    task: Task
    device: torch.device

    def train_batches(self, first_step: int, steps: int) -> Iterator[list[Batch]]:
        """The micro-batches of `steps` optimiser steps from `first_step` on: one list a step."""
        settings = self.task.tr_params
        per_step = settings.batch_size * settings.gradient_accumulation
        micro: list[Batch] = []
        for samples in batches(
            self.training,
            batch_size=settings.batch_size,
            first_draw=first_step * per_step,
            draws=steps * per_step,
            workers=settings.num_dataloader_workers,
        ):
            micro.append(self._finish(samples))
            if len(micro) == settings.gradient_accumulation:
                yield micro
                micro = []

    def validation_batches(self) -> Iterator[Batch]:
        """The same patches in the same order every time, spread over all of them if they are many."""
        if self.validation is None:
            return
        settings = self.task.tr_params
        draws = min(len(self.validation), settings.max_val_steps_per_epoch * settings.batch_size)
        for samples in batches(
            self.validation,
            batch_size=settings.batch_size,
            first_draw=0,
            draws=draws,
            workers=settings.num_dataloader_workers,
        ):
            yield self._finish(samples)

    def _finish(self, samples: list[Any]) -> Batch:
        return finish_batch(
            samples, self.training.targets, self.training.patch, self.training.spacing, self.device
        )


def train(task: Task, *, restart: bool = False, reporter: Reporter) -> int:
    """Train until `max_epoch`, `max_minutes` or a signal, continuing the run that the folder holds.

    Args:
        task: the resolved task.
        restart: move an earlier run aside and begin anew.
        reporter: where lines and progress bars go.

    Returns:
        The exit code: 0 when finished, 128 + signal when stopped by one (the state is saved).

    Raises:
        RefusedError: the task, a volume or the run folder does not allow it; nothing was changed.
        RunError: a failure on the way; the last checkpoint is whole and the same command resumes.
    """
    settings = task.tr_params
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = choose_device(settings.device, "tr_params.device")
    with StopSignals() as stop, RunFolder(task) as run:
        if restart and (aside := run.move_aside()) is not None:
            reporter.say(f"moved the earlier run to {aside}")
        resumed = run.newest_checkpoint()
        if resumed is not None and resumed.state["epoch"] >= settings.max_epoch:
            reporter.say(f"{run.path}: already complete ({settings.max_epoch} epochs)")
            return 0
        volumes = open_volumes(task)
        patches = load_or_find_patches(task, volumes, reporter)
        split = load_or_split(task, volumes, patches)
        reporter.say(f"{len(split.train)} training and {len(split.val)} validation patches")
        normalization = _normalization(task, volumes, split, resumed)
        run.write_task()

        feed = _feed(task, volumes, split, normalization, device)
        steps_per_epoch = settings.max_steps_per_epoch
        heads = {name: target.channels for name, target in task.dataset_config.targets.items()}
        torch.manual_seed(settings.seed)
        in_channels = sum(volume.channels for volume in volumes[0].inputs)
        spacing = volumes[0].spacing
        network = task.model.build(in_channels, heads, settings.patch_size, spacing)
        learner = Learner(network, task, settings.max_epoch * steps_per_epoch, device)
        counters = _start(learner, task, resumed, reporter)
        if _compile_pays(task, learner):
            learner.compile(reporter.say)

        fixed = {
            "schema": SCHEMA,
            "task": task.to_json(),
            "heads": heads,
            "in_channels": in_channels,
            "patch_size": list(settings.patch_size),
            "spacing": list(spacing),
            "normalization": normalization.to_dict(),
            "split": split.to_dict(),
            "versions": versions(),
        }
        board = Board(_board_folder(task, run), learner.step, reporter.say)
        stop.defer()
        try:
            return _epochs(learner, counters, feed, run, board, fixed, stop, reporter)
        finally:
            board.close()


def _feed(
    task: Task,
    volumes: list[TaskVolume],
    split: Split,
    normalization: Normalization,
    device: torch.device,
) -> Feed:
    seed = task.tr_params.seed
    training = PatchDataset(
        task, volumes, split.train, split.train_regions, normalization, seed=seed, augment=True
    )
    validation = None
    if len(split.val):
        settings = task.tr_params
        wanted = settings.max_val_steps_per_epoch * settings.batch_size
        rows = split.val[
            np.linspace(0, len(split.val) - 1, min(wanted, len(split.val))).astype(int)
        ]
        validation = PatchDataset(
            task, volumes, rows, split.val_regions, normalization, seed=seed, augment=False
        )
    return Feed(training, validation, task, device)


def _normalization(
    task: Task, volumes: list[TaskVolume], split: Split, resumed: Checkpoint | None
) -> Normalization:
    if resumed is not None:
        return Normalization.from_dict(resumed.state["normalization"])
    return fit_normalization(task, volumes, split.train_regions)


def _start(
    learner: Learner, task: Task, resumed: Checkpoint | None, reporter: Reporter
) -> Counters:
    """Load the state to start from: this run's last, else `checkpoint_path`, else none."""
    settings = task.tr_params
    weights_only = False
    if resumed is None and settings.checkpoint_path is not None:
        resumed, weights_only = (
            load_checkpoint(Path(settings.checkpoint_path)),
            settings.load_weights_only,
        )
    if resumed is None:
        return Counters()
    learner.restore(resumed.state, str(resumed.path), weights_only=weights_only)
    if weights_only:
        reporter.say(f"starting from the weights of {resumed.path}")
        return Counters()
    counters = Counters(**resumed.state["counters"])
    reporter.say(f"continuing {resumed.path} at epoch {counters.epoch + 1}, step {learner.step}")
    threads = resumed.state["versions"]["threads"]
    if threads != torch.get_num_threads():
        reporter.say(
            f"with {torch.get_num_threads()} threads instead of {threads}: no longer bit-identical"
        )
    return counters


def _compile_pays(task: Task, learner: Learner) -> bool:
    wanted = task.tr_params.compile
    if wanted != "auto":
        return wanted
    return learner.total_steps - learner.step >= COMPILE_REPAYS_AFTER_STEPS


def _board_folder(task: Task, run: RunFolder) -> Path:
    wanted = task.tr_params.tensorboard_log_dir
    return Path(wanted) if wanted else run.path / "tensorboard"


def _epochs(
    learner: Learner,
    counters: Counters,
    feed: Feed,
    run: RunFolder,
    board: Board,
    fixed: Mapping[str, Any],
    stop: StopSignals,
    reporter: Reporter,
) -> int:
    """All epochs that are left."""
    settings = learner.settings
    started = time.monotonic()

    def save(path: Path) -> None:
        save_checkpoint(
            path, fixed | learner.state() | {"counters": vars(counters), "epoch": counters.epoch}
        )

    with reporter.bar("training", settings.max_epoch * settings.max_steps_per_epoch) as advance:
        advance(learner.step, "")
        while counters.epoch < settings.max_epoch:
            waited = _one_epoch(learner, counters, feed, board, stop, save, run, advance)
            if stop.received is not None:
                save(run.last)
                reporter.say(f"stopped at step {learner.step}; the same command continues")
                return stop.exit_code
            losses = counters.end_epoch(learner.targets)
            found = validate(learner, feed.validation_batches())
            is_best = feed.validation is None or found.loss < counters.best
            counters.best = min(counters.best, found.loss) if feed.validation else counters.best
            _report(learner, counters, losses, found, waited, run, board, reporter)
            save(run.last)
            if is_best:
                save(run.best)
            if counters.epoch % settings.save_every == 0:
                save(run.numbered(counters.epoch))
                run.keep_only(settings.keep_checkpoints)
            minutes = (time.monotonic() - started) / 60
            if settings.max_minutes is not None and minutes >= settings.max_minutes:
                reporter.say(f"stopped after {minutes:.1f} minutes; the same command continues")
                return 0
    reporter.say(f"finished {counters.epoch} epochs; best checkpoint {run.best}")
    return 0


def _one_epoch(
    learner: Learner,
    counters: Counters,
    feed: Feed,
    board: Board,
    stop: StopSignals,
    save: Any,
    run: RunFolder,
    advance: Advance,
) -> float:
    """The steps that are left of the current epoch; returns the share of time spent waiting for data."""
    steps = (counters.epoch + 1) * learner.settings.max_steps_per_epoch - learner.step
    started = saved = mark = time.perf_counter()
    waited = 0.0
    for micro in feed.train_batches(learner.step, steps):
        waited += time.perf_counter() - mark
        result = learner.train_step(micro)
        counters.add(result)
        _watch(result, counters, micro, learner.step)
        advance(1, " ".join(f"{name} {value:.3f}" for name, value in result.losses.items()))
        board.scalars(step_scalars(learner, result), learner.step)
        mark = time.perf_counter()
        if stop.received is not None:
            break
        if mark - saved > SAVE_EVERY_SECONDS:
            save(run.last)
            saved = mark = time.perf_counter()
    return waited / max(time.perf_counter() - started, 1e-9)


def step_scalars(learner: Learner, result: StepResult) -> dict[str, float]:
    """The curves that get a point at each step."""
    total = sum(learner.targets[name].weight * value for name, value in result.losses.items())
    per_target = {f"train/loss_{name}": value for name, value in result.losses.items()}
    return {
        "train/loss": total, **per_target, "lr": result.rate, "train/gradient_norm": result.gradient_norm,
    }  # fmt: skip


def _watch(result: StepResult, counters: Counters, micro: list[Batch], step: int) -> None:
    """Count steps that were skipped because they were not finite; give up after too many in a row."""
    if result.is_applied:
        counters.bad_steps = 0
        return
    counters.bad_steps += 1
    if counters.bad_steps >= BAD_STEPS_IN_A_ROW:
        places = "; ".join(str(place) for batch in micro for place in batch.places)
        raise RunError(
            f"step {step}",
            f"{counters.bad_steps} steps in a row without a finite loss, the last on patches {places}",
            "look at the labels there, lower initial_lr, or set amp to off",
        )


def _report(
    learner: Learner,
    counters: Counters,
    losses: Mapping[str, float],
    found: Validation,
    waited: float,
    run: RunFolder,
    board: Board,
    reporter: Reporter,
) -> None:
    """One line for people, one for programs, and the curves of an epoch."""
    step = learner.step
    metrics = {
        f"val/{metric}_{name}": value
        for name, values in found.metrics.items()
        for metric, value in values.items()
    }
    scalars = {
        **{f"epoch/train_loss_{name}": value for name, value in losses.items()},
        **{f"val/loss_{name}": value for name, value in found.losses.items()},
        **metrics,
        "epoch": float(counters.epoch),
        "data_wait": waited,
    }
    if found.losses:
        scalars["val/loss"] = found.loss
    board.scalars(scalars, step)
    board.pictures({f"images/{name}": panel for name, panel in found.panels.items()}, step)
    board.flush()
    finite = {key: value for key, value in scalars.items() if math.isfinite(value)}
    append_json_line(run.path / "log.jsonl", {"step": step, **finite})
    shown = [f"{name} {value:.4f}" for name, value in losses.items()]
    for name, values in found.metrics.items():
        metric = learner.targets[name].metric
        shown.append(f"val {name} {metric} {values[metric]:.4f}")
    reporter.say(f"epoch {counters.epoch}/{learner.settings.max_epoch}: " + ", ".join(shown))


def versions() -> dict[str, str | int]:
    """What the numbers of a run depend on, besides the task."""
    return {
        "vcmodels": vcmodels.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
