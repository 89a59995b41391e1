"""What a run finds out about its volumes before it learns from them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vcmodels.config import Task
from vcmodels.data.dataset import PatchDataset
from vcmodels.data.normalization import Normalization, fit_normalization
from vcmodels.data.patch_cache import document, fingerprint, load_or_find_patches
from vcmodels.data.split import Split, load_or_split
from vcmodels.data.volumes import TaskVolume
from vcmodels.reporting import Reporter
from vcmodels.training.class_weights import count_or_recall
from vcmodels.training.origin import Origin
from vcmodels.training.run_folder import RunFolder


@dataclass(frozen=True)
class Findings:
    """Which patches there are, and the statistics of those to train on."""

    split: Split
    normalization: Normalization
    class_counts: dict[str, list[int]]
    """Voxels of each class, for the targets whose loss asks for them."""

    def facts(self) -> dict[str, Any]:
        """As they go into a checkpoint."""
        return {
            "normalization": self.normalization.to_dict(),
            "split": self.split.to_dict(),
            "class_counts": self.class_counts,
        }


def find(run: RunFolder, volumes: list[TaskVolume], origin: Origin, reporter: Reporter) -> Findings:
    """Find and divide the patches, and measure the volumes; what a checkpoint knows is taken from it.

    The run folder keeps the patches and how they are divided.

    Raises:
        RefusedError: no patch qualifies, the volumes cannot be divided, or labels do not fit.
    """
    task = run.task
    patches = load_or_find_patches(task, volumes, reporter)
    run.keep_patches(lambda: document(patches, fingerprint(task, volumes), volumes))
    split = load_or_split(task, volumes, patches, reporter)
    reporter.say(f"{len(split.train)} training and {len(split.val)} validation patches")
    source, regions = origin.source, split.train_regions
    # The weights are used to these intensities.
    if source is not None and source.state["in_channels"] == volumes[0].channels:
        normalization = Normalization.from_dict(source.state["normalization"])
    else:
        normalization = fit_normalization(task, volumes, regions)
    saved = {} if origin.continued is None else origin.continued.state.get("class_counts", {})
    counts = count_or_recall(task, volumes, regions, saved, reporter)
    return Findings(split, normalization, counts)


def datasets(
    task: Task, volumes: list[TaskVolume], findings: Findings
) -> tuple[PatchDataset, PatchDataset | None]:
    """The training patches, and as many validation patches as one validation looks at."""
    settings, split = task.tr_params, findings.split
    normalization = findings.normalization
    training = PatchDataset(
        task,
        volumes,
        split.train,
        split.train_regions,
        normalization,
        seed=settings.seed,
        augment=True,
    )
    if not len(split.val):
        return training, None
    wanted = min(settings.max_val_steps_per_epoch * settings.batch_size, len(split.val))
    rows = split.val[np.linspace(0, len(split.val) - 1, wanted).astype(np.int64)]
    validation = PatchDataset(
        task, volumes, rows, split.val_regions, normalization, seed=settings.seed, augment=False
    )
    return training, validation
