"""Where a run stands: counters, pace, which checkpoint is the best, and when to stop early."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from pydantic import TypeAdapter

from vcmodels.checkpoint import Checkpoint, typed
from vcmodels.config.task import OF_VOLUMES, epoch_curves
from vcmodels.config.train_params import TrainingParams
from vcmodels.errors import CheckpointError, RunError
from vcmodels.metrics.base import Sense
from vcmodels.reporting import duration
from vcmodels.targets import AnyTarget
from vcmodels.training.step import StepResult


@dataclass
class Counters:
    """Where a run stands, besides the learner's own state. All of it goes into the checkpoint."""

    epoch: int = 0
    best: float = math.inf
    """Of the curve that chooses the best checkpoint, or the negative of one that rises."""
    bad_steps: int = 0
    watched: str = ""
    """The curve of early stopping and its sense, such as "min val/loss"; empty without."""
    least_cost: float = math.inf
    """Of that curve, as `best`."""
    stale_epochs: int = 0
    """Since that curve improved."""
    valueless_epochs: int = 0
    """Of these, those in which it had no value."""
    loss_sums: dict[str, float] = field(default_factory=dict)
    loss_counts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Counters":
        """Those of a checkpoint.

        Raises:
            CheckpointError: there are none, or one is not what it can be.
        """
        checkpoint.require("counters")
        saved, path = checkpoint.state["counters"], checkpoint.path
        found = typed(TypeAdapter(cls), saved, path, "counters")
        counts = (found.epoch, found.bad_steps, found.stale_epochs, *found.loss_counts.values())
        sums = (found.best, found.least_cost, *found.loss_sums.values())
        if min(counts) < 0 or any(map(math.isnan, sums)):
            raise CheckpointError(str(path), f"counters are {saved}", "use another checkpoint")
        return found

    def add(self, result: StepResult) -> None:
        """Count the losses of a step towards the epoch's means."""
        for name, value in result.losses.items():
            if math.isfinite(value):
                self.loss_sums[name] = self.loss_sums.get(name, 0.0) + value
                self.loss_counts[name] = self.loss_counts.get(name, 0) + 1

    def end_epoch(self, targets: Mapping[str, object]) -> dict[str, float]:
        """The mean training loss per target; the sums start again from 0.

        Raises:
            RunError: as `require_all`.
        """
        self.require_all(targets)
        means = {name: self.loss_sums[name] / self.loss_counts[name] for name in targets}
        self.loss_sums, self.loss_counts = {}, {}
        self.epoch += 1
        return means

    def require_all(self, targets: Mapping[str, object]) -> None:
        """Refuse an epoch in which a target had no valid voxel: its head learns nothing.

        Raises:
            RunError: naming the target.
        """
        for name in targets:
            if not self.loss_counts.get(name):
                raise RunError(
                    f"dataset_config.targets.{name}",
                    f"not one valid label voxel in epoch {self.epoch + 1}",
                    "see it with vcmodels preview; change ignore_label, loss_only_on_label, the "
                    "thresholds of patches or what it is derived by (clip, max_extent), or remove "
                    "it, and --restart",
                )


SETTLED_SECONDS = 5.0


def forecast(
    step: int, step_seconds: float, patches: int, settings: TrainingParams, left: float
) -> str:
    """How fast a run is and when it will end, in words.

    Args:
        step: steps that are done.
        step_seconds: what one takes.
        patches: that one learns from.
        settings: how many there are, in how many epochs.
        left: seconds until `max_minutes` are over; infinity without.
    """
    epoch = settings.max_steps_per_epoch
    rest = (settings.max_epoch * epoch - step) * step_seconds
    end = f"{settings.max_epoch} epochs in about {duration(rest)}, without validation"
    if left < rest:
        end = f"ends by max_minutes in {duration(left)}"
    pace = f"{patches / step_seconds:.2g} patches/s"
    return f"{pace}; an epoch of {epoch} steps in about {duration(epoch * step_seconds)}; {end}"


def smaller_steps(settings: TrainingParams, *, is_saved: bool) -> str:
    """What to change when a step does not fit into memory, in words.

    Args:
        settings: of the run.
        is_saved: whether it has a checkpoint, with which few keys may differ.
    """
    batch, accumulation = settings.batch_size, settings.gradient_accumulation
    smaller = "patch_size or f_maps smaller" + (", in another ckpt_out_base" if is_saved else "")
    if batch == 1 or settings.mixup is not None:
        return f"make {smaller}"
    times = next(n for n in range(2, batch + 1) if batch % n == 0)
    exchange = f"batch_size {batch // times} and gradient_accumulation {accumulation * times}"
    return f"{exchange} learn the same, and the run continues; or make {smaller}"


