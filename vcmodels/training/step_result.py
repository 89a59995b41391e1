"""What one optimiser step reports, read from the device once it is there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step reports: unweighted losses, the gradient norm, the rate."""

    step: int
    """Steps done, this one included."""
    losses: dict[str, float]
    """Mean over the valid voxels of the step; absent for targets that had none."""
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
        scaler: of the run.
        figures: (3 T + 3,) float32 on the device: loss, loss of each target, processes that want to
            stop, gradient norm, valid voxels and factor of each target.
        sample_losses: (N,) float32 on the device, if they are wanted.
    """

    def __init__(
        self,
        *,
        step: int,
        rate: float,
        names: Sequence[str],
        scaler: torch.amp.GradScaler,
        figures: Tensor,
        sample_losses: Tensor | None,
    ) -> None:
        self.step, self.rate, self.names, self.scaler = step, rate, names, scaler
        samples = figures.new_zeros(0) if sample_losses is None else sample_losses
        values = torch.cat([figures, samples])
        self.arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self.values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self.values.copy_(values, non_blocking=True)
            self.arrived = torch.cuda.Event()
            # The current stream is that of the current device, which may be another one.
            self.arrived.record(torch.cuda.current_stream(values.device))
        else:
            self.values = values

    def read(self) -> StepResult:
        """The result; waits for its step, not for those that were begun since."""
        if self.arrived is not None:
            self.arrived.synchronize()
        total, *rest = self.values.tolist()
        targets = len(self.names)
        parts, (stops, norm) = rest[:targets], rest[targets : targets + 2]
        known, factors, samples = (
            rest[targets + 2 : 2 * targets + 2],
            rest[2 * targets + 2 : 3 * targets + 2],
            rest[3 * targets + 2 :],
        )
        is_applied = math.isfinite(total) and math.isfinite(norm)
        is_overflow = math.isfinite(total) and not is_applied and self.scaler.is_enabled()
        return StepResult(
            step=self.step,
            losses={n: part for n, part, k in zip(self.names, parts, known, strict=True) if k},
            factors=dict(zip(self.names, factors, strict=True)),
            gradient_norm=norm,
            rate=self.rate,
            is_applied=is_applied,
            is_overflow=is_overflow and self.scaler.get_scale() > 1,
            stops=stops > 0,
            sample_losses=samples,
        )
