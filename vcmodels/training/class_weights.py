"""Class weights that follow from the voxels of each class in the training regions."""

from collections.abc import Mapping, Sequence

import numpy as np

from vcmodels.config import Task
from vcmodels.data.class_counts import count_classes
from vcmodels.data.indexer import Indexer
from vcmodels.data.volumes import TaskVolume
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.reporting import Reporter
from vcmodels.targets import MulticlassTarget
from vcmodels.targets.labels import LabelError

Counts = dict[str, list[int]]
"""Voxels of each class, by target."""


def count_or_recall(
    task: Task,
    volumes: Sequence[TaskVolume],
    regions: Sequence[Box | None],
    saved: Mapping[str, list[int]],
    reporter: Reporter,
) -> Counts:
    """The counts of every target that needs them: those of the run, or else counted now.

    Args:
        task: the resolved task.
        volumes: all volumes of the task.
        regions: per volume, the training region.
        saved: what the checkpoint has that is continued: its weights must not change.
        reporter: told that voxels are counted.

    Raises:
        TaskError: a label has no voxel that counts, or a value that is no class.
        ChunkError: a label chunk cannot be read.
    """
    counts: Counts = {}
    indexer = Indexer.of(task, reporter)
    for name, target in _needing(task).items():
        if name in saved:
            counts[name] = list(saved[name])
            continue
        reporter.say(f"{name}: counting the voxels of each class")
        key = f"dataset_config.targets.{name}"
        try:
            counts[name] = count_classes(volumes, regions, name, target, indexer).tolist()
        except LabelError as error:
            found = f"a label holds {error.value}, which is no class"
            raise TaskError(key, found, error.remedy) from error
        if not any(counts[name]):
            found = "no voxel of the training regions is labelled, so nothing can be counted"
            raise TaskError(f"{key}.loss", found, 'give "class_weights" as numbers')
    return counts


def weighted_targets(
    task: Task, counts: Mapping[str, list[int]], reporter: Reporter
) -> dict[str, MulticlassTarget]:
    """The targets that need counts, with the weights that follow from them, which are told."""
    targets = {name: t.with_counts(np.array(counts[name])) for name, t in _needing(task).items()}
    for name, target in targets.items():
        weights = next(
            term.options["class_weights"]
            for term in target.losses
            if term.options.get("class_weights")
        )
        shown = ", ".join(
            f"{value}: {weight:g} ({voxels} voxels)"
            for value, weight, voxels in zip(target.values, weights, counts[name], strict=True)
        )
        reporter.say(f"{name}: class weights {shown}")
    return targets


def _needing(task: Task) -> dict[str, MulticlassTarget]:
    return {
        name: target
        for name, target in task.dataset_config.targets.items()
        if isinstance(target, MulticlassTarget) and target.needs_counts
    }
