"""Losses and metrics over the validation patches; what a validation of whole volumes is."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from vcmodels.config import Task
from vcmodels.data.task_volume import TaskVolume
from vcmodels.geometry.boxes import Box
from vcmodels.metrics.base import Sums
from vcmodels.metrics.calibration import Calibration
from vcmodels.metrics.registry import add_sums
from vcmodels.pictures.slices import PATCHES, draw_row
from vcmodels.samples.loader import Batch
from vcmodels.training.calibration import (
    LogitSample,
    fit_heads,
    is_calibrated,
    sample_logits,
)
from vcmodels.training.learner import Learner
from vcmodels.training.step import sample_losses, voxel_counts


@dataclass(frozen=True)
class Validation:
    """What one pass over the validation patches found."""

    loss: float
    """Sum over targets of `weight` times the mean loss: the lower, the better the checkpoint.

    By the fixed weights even when `loss_balance` learns others: those change from step to step, and
    the values of two epochs, or of two runs, would mean different things.
    """
    losses: dict[str, float]
    metrics: dict[str, dict[str, float]]
    panels: dict[str, np.ndarray]
    """Per target (H, W, 3) float32 in [0, 1]: as `draw_row`, one row a patch."""
    calibration: dict[str, Calibration] = field(default_factory=dict)
    """With `calibrate`: the temperature of each head of masks or classes; of the first process."""


@dataclass(frozen=True)
class HeldOutVolumes:
    """What a validation of whole volumes predicts, and where."""

    task: Task
    """The resolved task."""
    parts: tuple[tuple[TaskVolume, Box], ...]
    """Volumes, and what is held out of each."""
    folder: Path
    """For predictions on the way; a validation that was cut off continues with what is there."""
    device: torch.device


class VolumeValidation(Protocol):
    """Predicts whole volumes with the weights of a training, and scores them."""

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse, before the first step, what a validation would fail of.

        Args:
            state: of a checkpoint, with the weights that are validated as `model`.

        Raises:
            RefusedError: naming a key or a volume.
        """
        ...

    def __call__(
        self, state: Mapping[str, Any], should_stop: Callable[[], bool]
    ) -> dict[str, float] | None:
        """The points of the curves `val_volumes/`; None after a stop.

        Raises:
            RunError: a volume cannot be predicted or scored.
        """
        ...


MakeVolumeValidation = Callable[[HeldOutVolumes], VolumeValidation]


@torch.inference_mode()
def validate(
    learner: Learner, batches: Iterable[Batch], is_stopped: Callable[[], bool] = lambda: False
) -> Validation:
    """Run the best network over `batches`; losses are means over all voxels that count.

    Args:
        learner: whose best network is measured. In a world of several processes all of them call
            this, each with its share of the batches, and get the same figures.
        batches: of validation patches.
        is_stopped: asked before each batch; what a stopped validation returns is of no use.
    """
    network = learner.best_network.eval()
    losses, counts = defaultdict[str, float](float), defaultdict[str, float](float)
    sums: dict[str, Sums] = {name: {} for name in learner.targets}
    rows: dict[str, list[np.ndarray]] = {name: [] for name in learner.targets}
    samples = _heads_to_calibrate(learner)
    for batch in _portions(batches, learner.device):
        if is_stopped():
            break
        outputs = learner.run(network, batch)
        voxels = voxel_counts(batch)
        for name, found in sample_losses(learner.targets, outputs, batch).items():
            losses[name] += float((found * voxels[name]).sum())
            counts[name] += float(voxels[name].sum())
        for name, target in learner.targets.items():
            prediction = target.unblend(target.blendable(outputs[name][0].float()))
            label, valid = batch.labels[name], batch.valid[name]
            sums[name] = add_sums(sums[name], target.measure(prediction, label, valid))
            drawn = PATCHES - len(rows[name]) if learner.world.is_first else 0
            for n in range(min(len(batch.image), drawn)):
                arrays = (batch.image[n], label[n], valid[n], prediction[n])
                rows[name].append(draw_row(target, *arrays))
        for name, found in samples.items():
            arrays = zip(outputs[name][0], batch.labels[name], batch.valid[name], strict=True)
            found.extend(sample_logits(*one) for one in arrays)
    losses, counts, sums = _together(learner.world.gather((dict(losses), dict(counts), sums)))
    calibration = _calibrated(learner, samples)
    means = {name: losses[name] / count for name, count in counts.items() if count}
    metrics = {
        name: target.summarise(sums[name]) for name, target in learner.targets.items() if sums[name]
    }
    total = sum(learner.targets[name].weight * value for name, value in means.items())
    panels = {name: np.concatenate(found) for name, found in rows.items() if found}
    return Validation(total, means, metrics, panels, calibration)


def _heads_to_calibrate(learner: Learner) -> dict[str, list[LogitSample]]:
    """An empty list for each head that gets a temperature."""
    wanted = learner.targets if learner.settings.calibrate else {}
    return {name: [] for name, target in wanted.items() if is_calibrated(target)}


def _calibrated(learner: Learner, samples: dict[str, list[LogitSample]]) -> dict[str, Calibration]:
    """The temperatures by the samples of all processes; only the first one, which saves, fits them."""
    every = learner.world.gather(samples) if samples else [samples]
    if not learner.world.is_first:
        return {}
    joined = {name: [part for one in every for part in one[name]] for name in samples}
    return fit_heads({name: parts for name, parts in joined.items() if parts})


def _portions(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """What goes through the network at once: on a CPU one sample, whatever the size of the batches.

    Its convolutions round otherwise for each size, and the figures of a run must not depend on how many patches
    fitted into memory. On a GPU they do, as all that is computed there depends on it.
    """
    return (
        (part for batch in batches for part in batch.singles())
        if device.type == "cpu"
        else iter(batches)
    )


def _together(
    parts: Sequence[tuple[dict[str, float], dict[str, float], dict[str, Sums]]],
) -> tuple[dict[str, float], dict[str, float], dict[str, Sums]]:
    """The losses, voxels and sums of all processes."""
    losses, counts, sums = parts[0]
    for more_losses, more_counts, more_sums in parts[1:]:
        for total, more in ((losses, more_losses), (counts, more_counts)):
            for name, value in more.items():
                total[name] = total.get(name, 0.0) + value
        sums = {name: add_sums(found, more_sums[name]) for name, found in sums.items()}
    return losses, counts, sums
