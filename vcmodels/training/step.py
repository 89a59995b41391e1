"""What one step minimises, on which mixture of patches, and what it reports.

Zhang et al. 2018 (arXiv:1710.09412) mix images and labels; Verma et al. 2019, "Manifold mixup"
(arXiv:1806.05236), the features of a random level. Labels are not mixed here: the loss is the mean
of the losses against the labels of either patch, by the same shares. For a cross-entropy that is
the same as mixing labels, and it is lawful for all others, too: no vector is averaged with its
opposite, no class id becomes another, each patch keeps its own voxels that count, and its weight.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcmodels.config.train_params import Mixup
from vcmodels.errors import TaskError
from vcmodels.models.base import FeatureMix, Logits, mix_samples
from vcmodels.samples.loader import Batch
from vcmodels.targets import AnyTarget


def voxel_counts(batch: Batch) -> dict[str, Tensor]:
    """Per target (B,) float32: how many voxels of each sample count.

    They weigh the samples of a step, so that a patch with few labels has a small say. As they are
    known before any network runs, the samples of a step can be divided over micro-batches and
    processes at will: the weighted sum of their losses, and its gradient, stay the same. A loss
    over a whole batch could not be (a Dice of sums is no sum of Dices).
    """
    return {name: valid.flatten(1).sum(1).float() for name, valid in batch.valid.items()}


def sample_losses(
    targets: Mapping[str, AnyTarget], outputs: Logits, batch: Batch
) -> dict[str, Tensor]:
    """Per target (B,) float32: the loss of each sample by itself, 0 where no voxel counts.

    Weighed by `voxel_counts` they add up to the loss of any batch. Class weights are factors of voxels and are not
    divided by their sum over a sample: one that holds a single class would lose them.
    """
    found: dict[str, Tensor] = {}
    for name, target in targets.items():
        label, valid, weight = batch.labels[name], batch.valid[name], batch.weight.get(name)
        # Split, not indexed: the gradient of all parts is put together once, where the gradient of each
        # index would be a tensor of the whole batch.
        parts = zip(
            zip(*(logits.split(1) for logits in outputs[name]), strict=True),
            label.split(1),
            valid.split(1),
            [None] * len(label) if weight is None else weight.split(1),
            strict=True,
        )
        found[name] = torch.stack([supervised_loss(target, *part) for part in parts])
    return found


def weighted_sums(losses: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Per target the sum of the losses (B,) of samples, each times its count (B,)."""
    return {name: (found * counts[name]).sum() for name, found in losses.items()}


@torch.no_grad()
def mean_over_targets(
    targets: Mapping[str, AnyTarget], losses: Mapping[str, Tensor], counts: Mapping[str, Tensor]
) -> Tensor:
    """(B,) the mean loss of each sample by the fixed weights of its targets; NaN where none counts.

    Of a mean, not the sum, so that volumes with few labels do not pass for easy ones.
    """
    weights = torch.stack([t.weight * (counts[name] > 0) for name, t in targets.items()])
    found = torch.stack([losses[name] for name in targets])
    return (found * weights).sum(0) / weights.sum(0)


