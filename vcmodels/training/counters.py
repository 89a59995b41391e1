"""Where a run stands, besides the state of its learner."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from vcmodels.errors import RunError
from vcmodels.training.step_result import StepResult


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
                    "see it with vcmodels preview; check ignore_label, loss_only_on_label, the "
                    "thresholds that choose patches and, if it is derived, how far around a patch "
                    "it looks (clip, max_extent), or remove the target",
                )
        means = {name: self.loss_sums[name] / self.loss_counts[name] for name in targets}
        self.loss_sums, self.loss_counts = {}, {}
        self.epoch += 1
        return means
