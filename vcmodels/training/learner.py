"""The trained state (network, average, optimiser, step) and the one step that changes it."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcmodels.checkpoint import load_weights
from vcmodels.config import Task
from vcmodels.data.hard_order import hard_share
from vcmodels.data.loader import Batch
from vcmodels.devices import CompiledOrEager, autocast, choose_amp, place
from vcmodels.targets import AnyTarget
from vcmodels.training.balance import LossBalance
from vcmodels.training.optimisation import average_weights, build_optimizer, rate_factor, set_rate


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step reports: unweighted losses, the gradient norm, the rate."""

    losses: dict[str, float]
    """Mean over the micro-batches that had valid voxels of the target; absent when none had."""
    gradient_norm: float
    rate: float
    is_applied: bool
    """False when the loss or the gradient was not finite; nothing changed then."""
    is_overflow: bool
    """The gradient overflowed in fp16 and the loss was fine: the scaler halves its factor."""
    sample_losses: Sequence[float] = ()
    """Of each sample in order; only for `sampling.hard`."""


class Learner:
    """Owns everything that a step changes and a checkpoint must hold.

    Dropout and the like draw from a generator seeded with (seed, step) at each step, so a resumed
    run continues as if it had never stopped.
    """

    def __init__(
        self, network: nn.Module, task: Task, total_steps: int, device: torch.device
    ) -> None:
        settings = task.tr_params
        self.targets: dict[str, AnyTarget] = dict(task.dataset_config.targets)
        self.settings, self.device, self.total_steps = settings, device, total_steps
        self.network = place(network, device)
        self.averaged = copy.deepcopy(self.network).eval() if settings.ema_decay else None
        self.forward: nn.Module = self.network
        self.measures_samples = hard_share(task) > 0
        weights = {name: target.weight for name, target in self.targets.items()}
        self.balance = LossBalance(weights, settings.loss_balance).to(device)
        self.trained = nn.ModuleList([self.network, self.balance])
        self.optimizer = build_optimizer(
            settings.optimizer, self.trained, settings.initial_lr, settings.weight_decay
        )
        self.amp = choose_amp(settings.amp, device)
        # Only fp16 underflows; a disabled scaler passes everything through.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp == torch.float16)
        self.step = 0

    def compile(self, say: Callable[[str], None]) -> None:
        """Train through `torch.compile` from now on, eagerly if it fails here."""
        self.forward = CompiledOrEager(self.network, say)

    @property
    def best_network(self) -> nn.Module:
        """The averaged network if there is one: what is validated and predicts."""
        return self.averaged if self.averaged is not None else self.network

    def train_step(self, batches: Sequence[Batch]) -> StepResult:
        """One optimiser step over micro-batches, whose mean gradient is applied."""
        settings = self.settings
        torch.manual_seed((settings.seed << 32) + self.step)
        self.network.train()
        rate = settings.initial_lr * rate_factor(
            settings.scheduler, self.step, self.total_steps, settings.warmup_steps
        )
        set_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, list[float]] = {}
        of_samples: list[float] = []
        total = 0.0
        for batch in batches:
            outputs = self.run(self.forward, batch)
            loss, parts = self.loss(outputs, batch)
            self.scaler.scale(loss / len(batches)).backward()
            total += float(loss.detach()) / len(batches)
            for name, part in parts.items():
                losses.setdefault(name, []).append(float(part.detach()))
            if self.measures_samples:
                of_samples += self.sample_losses(outputs, batch)
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(self.trained.parameters(), settings.gradient_clip))
        is_finite = math.isfinite(total) and math.isfinite(norm)
        if is_finite:
            self.scaler.step(self.optimizer)
            if self.averaged is not None:
                assert settings.ema_decay is not None
                average_weights(
                    self.averaged.parameters(),
                    self.network.parameters(),
                    settings.ema_decay,
                    self.step,
                )
        is_overflow = math.isfinite(total) and not is_finite and self.scaler.is_enabled()
        is_overflow = is_overflow and self.scaler.get_scale() > 1
        self.scaler.update()
        self.step += 1
        means = {name: sum(values) / len(values) for name, values in losses.items()}
        return StepResult(means, norm, rate, is_finite, is_overflow, of_samples)

    def run(
        self, network: Callable[[Tensor], Mapping[str, tuple[Tensor, ...]]], batch: Batch
    ) -> Mapping[str, tuple[Tensor, ...]]:
        """The logits of all heads, in the precision of the run."""
        with autocast(self.device, self.amp):
            return network(batch.image.contiguous(memory_format=torch.channels_last_3d))

    def loss(
        self, outputs: Mapping[str, tuple[Tensor, ...]], batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The balanced sum over targets, and each one's own loss where it had valid voxels."""
        losses = {
            name: supervised_loss(
                target,
                outputs[name],
                batch.labels[name],
                batch.valid[name],
                batch.weight.get(name),
            )
            for name, target in self.targets.items()
        }
        parts = {name: loss for name, loss in losses.items() if bool(batch.valid[name].any())}
        return self.balance(losses, parts), parts

    @torch.no_grad()
    def sample_losses(self, outputs: Mapping[str, tuple[Tensor, ...]], batch: Batch) -> list[float]:
        """The loss of each sample by itself: the mean over its targets by their fixed weights.

        Targets without a valid voxel in the sample have no say; it is NaN when none has one. Of a
        mean, not the sum, so that volumes with few labels do not pass for easy ones.
        """
        one_by_one = range(len(batch.image))
        totals = weights = batch.image.new_zeros(len(batch.image))
        for name, target in self.targets.items():
            label, valid, factor = batch.labels[name], batch.valid[name], batch.weight.get(name)
            found = [
                supervised_loss(
                    target,
                    [logits[i : i + 1] for logits in outputs[name]],
                    label[i : i + 1],
                    valid[i : i + 1],
                    None if factor is None else factor[i : i + 1],
                )
                for i in one_by_one
            ]
            weight = target.weight * valid.flatten(1).any(1)
            totals, weights = totals + weight * torch.stack(found), weights + weight
        return (totals / weights).tolist()

    def state(self) -> dict[str, Any]:
        """What `restore` needs, besides the task."""
        return {
            "model": self.network.state_dict(),
            "ema": self.averaged.state_dict() if self.averaged is not None else None,
            "balance": self.balance.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
        }

    def restore(self, state: Mapping[str, Any], source: str, *, weights_only: bool = False) -> None:
        """Continue from `state`; with `weights_only`, start at step 0 from its best weights."""
        if weights_only:
            best = state["ema"] or state["model"]
            for network in filter(None, (self.network, self.averaged)):
                load_weights(network, best, source)
            return
        load_weights(self.network, state["model"], source)
        if self.averaged is not None:
            load_weights(self.averaged, state["ema"] or state["model"], source)
        # Older files have none: all weights were fixed.
        self.balance.load_state_dict(state.get("balance", {}))
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty when the run was not in fp16 before
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]


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
        part = target.compute_loss(logits.float(), fitted, counted, sample_weight)
        total = total + weight * part
    return total / sum(weights)
