"""Optimisers, learning rate, average of the weights, balance of losses, and frozen parts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vcmodels.config.train_params import TrainingParams
from vcmodels.errors import CheckpointError, TaskError
from vcmodels.models.base import part_names

OptimizerName = Literal["AdamW", "SGD", "Adam"]
ScheduleName = Literal["poly", "cosine", "constant"]
POLY_POWER = 0.9


def build_optimizer(
    name: OptimizerName,
    network: nn.Module,
    learning_rate: float,
    weight_decay: float,
    momentum: float = 0.99,
) -> Optimizer:
    """The optimiser; biases and normalisation gains, which only shift and scale, do not decay.

    `momentum` is that of SGD, with Nesterov's correction; the others have betas 0.9 and 0.999.
    """
    weights = [p for p in network.parameters() if p.ndim > 1]
    gains = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    # `fused` updates all parameters in one kernel, on the CPU and on CUDA.
    if name == "SGD":
        sgd = SGD(groups, lr=learning_rate, momentum=momentum, nesterov=True, fused=True)
        # Otherwise made at the first step, and left without values if that one is not applied.
        for parameter in network.parameters():
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    optimizer = AdamW if name == "AdamW" else Adam
    return optimizer(groups, lr=learning_rate, fused=True)


_SLOTS = {"SGD": {"momentum_buffer"}, "Adam": {"step", "exp_avg", "exp_avg_sq"}}
_SLOTS["AdamW"] = _SLOTS["Adam"]


def load_slots(optimizer: Optimizer, saved: Mapping[str, Any], source: str) -> None:
    """Continue with what a checkpoint remembers of each weight; how they learn is for the task to say.

    Args:
        optimizer: as `build_optimizer` made it.
        saved: the state of one for the same weights.
        source: the file, for messages.

    Raises:
        CheckpointError: it is of other weights, of another optimiser, or not finite.
    """
    groups = optimizer.state_dict()["param_groups"]
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    if [g["params"] for g in saved["param_groups"]] != [g["params"] for g in groups]:
        raise CheckpointError(source, "optimizer is of other weights", "use another checkpoint")
    for number, slot in saved["state"].items():
        if not 0 <= number < len(weights) or not _fits(
            slot, weights[number], _SLOTS[type(optimizer).__name__]
        ):
            found = f"optimizer.state.{number} does not fit its weight"
            raise CheckpointError(source, found, "use another checkpoint")
    for group, old in zip(groups, saved["param_groups"], strict=True):
        rate = old.get("lr")
        if isinstance(rate, float) and 0 <= rate < math.inf:  # until the next step sets it
            group["lr"] = rate
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def _fits(slot: Mapping[str, Any], weight: Tensor, names: set[str]) -> bool:
    """Whether a slot has the tensors of an optimiser for a weight; SGD's are made at a first step."""
    kept = {name: value for name, value in slot.items() if value is not None}
    if kept.keys() != names and (kept or "step" in names):
        return False
    return all(
        isinstance(value, Tensor)
        and value.dtype.is_floating_point
        and value.shape == (() if name == "step" else weight.shape)
        and bool(value.isfinite().all())
        and (name not in ("step", "exp_avg_sq") or bool((value >= 0).all()))
        for name, value in kept.items()
    )


