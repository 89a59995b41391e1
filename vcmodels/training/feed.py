"""The batches of a run: training patches by step number, validation patches always the same."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from vcmodels.config import TrainingParams
from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import CheckpointError, TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.patches.class_counts import count_classes
from vcmodels.patches.index_build import Indexer
from vcmodels.reporting import Reporter
from vcmodels.samples.dataset import PatchDataset, PatchOrigin
from vcmodels.samples.loader import Batch, batches
from vcmodels.samples.order import LossWeightedOrder, draws_of_step
from vcmodels.samples.workers import stop_workers
from vcmodels.targets import AnyTarget, MulticlassTarget
from vcmodels.targets.stored import LabelError
from vcmodels.training.world import World

ClassCounts = dict[str, list[int]]
"""Voxels of each class, by target."""


def count_or_recall(
    targets: Mapping[str, AnyTarget],
    volumes: Sequence[TaskVolume],
    regions: Sequence[Box | None],
    saved: Mapping[str, list[int]],
    indexer: Indexer,
    reporter: Reporter,
) -> ClassCounts:
    """The counts of every target with class weights: those of the run, or else counted now.

    Args:
        targets: of the task, by name.
        volumes: all volumes of the task.
        regions: per volume, the training region.
        saved: what the checkpoint has that is continued: its weights must not change.
        indexer: gives the label indexes, which know most of the counts.
        reporter: shows that voxels are counted.

    Raises:
        TaskError: a value is no class, or weights are to be counted where no voxel counts.
        ChunkError: a label chunk cannot be read.
    """
    counts: ClassCounts = {}
    for name, target in _needing(targets).items():
        if len(saved.get(name, ())) == len(target.values) and any(saved[name]):
            counts[name] = list(saved[name])
            continue
        reporter.say(f"{name}: counting the voxels of each class")
        key = f"dataset_config.targets.{name}"
        try:
            counts[name] = count_classes(volumes, regions, name, target, indexer).tolist()
        except LabelError as error:
            found = f"a label holds {error.value}, which is no class"
            raise TaskError(key, found, error.remedy) from error
        if target.needs_counts and not any(counts[name]):
            found = "no voxel of the training regions is labelled, so nothing can be counted"
            raise TaskError(f"{key}.loss", found, 'give "class_weights" as numbers')
    return counts


def weighted_targets(
    targets: Mapping[str, AnyTarget], counts: Mapping[str, list[int]], reporter: Reporter
) -> dict[str, MulticlassTarget]:
    """The targets with class weights as they are learnt with; those that are counted are reported."""
    found: dict[str, MulticlassTarget] = {}
    for name, target in _needing(targets).items():
        voxels = np.array(counts[name])
        if target.needs_counts:
            target = target.with_counts(voxels)
            reporter.say(f"{name}: class weights {_shown_weights(target, counts[name])}")
        found[name] = target.scaled_to(voxels)
    return found


def _shown_weights(target: MulticlassTarget, counts: Sequence[int]) -> str:
    """In words, the weight and the voxels of each class."""
    given = (term.options.get("class_weights") for term in target.losses)
    weights = next(weights for weights in given if weights)
    return ", ".join(
        f"{value}: {weight:g} ({voxels} voxels)"
        for value, weight, voxels in zip(target.values, weights, counts, strict=True)
    )


def _needing(targets: Mapping[str, AnyTarget]) -> dict[str, MulticlassTarget]:
    return {
        name: target
        for name, target in targets.items()
        if isinstance(target, MulticlassTarget) and target.weighs_classes
    }


@dataclass
class Feed:
    """The two streams of batches."""

    training: PatchDataset
    validation: PatchDataset | None
    settings: TrainingParams
    device: torch.device
    world: World
    """The processes that share each step and each validation."""
    validation_batch: int = 0
    """Patches of a validation batch: as in training, or fewer where these did not fit into memory."""

    def __post_init__(self) -> None:
        self.validation_batch = self.validation_batch or self.settings.batch_size

    @property
    def draws_of_step(self) -> int:
        """Samples that one optimiser step takes, in all processes together."""
        return draws_of_step(self.settings)

    def train_batches(self, first_step: int, steps: int) -> Iterator[list[Batch]]:
        """The micro-batches of `steps` optimiser steps from `first_step` on: one list a step.

        In a world of several processes each gets its share of the samples of every step.
        """
        per_step = self.draws_of_step
        groups: list[range] = []
        for step in range(first_step, first_step + steps):
            draws = range(step * per_step, (step + 1) * per_step)
            groups += in_groups(self.world.share(draws), self.settings.batch_size)
        stream = self._batches(self.training, groups)
        while micro := list(islice(stream, len(groups) // max(steps, 1))):
            yield micro

    @property
    def validation_steps(self) -> float:
        """How many steps of training take as many patches as a validation of this process."""
        count = len(self.validation) if self.validation is not None else 0
        return count / self.draws_of_step

    def validation_batches(self) -> Iterator[Batch]:
        """This process' share of the validation patches, in the same order every time."""
        if self.validation is not None:
            mine = self.world.share(range(len(self.validation)))
            groups = in_groups(mine, self.validation_batch)
            yield from self._batches(self.validation, groups)

    def close(self) -> None:
        """End the processes that read patches."""
        for dataset in (self.training, self.validation):
            if dataset is not None:
                stop_workers(dataset)

    def places(self, step: int) -> list[PatchOrigin]:
        """Where the samples of a step are from, those of all processes."""
        per_step = self.draws_of_step
        return [self.training.place(draw) for draw in range(step * per_step, (step + 1) * per_step)]

    @property
    def hard(self) -> LossWeightedOrder | None:
        """The order of the training patches when losses have a say in it."""
        return self.training.order if isinstance(self.training.order, LossWeightedOrder) else None

    def take_losses(self, step: int, losses: Sequence[float]) -> None:
        """Keep the losses of the samples of a step, in their order, for the epochs to come."""
        if self.hard is not None:
            self.hard.take(step * self.draws_of_step, losses)

    def end_epoch(self) -> None:
        """Order the next epoch by what is known now."""
        if self.hard is not None:
            self.hard.end_epoch()

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it: nothing, unless losses have a say."""
        return {"hard": self.hard.state()} if self.hard is not None else {}

    def restore(self, state: Mapping[str, Any], source: str) -> None:
        """Continue from the state of a checkpoint on the same patches.

        Raises:
            CheckpointError: its losses are not of these patches.
        """
        if self.hard is not None and "hard" in state:
            if not _are_losses(state["hard"], len(self.hard.weights)):
                found = f"hard is not of {len(self.hard.weights)} patches"
                raise CheckpointError(source, found, "use another checkpoint")
            self.hard.restore(state["hard"])

    def _batches(self, dataset: PatchDataset, groups: Sequence[range]) -> Iterator[Batch]:
        workers = self.settings.num_dataloader_workers
        return batches(dataset, groups, workers=workers, device=self.device)


def in_groups(draws: range, size: int) -> list[range]:
    """The draws in groups of `size`, the last of what is left."""
    return [draws[first : first + size] for first in range(0, len(draws), size)]


def _are_losses(state: Mapping[str, torch.Tensor], count: int) -> bool:
    """Whether a `LossWeightedOrder` over so many rows can take up a state."""
    if state.keys() != {"losses", "new_rows", "new_losses"}:
        return False
    losses, rows, new = state["losses"], state["new_rows"], state["new_losses"]
    return (
        (losses.shape, losses.dtype) == ((count,), torch.float32)
        and rows.dtype == torch.int64
        and new.dtype == torch.float32
        and rows.ndim == 1
        and rows.shape == new.shape
        and bool(((rows >= 0) & (rows < count)).all())
    )
