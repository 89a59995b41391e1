"""The loop over epochs and steps: learn, watch, validate, save, stop."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from vcmodels.checkpoint import save_checkpoint
from vcmodels.devices import is_out_of_memory
from vcmodels.errors import RunError
from vcmodels.reporting import Advance, Reporter, StopSignals
from vcmodels.samples.loader import Batch
from vcmodels.training.curves import Board, append_json_line
from vcmodels.training.feed import Feed
from vcmodels.training.learner import Learner
from vcmodels.training.progress import Counters, EarlyStop, Pace, best_watch, forecast
from vcmodels.training.run_folder import RunFolder
from vcmodels.training.step import PendingResult, StepResult
from vcmodels.training.validation import Validation, validate

BAD_STEPS_IN_A_ROW = 10
SAVE_EVERY_SECONDS = 300.0


@dataclass(frozen=True)
class Loop:
    """One training from wherever `learner` and `counters` stand."""

    learner: Learner
    counters: Counters
    feed: Feed
    run: RunFolder
    board: Board
    stop: StopSignals
    reporter: Reporter
    facts: Mapping[str, Any]
    """What a checkpoint holds besides the changing state: task, normalisation, split, versions."""
    deadline: float = math.inf
    """When to stop, in seconds of `time.monotonic`."""
    agreement: Event = field(default_factory=Event)
    """Set once all processes know that one of them wants to stop: at the same step in each."""
    has_forecast: Event = field(default_factory=Event)
    """Set once the pace was reported."""

    def save(self, path: Path) -> None:
        """Write the complete state; only the last and the best file keep their previous one."""
        if not self.learner.world.is_first:
            return
        keep = path in (self.run.last, self.run.best)
        # A kill after this must not lose points of the curves that nobody writes again.
        self.board.flush()
        counters = {"counters": vars(self.counters), "epoch": self.counters.epoch}
        state = {**self.learner.state(), **self.feed.state(), **counters}
        save_checkpoint(path, {**self.facts, **state}, keep_previous=keep)

    def train(self) -> int:
        """All epochs that are left; returns the exit code (0, or 128 + signal)."""
        settings = self.learner.settings
        total = settings.max_epoch * settings.max_steps_per_epoch
        with self.reporter.bar("training", total) as advance:
            advance(self.learner.step, "")
            while not self._is_over():
                pace = self._steps_of_epoch(advance)
                if not self.must_stop():
                    self._forecast(pace)
                    advance(0, "validating")
                    self._end_epoch(pace)
                if self.must_stop() and not self._is_over():
                    self.save(self.run.last)
                    why = " by max_minutes" if time.monotonic() >= self.deadline else ""
                    self.reporter.say(
                        f"stopped{why} at step {self.learner.step}, which is saved; "
                        "the same command continues"
                    )
                    return self.stop.exit_code
        ended = f"finished {self.counters.epoch} epochs"
        self.run.outcome = "complete"
        if self.early is not None and self.early.is_over(self.counters):
            ended = self.early.reason(self.counters)
        self.reporter.say(f"{ended}; best checkpoint {self.run.best}")
        return self.stop.exit_code

    @property
    def early(self) -> EarlyStop | None:
        """The rule by which the run ends before its last epoch, if it has one."""
        return EarlyStop.of(self.learner.settings, self.learner.targets)

    def _is_over(self) -> bool:
        if self.early is not None and self.early.is_over(self.counters):
            return True
        return self.counters.epoch >= self.learner.settings.max_epoch

    def must_stop(self) -> bool:
        """Whether a signal came or the time is up; with several processes, as they have agreed."""
        return self.agreement.is_set() if self.learner.world.size > 1 else self._wants_to_stop()

    def _wants_to_stop(self) -> bool:
        return self.stop.is_stopped() or time.monotonic() >= self.deadline

    def _steps_of_epoch(self, advance: Advance) -> Pace:
        """The steps that are left of the epoch; returns how fast they went.

        What a step reports is read when the next one has begun, so that the device goes on.
        """
        learner = self.learner
        steps = (self.counters.epoch + 1) * learner.settings.max_steps_per_epoch - learner.step
        saved = mark = time.perf_counter()
        pace = Pace(learner.device)
        begun: PendingResult | None = None
        if not self.stop.is_deferred:
            advance(0, "starting workers and reading the first patches")
        for micro in self.feed.train_batches(learner.step, steps):
            pace.waited += time.perf_counter() - mark
            pace.steps += 1
            if not self.stop.is_deferred:
                advance(0, "first step")
            pending = self._step(micro)
            if begun is not None:
                self._end_step(begun, pace, advance)
            begun = pending
            self.stop.defer()  # before, there is nothing to save, and the first step may compile
            if self.must_stop():
                break
            # Not at the last step: from there the end of the epoch would be reported once more.
            is_last = pace.steps == steps
            if time.perf_counter() - saved > SAVE_EVERY_SECONDS and not is_last:
                self._end_step(begun, pace, advance)
                begun = None
                self.save(self.run.last)
                saved = time.perf_counter()
            mark = time.perf_counter()
        if begun is not None:
            self._end_step(begun, pace, advance)
        pace.end_steps()
        return pace

    def _step(self, micro: list[Batch]) -> PendingResult:
        try:
            return self.learner.train_step(micro, stops=self._wants_to_stop())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            settings = self.learner.settings
            raise RunError(
                "tr_params.batch_size",
                f"out of memory with {settings.batch_size} patches of {list(settings.patch_size)}",
                "make batch_size, patch_size or f_maps smaller; gradient_accumulation makes up for it",
            ) from error

    def _end_step(self, begun: PendingResult, pace: Pace, advance: Advance) -> None:
        """Read what a step reports, count it and show it."""
        result = begun.read()
        pace.end_step()
        if result.stops:
            self.agreement.set()
        self.counters.add(result)
        self.feed.take_losses(result.step - 1, result.sample_losses)
        self._watch(result)
        shown = [f"{name} {value:.3f}" for name, value in result.losses.items()]
        advance(1, " ".join([*shown, pace.words(self.feed.draws_of_step)]))
        self.board.scalars(step_scalars(self.learner, result), result.step)
        if pace.is_settled:
            self._forecast(pace)

    def _forecast(self, pace: Pace) -> None:
        """Report once how fast the steps are and when the run will end."""
        seconds, learner = pace.step_seconds(), self.learner
        if self.has_forecast.is_set() or seconds is None or learner.step >= learner.total_steps:
            return
        self.has_forecast.set()
        left, patches = self.deadline - time.monotonic(), self.feed.draws_of_step
        self.reporter.say(forecast(learner.step, seconds, patches, learner.settings, left))

    def _watch(self, result: StepResult) -> None:
        """Say which patches made a step that was not finite; give up after too many in a row."""
        if result.is_applied:
            self.counters.bad_steps = 0
        if result.is_applied or result.is_overflow:
            return
        self.counters.bad_steps += 1
        places = "; ".join(map(str, self.feed.places(result.step - 1)))
        found = f"loss or gradient not finite on {places}"
        if self.counters.bad_steps >= BAD_STEPS_IN_A_ROW:
            raise RunError(
                f"step {result.step}",
                f"{found}, {self.counters.bad_steps} steps in a row",
                "look at the labels there, lower initial_lr, or set amp to off",
            )
        self.reporter.say(f"step {result.step} skipped: {found}")

    def _end_epoch(self, pace: Pace) -> None:
        """Validate, report, save; after a stop on the way the epoch has not ended."""
        found = validate(self.learner, self.feed.validation_batches(), self.must_stop)
        if self.must_stop():
            return
        losses = self.counters.end_epoch(self.learner.targets)
        self.feed.end_epoch()
        settings, scalars = self.learner.settings, epoch_scalars(losses, found)
        cost = best_watch(settings, self.learner.targets).cost(scalars)
        # As long as the curve has no value, the newest is the best.
        is_best = cost < self.counters.best or math.isinf(self.counters.best)
        self.counters.best = min(self.counters.best, cost)
        if self.early is not None:
            self.early.see(self.counters, scalars)
        if self.learner.world.is_first:
            self._report(losses, scalars, found, pace)
        is_kept = self.counters.epoch % settings.save_every == 0
        if is_best:
            self.save(self.run.best)
        if is_kept and self.learner.world.is_first:
            self._save_numbered(self.counters.epoch)
        # Last: a run that is killed before repeats the end of this epoch, the other files included.
        self.save(self.run.last)
        if is_kept and self.learner.world.is_first:
            self.run.keep_only(settings.keep_checkpoints)

    def _save_numbered(self, epoch: int) -> None:
        """Keep the epoch under its number, unless somebody else has put a file there."""
        path = self.run.numbered(epoch)
        if self.run.claim(epoch):
            self.save(path)
        else:
            self.reporter.say(f"{path} is not of this run, and stays: epoch {epoch} is not kept")

    def _report(
        self,
        losses: Mapping[str, float],
        scalars: Mapping[str, float],
        found: Validation,
        pace: Pace,
    ) -> None:
        """One line for people, one for programs, and the curves of an epoch."""
        step, epoch = self.learner.step, self.counters.epoch
        speed = pace.scalars(self.feed.draws_of_step)
        scalars = {**scalars, **speed, "epoch": float(epoch)}
        self.board.scalars(scalars, step)
        self.board.pictures({f"images/{name}": p for name, p in found.panels.items()}, step)
        self.board.flush()
        finite = {key: value for key, value in scalars.items() if math.isfinite(value)}
        try:
            append_json_line(self.run.log, {"step": step, **finite})
        except OSError as error:  # a full disk, say: a line is no reason to lose the run
            self.reporter.say(f"{self.run.log}: {error.strerror}; this epoch is not in it")
        shown = [f"{name} {value:.4f}" for name, value in losses.items()]
        for name, values in found.metrics.items():
            metric = self.learner.targets[name].metric
            shown.append(f"val {name} {metric} {values[metric]:.4f}")
        self.reporter.say(f"epoch {epoch}/{self.learner.settings.max_epoch}: " + ", ".join(shown))


def step_scalars(learner: Learner, result: StepResult) -> dict[str, float]:
    """The curves that get a point at each step."""
    total = sum(learner.targets[name].weight * value for name, value in result.losses.items())
    per_target = {f"train/loss_{name}": value for name, value in result.losses.items()}
    if learner.settings.loss_balance != "fixed":
        per_target |= {f"train/balance_{name}": f for name, f in result.factors.items()}
    return {
        "train/loss": total,
        **per_target,
        "train/gradient_norm": result.gradient_norm,
        "lr": result.rate,
    }


def epoch_scalars(losses: Mapping[str, float], found: Validation) -> dict[str, float]:
    """The curves that get a point at each epoch: mean training losses, validation, metrics."""
    scalars = {f"epoch/train_loss_{name}": value for name, value in losses.items()}
    scalars |= {f"val/loss_{name}": value for name, value in found.losses.items()}
    for name, values in found.metrics.items():
        scalars |= {f"val/{metric}_{name}": value for metric, value in values.items()}
    return scalars | ({"val/loss": found.loss} if found.losses else {})
