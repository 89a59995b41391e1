"""The batches of a run: training patches by step number, validation patches always the same."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from vcmodels.config import Task
from vcmodels.data.dataset import PatchDataset, Sample
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
        settings = self.task.tr_params
        per_step = settings.batch_size * settings.gradient_accumulation
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

    def _finish(self, samples: Sequence[Sample]) -> Batch:
        return finish_batch(samples, self.training.targets, self.training.patch, self.device)
