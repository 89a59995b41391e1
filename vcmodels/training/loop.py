"""The loop over epochs and steps: learn, watch, validate, save, stop."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from vcmodels.boards import Board
from vcmodels.checkpoint import calibration_of, load_checkpoint, save_checkpoint
from vcmodels.config.task import OF_VOLUMES
from vcmodels.devices import is_out_of_memory
from vcmodels.errors import RunError
from vcmodels.metrics.calibration import Calibration
from vcmodels.reporting import Advance, Reporter, StopSignals, duration
from vcmodels.training.curves import append_json_line
from vcmodels.training.feed import Feed
from vcmodels.training.learner import Learner
from vcmodels.training.progress import (
    Counters,
    EarlyStop,
    Pace,
    Watch,
    best_watch,
    forecast,
    smaller_steps,
    watched,
)
from vcmodels.training.run_folder import RunFolder
from vcmodels.training.step import PendingResult, StepResult
from vcmodels.training.validation import Validation, VolumeValidation, validate

BAD_STEPS_IN_A_ROW = 10
SAVE_EVERY_SECONDS = 300.0
VALIDATION_SHARE = 0.5
"""Time of a batch of a validation as a share of that of a step: it has no backward pass, and is not compiled."""


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
    volumes: VolumeValidation | None = None
    """Validates whole volumes, if the task asks for it."""
    deadline: float = math.inf
    """When to stop, in seconds of `time.monotonic`."""
    agreement: Event = field(default_factory=Event)
    """Set once all processes know that one of them wants to stop: at the same step in each."""
    is_closing: Event = field(default_factory=Event)
    """Set once the time that is left is what a last validation takes."""
    has_forecast: Event = field(default_factory=Event)
    """Set once the pace was reported."""
    has_advanced: Event = field(default_factory=Event)
    """Set once a step or an epoch has ended here: before, the deadline does not count, so that each
    start gets on, even if its time is over when the network is compiled."""

    def save(self, path: Path, calibration: Mapping[str, Calibration] | None = None) -> None:
        """Write the complete state; only the last and the best file keep their previous one.

        Args:
            path: of the checkpoint.
            calibration: of these very weights; none in the middle of an epoch.
        """
        if not self.learner.world.is_first:
            return
        keep = path in (self.run.last, self.run.best)
        # A kill after this must not lose points of the curves that nobody writes again.
        self.board.flush()
        counters = {"counters": vars(self.counters), "epoch": self.counters.epoch}
        state = {**self.learner.state(), **self.feed.state(), **counters}
        save_checkpoint(
            path, {**self.facts, **state, **calibrated(calibration or {})}, keep_previous=keep
        )

    def train(self) -> int:
        """All epochs that are left; returns the exit code (0, or 128 + signal)."""
        settings = self.learner.settings
        total, first = settings.max_epoch * settings.max_steps_per_epoch, self.learner.step
        with self.reporter.bar("training", total) as advance:
            advance(self.learner.step, "")
            while not self._is_over():
                with self._memory_named():
                    pace = self._steps_of_epoch(advance)
                if is_saved := not self.must_stop():
                    self._forecast(pace)
                    advance(0, "validating")
                    self._end_epoch(pace)
                if self.must_stop() and not self._is_over():
                    if not is_saved:
                        self.save(self.run.last)
                        self._validate_unfinished()
                    self._say_stopped(self.learner.step - first)
                    return self.stop.exit_code
        ended = f"finished {self.counters.epoch} epochs"
        self.run.outcome = "complete"
        if self.early is not None and self.early.is_over(self.counters):
            ended = self.early.reason(self.counters)
        self.reporter.say(f"{ended}; best checkpoint {self.run.best}")
        if self.learner.world.is_first and self.run.best.exists():
            self._say_calibration()
        return self.stop.exit_code

    def _say_calibration(self) -> None:
        """Say what the temperatures of the best checkpoint do, if it has any."""
        for name, found in calibration_of(load_checkpoint(self.run.best)).items():
            self.reporter.say(f"{name}: {found}")

    def _say_stopped(self, steps: int) -> None:
        """Say why the training stops, after so many steps of this start."""
        is_late = self._is_late()
        if is_late and steps <= 1 and not self.stop.is_stopped():
            done = "one step" if steps else "the validation that was due"
            self.reporter.say(
                f"note: max_minutes counts from the start of the command, compiling included; there "
                f"was time for {done}: raise it"
            )
        why = " by max_minutes" if is_late else ""
        at = f"step {self.learner.step}, which is saved"
        self.reporter.say(f"stopped{why} at {at}; the same command continues")

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
        return self._is_late() or self.stop.is_stopped()

    def _is_late(self) -> bool:
        """Whether `max_minutes` are over, or what is left of them is for the last validation."""
        is_late = self.is_closing.is_set() or time.monotonic() >= self.deadline
        return self.has_advanced.is_set() and is_late

    def _close_in_time(self, pace: Pace) -> None:
        """Let the steps end when what is left is about what a validation takes."""
        seconds = pace.step_seconds()
        if seconds is None or self.deadline == math.inf:
            return
        needed = VALIDATION_SHARE * seconds * self.feed.validation_steps
        if time.monotonic() + needed >= self.deadline:
            self.is_closing.set()

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
            pending = self.learner.train_step(micro, stops=self._wants_to_stop())
            if begun is not None:
                self._end_step(begun, pace, advance)
            begun = pending
            self.has_advanced.set()
            self.stop.defer()  # before, there is nothing to save, and the first step may compile
            self._close_in_time(pace)
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

    @contextmanager
    def _memory_named(self) -> Iterator[None]:
        """Say in one line that the steps do not fit into memory, and with which sizes they may.

        Raises:
            RunError: they do not.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            settings, is_saved = self.learner.settings, self.run.last.exists()
            patches = f"{settings.batch_size} patches of {list(settings.patch_size)}"
            raise RunError(
                "tr_params.batch_size",
                f"out of memory with {patches}",
                smaller_steps(settings, is_saved=is_saved),
            ) from error

    def _validate_unfinished(self) -> None:
        """Let the weights with which the time ends be the best, if they are.

        What the run goes on from knows nothing of it: it becomes what it would be without the stop.
        """
        world = self.learner.world
        if not world.once(lambda: self._is_late() and not self.stop.is_stopped()):
            return
        # Of several processes none may leave alone.
        is_stopped = self.stop.is_stopped if world.size == 1 else lambda: False
        found = self._validate(is_stopped)
        if found is None:
            return
        watch = best_watch(self.learner.settings, self.learner.targets)
        cost = watch.cost(epoch_scalars({}, found))
        if cost < self.counters.best or math.isinf(self.counters.best):
            self.save(self.run.best, found.calibration)
            shown = ", ".join(["the best so far", *self._shown(found)])
            self.reporter.say(f"validated at step {self.learner.step}: {shown}")

    def _validate(self, must_stop: Callable[[], bool]) -> Validation | None:
        """The figures of the network as it is; None after a stop on the way.

        Raises:
            RunError: not one patch fits into memory.
        """
        feed, is_cut = self.feed, Event()

        def is_stopped() -> bool:
            if must_stop():
                is_cut.set()
            return is_cut.is_set()

        while True:
            size = feed.validation_batch
            # For a start that finds this process killed in here, by the system say.
            self._note_batch(max(1, size // 2))
            try:
                found = validate(self.learner, feed.validation_batches(), is_stopped)
                return None if is_cut.is_set() else found
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise no_room_to_validate(self.learner) from error
            finally:
                self._note_batch(size)
            # Not above: what did not fit is held by the error.
            feed.validation_batch = size // 2
            self.reporter.say(
                f"the validation ran out of memory with batches of {size} patches: goes on with "
                f"{size // 2}"
            )

    def _validate_volumes(
        self, calibration: Mapping[str, Calibration]
    ) -> Mapping[str, float] | None:
        """The figures of whole volumes, {} in epochs without; None after a stop on the way.

        The first process predicts, with a copy of the network; the others wait for it.
        """
        settings, world = self.learner.settings, self.learner.world
        volumes, begun = self.volumes, time.perf_counter()
        if volumes is None or not settings.validation.is_due(self.counters.epoch + 1):
            return {}
        state = {**self.facts, **best_weights(self.learner), **calibrated(calibration)}
        found = world.once(lambda: volumes(state, self._wants_to_stop))
        if found is None:
            self.agreement.set()
            return None
        self._say_volumes(found, time.perf_counter() - begun)
        return found

    def _say_volumes(self, found: Mapping[str, float], seconds: float) -> None:
        """Report the figures by which whole volumes are judged, and how long that took."""
        settings, targets = self.learner.settings, self.learner.targets
        curves = [f"{OF_VOLUMES}{target.metric}_{name}" for name, target in targets.items()]
        curves += [watch.curve for watch in watched(settings, targets).values()]
        shown = [f"{curve} {found[curve]:.4f}" for curve in dict.fromkeys(curves) if curve in found]
        self.reporter.say(f"validated whole volumes in {duration(seconds)}: {', '.join(shown)}")

    def _has_point(self, watch: Watch) -> bool:
        """Whether a curve can have a value in the epoch that has just ended."""
        is_due = self.learner.settings.validation.is_due(self.counters.epoch)
        return is_due or not watch.is_of_volumes

    def _note_batch(self, size: int) -> None:
        """Record how many patches at a time a next start is to validate with."""
        if self.learner.world.is_first:
            self.run.note_validation(size if size < self.learner.settings.batch_size else None)

    def _end_step(self, begun: PendingResult, pace: Pace, advance: Advance) -> None:
        """Read what a step reports, count it and show it."""
        result = begun.read()
        pace.end_step()
        if result.stops:
            self.agreement.set()
        self.counters.add(result)
        self.feed.take_losses(result.step - 1, result.sample_losses)
        self._watch(result)
        told = [*result.losses.items(), *result.taught.items()]
        shown = [f"{name} {value:.3f}" for name, value in told]
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
                "look at the labels there, or lower initial_lr or set amp to off, and --restart",
            )
        self.reporter.say(f"step {result.step} skipped: {found}")

    def _end_epoch(self, pace: Pace) -> None:
        """Validate, report, save; after a stop on the way the epoch has not ended."""
        self.counters.require_all(self.learner.targets)
        if pace.steps:  # whatever becomes of the validation; a start without any goes on from there
            self.save(self.run.last)
        found = self._validate(self.must_stop)
        of_volumes = None if found is None else self._validate_volumes(found.calibration)
        if found is None or of_volumes is None:
            return
        self.has_advanced.set()
        losses = self.counters.end_epoch(self.learner.targets)
        self.feed.end_epoch()
        settings, scalars = self.learner.settings, {**epoch_scalars(losses, found), **of_volumes}
        cost = best_watch(settings, self.learner.targets).cost(scalars)
        # As long as the curve has no value, the newest is the best.
        is_best = cost < self.counters.best or math.isinf(self.counters.best)
        self.counters.best = min(self.counters.best, cost)
        if self.early is not None and self._has_point(self.early.watch):
            self.early.see(self.counters, scalars)
        if self.learner.world.is_first:
            self._report(losses, scalars, found, pace)
            self._say_valueless(scalars)
        is_kept = self.counters.epoch % settings.save_every == 0
        if is_best:
            self.save(self.run.best, found.calibration)
        if is_kept and self.learner.world.is_first:
            self._save_numbered(self.counters.epoch, found.calibration)
        # Last: a run that is killed before repeats the end of this epoch, the other files included.
        self.save(self.run.last, found.calibration)
        if is_kept and self.learner.world.is_first:
            self.run.keep_only(settings.keep_checkpoints, settings.keep_unscored)

    def _say_valueless(self, scalars: Mapping[str, float]) -> None:
        """Say which of the curves that matter has no value in this epoch."""
        settings, targets = self.learner.settings, self.learner.targets
        for watch in set(watched(settings, targets).values()):
            is_expected = self.feed.validation is not None and self._has_point(watch)
            if is_expected and math.isinf(watch.cost(scalars)):
                found = f"note: {watch.curve} has no value in epoch {self.counters.epoch}"
                if self.early is not None and watch == self.early.watch:
                    stale, patience = self.counters.stale_epochs, self.early.patience
                    found += f", which counts as no improvement ({stale} of {patience})"
                self.reporter.say(found)

    def _save_numbered(self, epoch: int, calibration: Mapping[str, Calibration]) -> None:
        """Keep the epoch under its number, unless somebody else has put a file there."""
        path = self.run.numbered(epoch)
        if self.run.claim(epoch):
            self.save(path, calibration)
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
        shown += self._shown(found)
        self.reporter.say(f"epoch {epoch}/{self.learner.settings.max_epoch}: " + ", ".join(shown))

    def _shown(self, found: Validation) -> list[str]:
        """The main metric of each target, in words."""
        metrics = {name: self.learner.targets[name].metric for name in found.metrics}
        return [f"val {n} {metric} {found.metrics[n][metric]:.4f}" for n, metric in metrics.items()]


def best_weights(learner: Learner) -> dict[str, Any]:
    """The weights that are validated, as the part of a checkpoint that holds them."""
    return {"model": learner.best_network.state_dict(), "ema": None}


def calibrated(calibration: Mapping[str, Calibration]) -> dict[str, Any]:
    """The part of a checkpoint that holds the temperatures of its weights; nothing without any."""
    found = {name: asdict(one) for name, one in calibration.items()}
    return {"calibration": found} if found else {}


def no_room_to_validate(learner: Learner) -> RunError:
    """What to report when not even one patch of a validation fits into memory."""
    patch = list(learner.settings.patch_size)
    memory = "free memory"
    if learner.device.type != "cpu":
        memory += ', or set device to "cpu"'
    return RunError(
        "validation",
        f"out of memory with one patch of {patch} at a time; the steps are saved",
        f"{memory}, and the same command continues; a smaller patch_size needs another "
        "ckpt_out_base",
    )


def step_scalars(learner: Learner, result: StepResult) -> dict[str, float]:
    """The curves that get a point at each step."""
    total = sum(learner.targets[name].weight * value for name, value in result.losses.items())
    per_target = {f"train/loss_{name}": value for name, value in result.losses.items()}
    if learner.settings.loss_balance != "fixed":
        per_target |= {f"train/balance_{name}": f for name, f in result.factors.items()}
    return {
        "train/loss": total,
        **per_target,
        **{f"train/{curve}": value for curve, value in result.taught.items()},
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
