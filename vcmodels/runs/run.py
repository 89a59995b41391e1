"""A run folder: where the files of a run lie, and what is in those that others read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.runs.records import (
    LOCK,
    LOG,
    PATCHES,
    SPLITS,
    TASK,
    JsonObject,
    is_run,
    model_name,
    read_task,
)
from vcmodels.volumes.places import read_json, write_json

Regions = tuple[Box | None, ...]
"""A part of each volume, in the order of the task; None where a volume has none."""


def fold_name(index: int) -> str:
    """The folder of a fold, inside that of the cross-validation."""
    return f"fold_{index}"


@dataclass(frozen=True)
class Splits:
    """Which part of each volume a run trains on, and which it validates on."""

    volumes: tuple[str, ...]
    """Names, in the order of the task."""
    train_regions: Regions
    val_regions: Regions
    document: Mapping[str, Any]
    """All of the file, as JSON values: these three, and what determined them."""

    @property
    def is_random(self) -> bool:
        """Whether patches were divided, not volumes: training and validation share voxels."""
        return self.document.get("split_mode") == "random"

    def held_out(self) -> dict[str, Box]:
        """What is validated on, by the name of the volume."""
        named = zip(self.volumes, self.val_regions, strict=True)
        return {name: box for name, box in named if box is not None}


class Run:
    """The files of the run in one folder, which need not exist yet.

    Args:
        folder: the `ckpt_out_base` of the run, or a fold's folder in it.
        name: the `model_name`, with which its checkpoints begin; taken from `task.json` when None.
    """

    def __init__(self, folder: str | Path, name: str | None = None) -> None:
        self.folder = Path(folder)
        self._name = name

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @cached_property
    def name(self) -> str:
        """The `model_name`; "" when the run has no task that can be read."""
        return model_name(self.task()) if self._name is None else self._name

    @property
    def best(self) -> Path:
        """The best checkpoint so far, by `best_metric`."""
        return self.folder / f"{self.name}_best.pth"

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / f"{self.name}_last.pth"

    def numbered(self, epoch: int) -> Path:
        """The checkpoint that is kept of an epoch."""
        return self.folder / f"{self.name}_{epoch}.pth"

    def kept(self) -> dict[int, Path]:
        """The numbered checkpoints that are there, by epoch, the oldest first."""
        pattern = re.compile(re.escape(self.name) + r"_(\d+)\.pth")
        found = {
            int(match[1]): path
            for path in self.folder.iterdir()
            if (match := pattern.fullmatch(path.name)) is not None
        }
        return dict(sorted(found.items()))

    @property
    def lock(self) -> Path:
        """The file that a training holds locked."""
        return self.folder / LOCK

    @property
    def log(self) -> Path:
        """One line of numbers for each epoch."""
        return self.folder / LOG

    @property
    def patches(self) -> Path:
        """The patch list that is used, unless `cache_file` keeps it elsewhere."""
        return self.folder / PATCHES

    @property
    def splits_file(self) -> Path:
        """Where the division into training and validation is kept."""
        return self.folder / SPLITS

    @property
    def task_file(self) -> Path:
        """Where the resolved task is kept."""
        return self.folder / TASK

    def is_begun(self) -> bool:
        """Whether a training has begun in the folder; a task file is not enough."""
        return is_run(self.folder)

    def task(self) -> JsonObject:
        """The resolved task as JSON values; {} when it cannot be read."""
        return read_task(self.folder)

    def fold(self, index: int) -> "Run":
        """The run of one fold of the cross-validation in this folder, begun or not."""
        return Run(self.folder / fold_name(index), self._name)

    def folds(self) -> dict[int, "Run"]:
        """The folds whose folders are there, by number, in their order."""
        names = [place.name for place in self.folder.glob("fold_*") if place.is_dir()]
        numbers = [re.fullmatch(r"fold_(0|[1-9][0-9]*)", name) for name in names]
        return {index: self.fold(index) for index in sorted(int(n[1]) for n in numbers if n)}

    def splits(self) -> Splits | None:
        """The division of the volumes, None before there is one.

        Raises:
            TaskError: the file is damaged.
        """
        try:
            saved = cast(object, read_json(self.splits_file))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged(type(error).__name__) from error
        if not isinstance(saved, dict):
            raise self._damaged("not an object")
        document = cast(JsonObject, saved)
        try:
            volumes = tuple(str(name) for name in document["volumes"])
            train, val = (
                tuple(_box(pairs) for pairs in document[f"{side}_regions"])
                for side in ("train", "val")
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged("its regions") from error
        if not len(volumes) == len(train) == len(val):
            raise self._damaged("its regions")
        return Splits(volumes, train, val, document)

    def write_splits(self, document: Mapping[str, Any]) -> None:
        """Keep a division: JSON values with `volumes`, `train_regions` and `val_regions`.

        Raises:
            OSError: the file cannot be written.
        """
        write_json(self.splits_file, dict(document))

    def _damaged(self, why: str) -> TaskError:
        remedy = f"use another ckpt_out_base, --restart, or delete {self.splits_file}"
        return TaskError(str(self.splits_file), f"damaged ({why})", remedy)


def _box(pairs: list[list[int]] | None) -> Box | None:
    if pairs is None:
        return None
    (z0, z1), (y0, y1), (x0, x1) = pairs
    return Box.between((z0, y0, x0), (z1, y1, x1))
