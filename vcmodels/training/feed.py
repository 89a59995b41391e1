"""The batches of a run: training patches by step number, validation patches always the same."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vcmodels.config import Task
from vcmodels.data.dataset import PatchDataset, Sample
from vcmodels.data.hard_order import HardOrder, draws_of_step
from vcmodels.data.loader import Batch, batches, finish_batch


@dataclass(frozen=True)
class Feed:
    """The two streams of batches."""

    training: PatchDataset
    validation: PatchDataset | None
    task: Task
    device: torch.device

    def train_batches(self, first_step: int, steps: int) -> Iterator[list[Batch]]:
        """The micro-batches of `steps` optimiser steps from `first_step` on: one list a step."""
        settings, per_step = self.task.tr_params, draws_of_step(self.task)
        micro: list[Batch] = []
        for samples in batches(
            self.training,
            batch_size=settings.batch_size,
            first_draw=first_step * per_step,
            draws=steps * per_step,
            workers=settings.num_dataloader_workers,
        ):
            micro.append(self._finish(samples))
            if len(micro) == settings.gradient_accumulation:
                yield micro
                micro = []

    def validation_batches(self) -> Iterator[Batch]:
        """All validation patches, in the same order every time."""
        if self.validation is None:
            return
        settings = self.task.tr_params
        for samples in batches(
            self.validation,
            batch_size=settings.batch_size,
            first_draw=0,
            draws=len(self.validation),
            workers=settings.num_dataloader_workers,
        ):
            yield self._finish(samples)

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

    def _finish(self, samples: Sequence[Sample]) -> Batch:
        return finish_batch(samples, self.training.targets, self.training.patch, self.device)
