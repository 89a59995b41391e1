"""Which patch is drawn when, if those with a high loss shall come more often.

Losses change from step to step, and a resumed run must draw as if it had never stopped. So the order
of an epoch is a function of (seed, draw number, losses known at its start) alone; what is measured
on the way waits for the next epoch, and a checkpoint holds both.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vcmodels.config import Task
from vcmodels.data.sampling import DrawOrder

PRESSURE = 100.0
"""How much more often the hardest patch is drawn than the easiest, in the share of hard draws."""


def hard_share(task: Task) -> float:
    """The share of the draws that prefers hard patches."""
    sampling = task.dataset_config.sampling
    return sampling.hard if sampling is not None else 0.0


def draws_of_step(task: Task) -> int:
    """Samples that one optimiser step takes."""
    return task.tr_params.batch_size * task.tr_params.gradient_accumulation


def draws_of_epoch(task: Task) -> int:
    """Samples that one epoch takes."""
    return task.tr_params.max_steps_per_epoch * draws_of_step(task)


class HardOrder:
    """A `DrawOrder` for each epoch, with weights that follow the last loss of each patch.

    Args:
        seed: of the run.
        weights: (n,) of the rows while no loss is known, above 0 somewhere.
        share: of the draws that prefers hard patches, in [0, 1].
        length: draws in an epoch.
    """

    def __init__(self, seed: int, weights: np.ndarray, share: float, length: int) -> None:
        self.seed, self.weights, self.share, self.length = seed, weights, share, length
        self.losses = np.full(len(weights), np.nan, np.float32)
        """(n,) the last of each row when this epoch began, NaN where none is known."""
        self._new: dict[int, float] = {}
        self._order = self._make_order()

    def row(self, draw: int) -> int:
        """The row of a draw of this epoch."""
        return self._order.row(draw)

    def take(self, first_draw: int, losses: Sequence[float]) -> None:
        """Note the losses of consecutive draws of this epoch; those not finite tell nothing."""
        for draw, loss in enumerate(losses, first_draw):
            if np.isfinite(loss):
                self._new[self.row(draw)] = loss

    def end_epoch(self) -> None:
        """From now on draw by the losses that were noted, too."""
        self.losses[list(self._new)] = list(self._new.values())
        self._new = {}
        self._order = self._make_order()

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs: 4 bytes a row, 12 for each that this epoch has drawn."""
        return {
            "losses": torch.from_numpy(self.losses.copy()),
            "new_rows": torch.tensor(list(self._new), dtype=torch.int64),
            "new_losses": torch.tensor(list(self._new.values()), dtype=torch.float32),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the state of an order over the same rows."""
        assert len(state["losses"]) == len(self.weights), "the losses of other rows"
        self.losses = state["losses"].numpy().copy()
        rows, losses = state["new_rows"].tolist(), state["new_losses"].tolist()
        self._new = dict(zip(rows, losses, strict=True))
        self._order = self._make_order()

    def _make_order(self) -> DrawOrder:
        factors = 1 - self.share + self.share * hardness(self.losses, self.weights)
        return DrawOrder(self.seed, self.weights * factors, self.length)


def hardness(losses: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How many times as often as by its weight each row is drawn in the share of hard draws.

    Online batch selection (Loshchilov & Hutter 2015, arXiv:1511.06343): exponential in the rank of
    the last loss, so that neither its scale nor one outlier matters. Rows without a known loss are
    drawn by their weight; so are, together, those with one.

    Args:
        losses: (n,) float32, NaN where unknown.
        weights: (n,) 0 or more.

    Returns:
        (n,) float64 above 0, of weighted mean 1.
    """
    factors = np.ones(len(losses))
    known = np.isfinite(losses) & (weights > 0)
    if known.any():
        values, ordered = losses[known], np.sort(losses[known])
        # Equal losses share the mean of their ranks.
        ranks = np.searchsorted(ordered, values) + np.searchsorted(ordered, values, "right") - 1
        raised = PRESSURE ** (ranks / 2 / max(len(values) - 1, 1))
        factors[known] = raised * weights[known].sum() / (weights[known] * raised).sum()
    return factors
