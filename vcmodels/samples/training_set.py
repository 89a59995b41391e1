"""The samples of a task: what a training draws from, one of them, and what it validates on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vcmodels.config import Task
from vcmodels.config.load import has_own_augment
from vcmodels.data.normalization import Normalization, fit_normalization
from vcmodels.geometry.boxes import Box
from vcmodels.patches.cache import load_or_find_patches
from vcmodels.patches.find import PatchCriteria
from vcmodels.patches.index_build import Indexer
from vcmodels.patches.resolve import Resolved, resolve
from vcmodels.patches.split import split_patches
from vcmodels.reporting import Reporter, Silent
from vcmodels.samples.dataset import (
    PatchDataset,
    Sample,
    Variation,
    cached_volumes,
    make_sample,
    worker_budget,
)
from vcmodels.samples.order import (
    draw_weights,
    draws_of_epoch,
    hard_share,
    make_jitter,
    make_order,
    volume_weights,
)
from vcmodels.symmetry.follow import findings_of, followed


def sample(task: Task, index: int = 0) -> Sample:
    """One training sample as the network sees it: image, labels and valid masks.

    Args:
        task: as it was loaded. Its patch list is found and cached, if it is not yet.
        index: of the draw, any number from 0 on.

    Raises:
        RefusedError: the volumes do not fit the task, or no patch qualifies.
        RunError: a value that is not finite or not allowed.
    """
    dataset = training_set(resolve(task))
    return make_sample(dataset, index, dataset.row(index))


def training_set(resolved: Resolved, reporter: Reporter | None = None) -> PatchDataset:
    """The patches that a new training of the task draws from, augmented as there.

    Args:
        resolved: the task and its volumes.
        reporter: shows what is found.

    Raises:
        TaskError: no patch qualifies, or the volumes cannot be divided.
    """
    task, volumes = resolved.task, resolved.volumes
    patches = load_or_find_patches(task, volumes, reporter)
    split = split_patches(task.tr_params, volumes, patches, reporter)
    regions = split.train_regions
    if not has_own_augment(task):
        findings = findings_of(resolved, split.train, regions)
        task = followed(task, findings, volumes, reporter or Silent())
        resolved = replace(resolved, task=task)
    fitted = fit_normalization(task.dataset_config.normalization, volumes, regions, reporter)
    return augmented_set(resolved, split.train, regions, fitted)


def augmented_set(
    resolved: Resolved,
    rows: np.ndarray,
    regions: Sequence[Box | None],
    normalization: Normalization,
    *,
    seed: int | None = None,
) -> PatchDataset:
    """Patches as a training draws them.

    Args:
        resolved: the task and its volumes.
        rows: (n, 4) patches to draw from: volume number, z, y, x.
        regions: per volume, what may be read.
        normalization: as fitted on the training regions.
        seed: of all randomness; the task's when None.
    """
    task, volumes = resolved.task, resolved.volumes
    settings, config = task.tr_params, task.dataset_config
    seed = settings.seed if seed is None else seed
    criteria, indexer = PatchCriteria.of(task), Indexer.of(task, Silent())
    base = volume_weights(volumes, rows, config.balance)
    weights = draw_weights(config.sampling, base, volumes, rows, config.targets, criteria, indexer)
    variation = Variation(
        seed,
        make_order(seed, weights, hard_share(config.sampling), draws_of_epoch(settings)),
        make_jitter(settings.patch_jitter, volumes, criteria, indexer),
        tuple(task.augmentations),
        settings.image_interpolation,
    )
    cached = cached_volumes(volumes, worker_budget(settings, volumes))
    return PatchDataset(
        cached, rows, regions, config.targets, settings.patch_size, normalization, variation
    )


def plain_set(
    resolved: Resolved,
    rows: np.ndarray,
    regions: Sequence[Box | None],
    normalization: Normalization,
) -> PatchDataset:
    """The same patches as they are, row after row, for a validation, which reads each once."""
    targets, patch = resolved.task.dataset_config.targets, resolved.task.tr_params.patch_size
    return PatchDataset(resolved.volumes, rows, regions, targets, patch, normalization)