@dataclass
class Pace:
    """Times one epoch by the wall clock, from when it is made."""

    device: torch.device
    begun: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    """Seconds in which no batch was ready."""
    steps: int = 0
    ended: int = 0
    """Of the steps, those whose results are there."""
    settled: float = 0.0
    """When the first of them ended; it may have compiled."""
    seconds: float = 0.0
    """For the steps; validation and saving come after."""

    def end_step(self) -> None:
        """The result of a step is there."""
        self.ended += 1
        if self.ended == 1:
            self.settled = time.perf_counter()

    def step_seconds(self) -> float | None:
        """What a step takes, the first not counted; None before a second one has ended."""
        if self.ended < 2:
            return None
        return (time.perf_counter() - self.settled) / (self.ended - 1)

    @property
    def is_settled(self) -> bool:
        """Whether enough steps are timed to say how long the others will take."""
        return self.ended > 2 and time.perf_counter() - self.settled > SETTLED_SECONDS

    def end_steps(self) -> None:
        """The last step of the epoch was done."""
        self.seconds = time.perf_counter() - self.begun

    def words(self, patches_per_step: int) -> str:
        """What is shown next to the bar: patches a second and the share of time without a batch."""
        seconds = max(time.perf_counter() - self.begun, 1e-9)
        patches = self.steps * patches_per_step / seconds
        return f"{patches:.3g} patches/s, {100 * self.waited / seconds:.0f} % waiting"

    def scalars(self, patches_per_step: int) -> dict[str, float]:
        """The curves of an epoch that ends now."""
        seconds = max(self.seconds, 1e-9)
        scalars = {
            "speed/patches_per_s": self.steps * patches_per_step / seconds,
            "speed/data_wait": self.waited / seconds,
            "speed/epoch_minutes": (time.perf_counter() - self.begun) / 60,
        }
        if self.device.type == "cuda":
            scalars["speed/memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return scalars


@dataclass(frozen=True)
class Watch:
    """A curve that says how good the network is."""

    curve: str
    sense: Sense

    @property
    def is_of_volumes(self) -> bool:
        """Whether it has a value only in epochs that validate whole volumes."""
        return self.curve.startswith(OF_VOLUMES)

    def cost(self, scalars: Mapping[str, float]) -> float:
        """What is the lower, the better the network: the value, or its negative.

        Infinity when the curve has no value, or none that is finite.
        """
        value = scalars.get(self.curve, math.nan)
        return (value if self.sense == "min" else -value) if math.isfinite(value) else math.inf


def best_watch(settings: TrainingParams, targets: Mapping[str, AnyTarget]) -> Watch:
    """The curve that chooses the best checkpoint."""
    curve = settings.best_metric
    return Watch(curve, epoch_curves(targets, settings.validation)[curve])


def watched(settings: TrainingParams, targets: Mapping[str, AnyTarget]) -> dict[str, Watch]:
    """The curves by which the best checkpoint is chosen and the run ended, by their keys."""
    found = {"tr_params.best_metric": best_watch(settings, targets)}
    early = EarlyStop.of(settings, targets)
    return found if early is None else found | {"tr_params.early_stopping.metric": early.watch}


@dataclass(frozen=True)
class EarlyStop:
    """The rule by which a run ends early. What it remembers is in the counters."""

    watch: Watch
    patience: int
    min_delta: float

    @classmethod
    def of(cls, settings: TrainingParams, targets: Mapping[str, AnyTarget]) -> Self | None:
        """The rule of a task, if it has one."""
        given = settings.early_stopping
        if given is None:
            return None
        curve = given.metric or settings.best_metric
        curves = epoch_curves(targets, settings.validation)
        sense = curves[curve] if given.mode == "auto" else given.mode
        return cls(Watch(curve, sense), given.patience, given.min_delta)

    def see(self, counters: Counters, scalars: Mapping[str, float]) -> None:
        """Count an epoch that has just ended, with the values of its curves.

        One without a validation of whole volumes is not seen by a rule that watches these.
        """
        if counters.watched != self._watched:  # the rule was changed on the way
            counters.watched = self._watched
            counters.least_cost, counters.stale_epochs, counters.valueless_epochs = math.inf, 0, 0
        cost = self.watch.cost(scalars)
        if cost < counters.least_cost - self.min_delta:
            counters.least_cost, counters.stale_epochs, counters.valueless_epochs = cost, 0, 0
        else:
            counters.stale_epochs += 1
            counters.valueless_epochs += math.isinf(cost)

    def is_over(self, counters: Counters) -> bool:
        """Whether there were too many epochs without an improvement."""
        return counters.watched == self._watched and counters.stale_epochs >= self.patience

    def reason(self, counters: Counters) -> str:
        """In words, when and why the run ended."""
        stale, valueless = counters.stale_epochs, counters.valueless_epochs
        times = "validations" if self.watch.is_of_volumes else "epochs"
        what = f"has not improved for {stale} {times}"
        if valueless == stale:
            what = f"has had no value for {stale} {times}"
        elif valueless:
            what += f", {valueless} of them without a value"
        return f"stopped early after epoch {counters.epoch}: {self.watch.curve} {what}"

    @property
    def _watched(self) -> str:
        return f"{self.watch.sense} {self.watch.curve}"
