"""How the losses of several targets are added: by fixed weights, or by learned ones as well."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

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
