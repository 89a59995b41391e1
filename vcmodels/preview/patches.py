"""Patches of a task, as they are and as transforms make them: exactly what a training would see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vcmodels.augment import AnyAugmentation
from vcmodels.config import Task
from vcmodels.data.dataset import PatchDataset, Place
from vcmodels.data.finishing import finish
from vcmodels.data.folds import fold_volumes
from vcmodels.data.normalization import fit_normalization
from vcmodels.data.patch_cache import load_or_find_patches
from vcmodels.data.planning import open_planned, recorded_task
from vcmodels.geometry.boxes import Box
from vcmodels.reporting import Reporter
from vcmodels.targets import AnyTarget
from vcmodels.targets.base import Spacing

CANDIDATES = 12
"""Patches that are read to choose those which show the most."""
ROOM = 0.4
"""Distance to the border of the region, in lengths of the patch, beyond which more is not better."""


@dataclass(frozen=True)
class Patch:
    """One patch as the network gets it."""

    image: np.ndarray
    """(C, Z, Y, X) float32, normalised."""
    labels: Mapping[str, np.ndarray]
    """(L, Z, Y, X) float32 per target."""
    valid: Mapping[str, np.ndarray]
    """(Z, Y, X) bool per target: where any channel counts."""
    place: Place
    spacing: Spacing
    """Of the volume."""


class PatchSource:
    """Where patches come from: the volumes, patch list and normalisation of a task.

    The statistics for normalisation are of all the labelled data, not of the training split alone.
    """

    def __init__(self, task: Task, seed: int, reporter: Reporter) -> None:
        task, volumes = open_planned(task, reporter, recorded_task(task))
        self.volumes = fold_volumes(task, volumes, reporter)
        # The same place with and without a transform.
        still = task.tr_params.model_copy(update={"patch_jitter": False})
        self.task, self.seed = task.model_copy(update={"tr_params": still}), seed
        self.regions = [volume.region for volume in self.volumes]
        self.rows = load_or_find_patches(task, self.volumes, reporter).rows
        self.normalization = fit_normalization(task, self.volumes, self.regions)

    @property
    def targets(self) -> Mapping[str, AnyTarget]:
        """The targets of the task."""
        return self.task.dataset_config.targets

    def patch(self, row: int, augmentations: Sequence[AnyAugmentation], draw: int = 0) -> Patch:
        """A patch of the list after the transforms of one draw."""
        task = self.task.model_copy(update={"augment": list(augmentations)})
        dataset = PatchDataset(
            task, self.volumes, self.rows[[row]], self.regions, self.normalization,
            seed=self.seed, augment=True,
        )  # fmt: skip
        sample = dataset[draw]
        patch = finish(sample, dataset)
        return Patch(
            patch.image.numpy(),
            {name: label.numpy() for name, label in patch.labels.items()},
            {name: valid.any(0).numpy() for name, valid in patch.valid.items()},
            sample.place,
            sample.spacing,
        )

    def telling_rows(self, count: int) -> list[int]:
        """Patches of the list that show much: labels of every target, and room to turn in.

        What a transform reads stays inside the region, so that a patch near its border would move.
        """
        rng = np.random.default_rng(self.seed)
        rows = rng.permutation(len(self.rows))
        room = np.array([self._room(row) for row in rows])
        chosen = rows[np.argsort(-room, kind="stable")][: max(CANDIDATES, count)].tolist()
        chosen.sort(key=lambda row: -self._content(row))
        return chosen[:count]

    def _room(self, row: int) -> float:
        number, *origin = self.rows[row].tolist()
        region, shape = self.regions[number], self.task.tr_params.patch_size
        low, high = np.array(region.origin), np.array(region.end)
        box = Box((origin[0], origin[1], origin[2]), shape)
        gaps = np.minimum(np.array(box.origin) - low, high - np.array(box.end)) / shape
        return min(float(gaps.min()), ROOM)

    def _content(self, row: int) -> float:
        """How much a patch shows of the target that it shows the least of: 0 to 0.5."""
        patch = self.patch(row, ())
        shown: list[float] = []
        for name, target in self.targets.items():
            share = float((patch.valid[name] & patch.labels[name].any(0)).mean())
            # A mask that is true all over shows as little as one that is empty.
            shown.append(min(share, 1 - share if target.drawn_as == "outlines" else 0.5))
        return min(shown)
