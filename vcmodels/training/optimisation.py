"""Optimisers, the learning-rate schedule, and the running average of the weights."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

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


def rate_factor(schedule: ScheduleName, step: int, total: int, warmup: int) -> float:
    """The learning rate of 0-based `step` as a share of the initial one.

    Linear warm-up over `warmup` steps, then (1 - t)^0.9 (Chen et al. 2017, "poly") or half a cosine
    with t the share of all steps done. A function of the step alone: it has no state to save.
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