def supervised_loss(
    target: AnyTarget,
    outputs: Sequence[Tensor],
    label: Tensor,
    valid: Tensor,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """The target's loss over its outputs, full resolution first, with weights 1, 1/2, 1/4 ...

    Deep supervision (Lee et al. 2015; the weights are nnU-Net's): labels of the coarser outputs are
    the nearest voxels, since averaging class ids or vectors would make new ones.
    """
    weights = [0.5**level for level in range(len(outputs))]
    total = label.new_zeros(())
    for logits, weight in zip(outputs, weights, strict=True):
        shape = logits.shape[2:]
        if shape == label.shape[2:]:
            fitted, counted = label, valid
        else:
            fitted = F.interpolate(label, shape, mode="nearest-exact")
            counted = F.interpolate(valid.float(), shape, mode="nearest-exact") > 0
        part = target.compute_loss(logits.float(), fitted, counted, sample_weight, is_part=True)
        total = total + weight * part
    return total / sum(weights)


_STREAM = 0x6D69780A
"""Keeps these draws apart from others that begin with the seed, too."""


@dataclass(frozen=True)
class BatchMix:
    """How the samples of one batch are mixed."""

    share: float
    """Of each sample, in [0, 1]; the rest is of the sample before it."""
    level: int | None = None
    """Of the encoder, whose features are mixed; the images are when None."""

    def batch(self, batch: Batch) -> Batch:
        """The batch that the network is to see: its images mixed, unless features are."""
        if self.level is not None:
            return batch
        return replace(batch, image=mix_samples(batch.image, self.share))

    def through(self, network: nn.Module) -> Callable[[Tensor], Logits]:
        """The network, which mixes features at the level that was drawn."""
        if self.level is None:
            return network
        level = self.level
        return lambda image: network(
            image, None, FeatureMix(level, torch.full((), self.share, device=image.device))
        )

    def mean(self, own: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the losses against either labels make together, by name."""
        return {name: self.share * own[name] + (1 - self.share) * others[name] for name in own}


def draw_mix(
    settings: Mixup | None, levels: int, *, seed: int, step: int, number: int
) -> BatchMix | None:
    """How to mix a batch; a function of the arguments, so that a resumed run mixes alike.

    Args:
        settings: of the task.
        levels: of the network's encoder.
        seed: of the task.
        step: of the run, 0-based.
        number: of the batch in the step.

    Returns:
        None when the batch is not to be mixed.
    """
    if settings is None:
        return None
    random = np.random.default_rng((seed, _STREAM, step, number))
    is_mixed, share = random.random() < settings.p, random.beta(settings.alpha, settings.alpha)
    level = int(random.integers(-1, levels)) if settings.manifold else -1
    return BatchMix(float(share), None if level < 0 else level) if is_mixed else None


def require_pairs(settings: Mixup | None, samples: int) -> None:
    """Refuse to mix batches of one sample.

    Args:
        settings: of the task.
        samples: in the batch of one process.

    Raises:
        TaskError: there is only one.
    """
    if settings is not None and samples < 2:
        found = "needs two patches to mix, each process has one at a time"
        raise TaskError("tr_params.mixup", found, "raise batch_size, or start fewer processes")


def partners(batch: Batch) -> Batch:
    """The same images with the labels of the samples that they are mixed with."""
    return replace(
        batch,
        labels={name: label.roll(1, 0) for name, label in batch.labels.items()},
        valid={name: valid.roll(1, 0) for name, valid in batch.valid.items()},
        weight={
            name: None if weight is None else weight.roll(1, 0)
            for name, weight in batch.weight.items()
        },
    )


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step reports: unweighted losses, the gradient norm, the rate."""

    step: int
    """Steps done, this one included."""
    losses: dict[str, float]
    """Mean over the valid voxels of the step; absent for targets that had none."""
    taught: dict[str, float]
    """Mean over the samples of what needs no label, by the name of its curve."""
    factors: dict[str, float]
    """What multiplies the loss of each target after the step, `weight` included."""
    gradient_norm: float
    rate: float
    is_applied: bool
    """False when the loss or the gradient was not finite; no weight changed then."""
    is_overflow: bool
    """The gradient overflowed in fp16 and the loss was fine: the scaler halves its factor."""
    stops: bool
    """Whether some process of the world wants to stop: all of them learn it at the same step."""
    sample_losses: Sequence[float]
    """Of each sample of the step in order; only for `sampling.hard`."""


class PendingResult:
    """A `StepResult` on its way from the device, which goes on with what it was given next.

    Args:
        step: steps done, this one included.
        rate: the learning rate.
        names: of the targets.
        taught: names of the losses that need no label.
        scaler: of the run.
        figures: (3 T + L + 3,) float32 on the device: loss, loss of each target, those without labels,
            processes that want to stop, gradient norm, valid voxels and factor of each target.
        sample_losses: (N,) float32 on the device, if they are wanted.
    """

    def __init__(
        self,
        *,
        step: int,
        rate: float,
        names: Sequence[str],
        taught: Sequence[str],
        scaler: torch.amp.GradScaler,
        figures: Tensor,
        sample_losses: Tensor | None,
    ) -> None:
        self.step, self.rate, self.names, self.scaler = step, rate, names, scaler
        self.taught = taught
        samples = figures.new_zeros(0) if sample_losses is None else sample_losses
        values = torch.cat([figures, samples])
        self.arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self.values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self.values.copy_(values, non_blocking=True)
            self.arrived = torch.cuda.Event()
            # The current stream belongs to the current device, which may be another one.
            self.arrived.record(torch.cuda.current_stream(values.device))
        else:
            self.values = values

    def read(self) -> StepResult:
        """The result; waits for its step, not for those that were begun since."""
        if self.arrived is not None:
            self.arrived.synchronize()
        figures, targets = iter(self.values.tolist()), len(self.names)
        (total,) = islice(figures, 1)
        parts = list(islice(figures, targets))
        taught = list(islice(figures, len(self.taught)))
        stops, norm = islice(figures, 2)
        known, factors = list(islice(figures, targets)), list(islice(figures, targets))
        samples = list(figures)
        is_applied = math.isfinite(total) and math.isfinite(norm)
        is_overflow = math.isfinite(total) and not is_applied and self.scaler.is_enabled()
        return StepResult(
            step=self.step,
            losses={n: part for n, part, k in zip(self.names, parts, known, strict=True) if k},
            taught=dict(zip(self.taught, taught, strict=True)),
            factors=dict(zip(self.names, factors, strict=True)),
            gradient_norm=norm,
            rate=self.rate,
            is_applied=is_applied,
            is_overflow=is_overflow and self.scaler.get_scale() > 1,
            stops=stops > 0,
            sample_losses=samples,
        )
