"""Which checkpoint is the best, and when nothing better is to be expected."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from vcmodels.config.curves import epoch_curves
from vcmodels.config.parameters import TrainingParams
from vcmodels.errors import TaskError
from vcmodels.targets import AnyTarget
from vcmodels.targets.base import Sense
from vcmodels.training.counters import Counters


@dataclass(frozen=True)
class Watch:
    """A curve that says how good the network is."""

    curve: str
    sense: Sense

    def cost(self, scalars: Mapping[str, float]) -> float:
        """What is the lower, the better the network: the value, or its negative.

        Infinity when the curve has no value, or none that is finite.
        """
        value = scalars.get(self.curve, math.nan)
        return (value if self.sense == "min" else -value) if math.isfinite(value) else math.inf


def best_watch(settings: TrainingParams, targets: Mapping[str, AnyTarget]) -> Watch:
    """The curve that chooses the best checkpoint."""
    curve = settings.best_metric
    return Watch(curve, epoch_curves(targets)[curve])


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
        sense = epoch_curves(targets)[curve] if given.mode == "auto" else given.mode
        return cls(Watch(curve, sense), given.patience, given.min_delta)

    def require(self, validates: bool) -> None:
        """Refuse to wait for a curve that will not come.

        Raises:
            TaskError: it is of the validation, and there is none.
        """
        if self.watch.curve.startswith("val/") and not validates:
            found = f'is "{self.watch.curve}", but there are no validation patches'
            remedy = "lower tr_val_split, or watch epoch/train_loss_<target>"
            raise TaskError("tr_params.early_stopping.metric", found, remedy)

    def see(self, counters: Counters, scalars: Mapping[str, float]) -> None:
        """Count an epoch that has just ended, with the values of its curves."""
        if counters.watched != self._watched:  # the rule was changed on the way
            counters.watched, counters.least_cost, counters.stale_epochs = (
                self._watched,
                math.inf,
                0,
            )
        cost = self.watch.cost(scalars)
        if cost < counters.least_cost - self.min_delta:
            counters.least_cost, counters.stale_epochs = cost, 0
        else:
            counters.stale_epochs += 1

    def is_over(self, counters: Counters) -> bool:
        """Whether there were too many epochs without an improvement."""
        return counters.watched == self._watched and counters.stale_epochs >= self.patience

    def reason(self, counters: Counters) -> str:
        """In words, when and why the run ended."""
        return (
            f"stopped early after epoch {counters.epoch}: {self.watch.curve} has not improved for "
            f"{counters.stale_epochs} epochs"
        )

    @property
    def _watched(self) -> str:
        return f"{self.watch.sense} {self.watch.curve}"
