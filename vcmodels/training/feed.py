"""The batches of a run: training patches by step number, validation patches always the same."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from vcmodels.config import Task
from vcmodels.data.dataset import PatchDataset, Place
from vcmodels.data.hard_order import HardOrder, draws_of_step
from vcmodels.data.loader import Batch, batches
from vcmodels.data.workers import let_go
from vcmodels.training.world import World


@dataclass(frozen=True)
class Feed:
    """The two streams of batches."""

    training: PatchDataset
    validation: PatchDataset | None
    task: Task
    device: torch.device
    world: World
    """The processes that share each step and each validation."""

    def train_batches(self, first_step: int, steps: int) -> Iterator[list[Batch]]:
        """The micro-batches of `steps` optimiser steps from `first_step` on: one list a step.

        In a world of several processes each gets its share of the samples of every step.
        """
        per_step = draws_of_step(self.task)
        groups: list[range] = []
        for step in range(first_step, first_step + steps):
            draws = range(step * per_step, (step + 1) * per_step)
            groups += self._groups(self.world.share(draws))
        stream = self._batches(self.training, groups)
        while micro := list(islice(stream, len(groups) // max(steps, 1))):
            yield micro

    def validation_batches(self) -> Iterator[Batch]:
        """This process' share of the validation patches, in the same order every time."""
        if self.validation is not None:
            mine = self.world.share(range(len(self.validation)))
            yield from self._batches(self.validation, self._groups(mine))

    def close(self) -> None:
        """End the processes that read patches."""
        for dataset in (self.training, self.validation):
            if dataset is not None:
                let_go(dataset)

    def places(self, step: int) -> list[Place]:
        """Where the samples of a step are from, those of all processes."""
        per_step = draws_of_step(self.task)
        return [self.training.place(draw) for draw in range(step * per_step, (step + 1) * per_step)]

    @property
    def hard(self) -> HardOrder | None:
        """The order of the training patches when losses have a say in it."""
        return self.training.order if isinstance(self.training.order, HardOrder) else None

    def take_losses(self, step: int, losses: Sequence[float]) -> None:
        """Keep the losses of the samples of a step, in their order, for the epochs to come."""
        if self.hard is not None:
            self.hard.take(step * draws_of_step(self.task), losses)

    def end_epoch(self) -> None:
        """Order the next epoch by what is known now."""
        if self.hard is not None:
            self.hard.end_epoch()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it: nothing, unless losses have a say."""
        return {"hard": self.hard.state()} if self.hard is not None else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint on the same patches."""
        if self.hard is not None and "hard" in state:
            self.hard.restore(state["hard"])

    def _groups(self, draws: range) -> list[range]:
        """The draws of each batch."""
        size = self.task.tr_params.batch_size
        return [draws[first : first + size] for first in range(0, len(draws), size)]

    def _batches(self, dataset: PatchDataset, groups: Sequence[range]) -> Iterator[Batch]:
        workers = self.task.tr_params.num_dataloader_workers
        return batches(dataset, groups, workers=workers, device=self.device)