def rate_factor(schedule: ScheduleName, step: int, total: int, warmup: int) -> float:
    """The learning rate of 0-based `step` as a share of the initial one.

    Linear warm-up over `warmup` steps, then (1 - t)^0.9 (Chen et al. 2017, "poly") or half a cosine
    with t the share of all steps done. A function of the step only: it has no state to save.
    """
    ramp = min(1.0, (step + 1) / (warmup + 1))
    done = min(step / total, 1.0)
    if schedule == "poly":
        return ramp * (1 - done) ** POLY_POWER
    if schedule == "cosine":
        return ramp * 0.5 * (1 + math.cos(math.pi * done))
    return ramp


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every parameter group the learning rate `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def average_weights(
    averaged: Iterable[torch.Tensor], current: Iterable[torch.Tensor], decay: float, step: int
) -> None:
    """Move the moving average of the weights one step towards `current`.

    The decay is (1 + step) / (10 + step) while that is less than `decay`: an average whose weights
    grow as the eighth power of the step (polynomial decay, Shamir & Zhang 2013, arXiv:1212.1824),
    about the last ninth of the run whenever it is asked for. From there on it is exponential.
    """
    decay = min(decay, (1 + step) / (10 + step))
    get_ema_multi_avg_fn(decay)(list(averaged), list(current), step)


LossBalanceName = Literal["fixed", "uncertainty"]


class LossBalance(nn.Module):
    """The sum of the losses of all targets, and with `uncertainty` one learned number for each.

    A learned number s makes weight * (exp(-s) L + s) of a target's weight * L: twice the negative
    log-likelihood of a Gaussian of variance exp(s) (Kendall, Gal & Cipolla 2018, "Multi-task
    learning using uncertainty to weigh losses" (arXiv:1705.07115), equations 7 and 10), so that
    training starts with s = 0 at the fixed weights. It is least at s = log L, where every target
    pulls by `weight` times the gradient of log L, whatever the scale of its loss.
    """

    def __init__(self, weights: Mapping[str, float], balance: LossBalanceName) -> None:
        """Take the `weight` of each target by name; `fixed` has no parameters."""
        super().__init__()
        self.weights = dict(weights)
        # By name and not by place: the order of the targets in the task file does not matter.
        self.rows = {name: row for row, name in enumerate(sorted(weights))}
        # Buffers, so that they are where the losses are; no part of the state.
        self.fixed: Tensor
        self.order: Tensor
        self.register_buffer("fixed", torch.tensor(list(weights.values())), persistent=False)
        order = torch.tensor([self.rows[name] for name in weights])
        self.register_buffer("order", order, persistent=False)
        learned = nn.Parameter(torch.zeros(len(weights))) if balance == "uncertainty" else None
        self.log_variance: Tensor | None
        self.register_parameter("log_variance", learned)

    def forward(
        self, losses: Mapping[str, Tensor], counts: Mapping[str, Tensor], share: float = 1.0
    ) -> Tensor:
        """The scalar to be minimised, or a share of it.

        Args:
            losses: a scalar for each target, 0 for those without a valid voxel in the step. Parts of
                them add up to the whole, if their shares add up to 1.
            counts: the valid voxels of each in the whole step, scalars. Targets without any are not
                balanced: a loss of 0 would be taken for certainty, and their s fall for ever.
            share: of this part in all that is learnt from in a step.
        """
        terms = [
            self.weights[name] * self._balanced(name, loss, share * (counts[name] > 0))
            for name, loss in losses.items()
        ]
        return torch.stack(terms).sum()

    def factors(self) -> Tensor:
        """(T,) what multiplies the loss of each target now, `weight` included, in their order."""
        if self.log_variance is None:
            return self.fixed
        return self.fixed * (-self.log_variance.detach()).exp()[self.order]

    def _balanced(self, name: str, loss: Tensor, share: Tensor) -> Tensor:
        if self.log_variance is None:
            return loss
        s = self.log_variance[self.rows[name]]
        return (-s).exp() * loss + s * share


KEY = "tr_params.freeze"


class Freezing:
    """Holds parts of a network fixed until a step.

    A frozen weight gets no gradient, so optimisers leave it as it is, decay included, and its average
    stays where it is. Frozen modules run as in prediction: a batch norm keeps its statistics and
    nothing is dropped out.
    """

    def __init__(self, network: nn.Module, parts: Sequence[str], until: int | None) -> None:
        """Find the parts.

        Args:
            network: whose parameters are meant.
            parts: beginnings of their names, of whole words between the dots.
            until: the step (0-based) at which they begin to learn; never when None.

        Raises:
            TaskError: a part is not in the network, or nothing is left that learns.
        """
        self.until = until
        names = [name for name, _ in network.named_parameters()]
        for part in parts:
            if not any(lies_in(name, part) for name in names):
                known = ", ".join(part_names(names))
                raise TaskError(KEY, f'"{part}" is no part of the network', f"parts are {known}")
        frozen = {name for name in names if any(lies_in(name, part) for part in parts)}
        if len(frozen) == len(names):
            raise TaskError(KEY, "names the whole network", "leave something that learns")
        self.parameters = [p for name, p in network.named_parameters() if name in frozen]
        self.modules = [
            module
            for name, module in network.named_modules()
            if any(lies_in(name, part) for part in parts)
        ]

    def holds(self, step: int) -> bool:
        """Whether anything is frozen at the 0-based `step`."""
        return bool(self.parameters) and (self.until is None or step < self.until)

    def apply(self, step: int) -> bool:
        """Freeze or release for the 0-based `step`, of a network that is in training mode.

        Returns:
            Whether other weights learn than before.
        """
        is_frozen = self.holds(step)
        if is_frozen:
            for module in self.modules:
                module.eval()
        changes = any(parameter.requires_grad == is_frozen for parameter in self.parameters)
        for parameter in self.parameters:
            parameter.requires_grad_(not is_frozen)
        return changes


def freezing_of(network: nn.Module, settings: TrainingParams) -> Freezing:
    """What a task freezes of its network, and for how long.

    Raises:
        TaskError: as `Freezing`.
    """
    epochs = settings.freeze_epochs
    until = None if epochs is None else epochs * settings.max_steps_per_epoch
    return Freezing(network, settings.freeze, until)


def lies_in(name: str, part: str) -> bool:
    """Whether the dotted `name` is `part` or inside of it."""
    return name == part or name.startswith(f"{part}.")
