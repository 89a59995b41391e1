"""A run folder: where its files lie, what is in those that others read, and if one is whole."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from vcmodels.errors import CheckpointError, TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.volumes.places import read_json, write_json

TASK, LOG, LOCK = "task.json", "log.jsonl", ".lock"
SYMMETRY = "symmetry.json"
ENVIRONMENT, SPLITS, PATCHES = "environment.json", "splits.json", "patches.json"
CHECKPOINTS, CASES = "checkpoints.json", "cases.csv"
WATCH, SCORED, BESTS = "watch", "scored.json", "best.json"
"""The folder of a watcher in that of a run, what it has scored, and which are the best."""
OWN = (
    TASK, LOG, ENVIRONMENT, SPLITS, PATCHES, CHECKPOINTS, "patches.png", "tensorboard", "preview",
    "validation", "held_out", "evaluation", "wandb", "wandb.json", WATCH, SYMMETRY,
    CASES,
)  # fmt: skip
"""What a run folder holds, next to checkpoints, folds and what was moved aside."""
SCHEMA = 1
"""Of `environment.json`."""
PRUNED = "pruned"
"""What a checkpoint says of the pruning of its network, or of what it was trained from."""

JsonObject = dict[str, Any]


def fold_name(index: int) -> str:
    """The name of the folder of a fold, in the folder of its cross-validation."""
    return f"fold_{index}"


@dataclass(frozen=True)
class Splits:
    """Which part of each volume a run trains on, and which it validates on."""

    volumes: tuple[str, ...]
    """Names, in the order of the task."""
    train_regions: tuple[Box | None, ...]
    """Per volume; None where it has no part in that side."""
    val_regions: tuple[Box | None, ...]
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


@dataclass(frozen=True)
class WatchedBest:
    """The best checkpoint of a run by the figure that a watcher was given."""

    path: Path
    metric: str
    """As `<target>.<figure>`."""
    epoch: int
    value: float

    def __str__(self) -> str:
        """Which one it is, in words."""
        return f"{self.path.name}: epoch {self.epoch}, {self.metric} {self.value:.4g}"


class Run:
    """The files of the run in one folder, which need not exist yet.

    Args:
        folder: the `ckpt_out_base` of the run, or a fold's folder in it.
        name: the `model_name`, with which its checkpoints begin; taken from `task.json` when None.
    """

    def __init__(self, folder: str | Path, name: str | None = None) -> None:
        self.folder = Path(folder)
        self._name = name
        self.lock = self.folder / LOCK
        """The file that a training holds locked."""
        self.log = self.folder / LOG
        """One line of numbers for each epoch."""
        self.patches = self.folder / PATCHES
        """The patch list that is used, unless `cache_file` keeps it elsewhere."""
        self.splits_file = self.folder / SPLITS
        """Where the division into training and validation is kept."""
        self.symmetry = self.folder / SYMMETRY
        """What was found about the symmetry of the training volumes."""
        self.cases = self.folder / CASES
        """The volumes of the run as a table, and which of them validated."""
        self.task_file = self.folder / TASK
        """Where the resolved task is kept."""

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

    def require_best(self) -> Path:
        """The best checkpoint.

        Raises:
            CheckpointError: there is none (yet); says what there is instead.
        """
        if self.best.exists():
            return self.best
        found, remedy = f"holds no {self.best.name}", "train first, or give a checkpoint_path"
        if self.last.exists():
            is_lost = bool(read_log(self.folder))
            found += ", which was there" if is_lost else ": its first epoch has not ended"
            train = "" if is_lost else "train on with the same command, or "
            remedy = f"{train}predict with {self.last} as checkpoint_path"
        raise CheckpointError(str(self.folder), found, remedy)

    def kept(self) -> dict[int, Path]:
        """The numbered checkpoints that the run has written and that are there, the oldest first."""
        found = {epoch: self.numbered(epoch) for epoch in sorted(self.written())}
        return {epoch: path for epoch, path in found.items() if path.is_file()}

    def written(self) -> set[int]:
        """The epochs of which the run has written numbered checkpoints.

        A run from before this was recorded has them among the epochs of its log.
        """
        record = _object_in(self.folder / CHECKPOINTS).get("epochs")
        if record is None:
            record = [line.get("epoch") for line in read_log(self.folder)]
        return _epochs(record)

    def own_entries(self) -> list[Path]:
        """The files and folders in the run folder that a run, or the folds of one, have written."""
        names = {self.name, Run(self.folder).name} - {""}
        numbers = "|".join(map(str, self.written())) or "-"
        models = "|".join(map(re.escape, names)) or "-"
        own = re.compile(
            rf"(?:{models})_(?:{numbers}|(?:last|best)(?:\.previous)?)\.pth|fold_(?:0|[1-9][0-9]*)"
        )
        named = {*OWN, *self.watched_names()}
        return [p for p in self.folder.iterdir() if p.name in named or own.fullmatch(p.name)]

    @property
    def watch(self) -> Path:
        """The folder of a watcher, which scores the checkpoints of the run next to its training."""
        return self.folder / WATCH

    def scored(self) -> set[int] | None:
        """The epochs that a watcher has scored; None where there never was one."""
        record = _object_in(self.watch / SCORED).get("epochs")
        return None if record is None else _epochs(record)

    def watched_names(self) -> list[str]:
        """The names of the files in the run folder that a watcher has written, or was about to."""
        names = _object_in(self.watch / BESTS).get("written")
        return [str(name) for name in cast(list[object], names)] if isinstance(names, list) else []

    def watched_best(self) -> WatchedBest | None:
        """The best checkpoint by a watcher; None without one, or where it has found none."""
        record = _object_in(self.watch / BESTS)
        try:
            first = cast(JsonObject, record["checkpoints"][0])
            path = self.folder / str(first["file"])
            found = WatchedBest(path, record["metric"], int(first["epoch"]), float(first["value"]))
        except (LookupError, TypeError, ValueError):
            return None
        return found if path.exists() else None

    def is_begun(self) -> bool:
        """Whether a training has begun in the folder; a task file is not enough."""
        traces = (self.folder / ENVIRONMENT, self.splits_file)
        return self.task_file.is_file() and any(trace.is_file() for trace in traces)

    def task(self) -> JsonObject:
        """The resolved task as JSON values; {} when it cannot be read."""
        return _object_in(self.task_file)

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


def _epochs(record: object) -> set[int]:
    """The numbers of epochs in a JSON value."""
    epochs = cast(list[object], record) if isinstance(record, list) else []
    return {int(n) for n in epochs if isinstance(n, int | float) and 0 < n < math.inf}


def now() -> str:
    """The time, as text that sorts and that any program reads."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _object_in(path: Path) -> JsonObject:
    """The JSON object in a file; {} when it cannot be read."""
    with suppress(OSError, ValueError, RecursionError):
        document = cast(object, read_json(path))
        if isinstance(document, dict):
            return cast(JsonObject, document)
    return {}


def model_name(document: Mapping[str, Any]) -> str:
    """The `model_name` of a task, with which the names of its checkpoints begin; "" without one.

    Args:
        document: the task as JSON values.
    """
    settings = cast(object, document.get("tr_params"))
    name = cast(JsonObject, settings).get("model_name") if isinstance(settings, dict) else None
    return name if isinstance(name, str) else ""


def read_starts(folder: Path) -> list[JsonObject]:
    """The records, oldest first; [] when there are none that can be read."""
    starts = cast(object, _object_in(folder / ENVIRONMENT).get("starts"))
    every = cast(list[object], starts) if isinstance(starts, list) else []
    return [cast(JsonObject, one) for one in every if isinstance(one, dict)]


def add_start(folder: Path, record: JsonObject) -> None:
    """Append a record, of a training that starts now in the working directory.

    Raises:
        OSError: the file cannot be written.
    """
    start: JsonObject = {"started": now(), "working_directory": str(Path.cwd()), **record}
    _write(folder, [*read_starts(folder), start])


def end_start(folder: Path, outcome: str) -> None:
    """Say in the last record when and how the training ended; a killed one never does.

    Raises:
        OSError: the file cannot be written.
    """
    note_start(folder, {"ended": now(), "outcome": outcome})


def note_start(folder: Path, values: Mapping[str, object]) -> None:
    """Add JSON values to the last record, if there is one.

    Raises:
        OSError: the file cannot be written.
    """
    starts = read_starts(folder)
    if starts:
        starts[-1] |= values
        _write(folder, starts)


def read_log(folder: Path) -> list[JsonObject]:
    """The lines of `log.jsonl`, one an epoch; one that a kill cut short is left out."""
    lines: list[JsonObject] = []
    with suppress(OSError, UnicodeDecodeError), (folder / LOG).open(encoding="utf-8") as log:
        for line in log:
            with suppress(ValueError, RecursionError):
                values = cast(object, json.loads(line))
                if isinstance(values, dict):
                    lines.append(cast(JsonObject, values))
    return lines


def starting_folder(folder: Path) -> Path | None:
    """Where the training was started last: what relative paths in its task count from."""
    starts = read_starts(folder)
    place = starts[-1].get("working_directory") if starts else None
    return Path(place) if isinstance(place, str) and os.path.isabs(place) else None  # noqa: PTH117


def _write(folder: Path, starts: list[JsonObject]) -> None:
    write_json(folder / ENVIRONMENT, {"schema": SCHEMA, "starts": starts})


ABSENT = None
"""What a key that is not there counts as: most keys mean by null that they are left out."""


def differing_keys(tasks: Sequence[Mapping[str, Any]]) -> dict[str, list[object]]:
    """The values of every dotted key that is not the same in all tasks, in the order of the first.

    Args:
        tasks: JSON values. Lists of blocks are compared block by block, other lists as a whole.
    """
    flat = [dict(leaves(task)) for task in tasks]
    keys = dict.fromkeys(key for one in flat for key in one)
    values = {key: [one.get(key, ABSENT) for one in flat] for key in keys}
    return {key: found for key, found in values.items() if any(v != found[0] for v in found)}


def shown(value: object) -> str:
    """A value as JSON, cut short."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:60]}..."


def leaves(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of all that is in a JSON value; lists of blocks are gone through."""
    named: list[tuple[object, object]] = []
    if isinstance(value, Mapping):
        named = list(cast(Mapping[object, object], value).items())
    elif isinstance(value, list) and any(isinstance(i, Mapping) for i in cast(list[object], value)):
        named = list(enumerate(cast(list[object], value)))
    if not named:
        yield key, value
    for name, inner in named:
        yield from leaves(inner, f"{key}.{name}" if key else str(name))


TRAILER = b"vcmodels-sha256:"
"""Followed by the sha256 of all that stands before."""
TRAILER_LENGTH = len(TRAILER) + 32


def seal(path: Path) -> str | None:
    """The sha256 (hex) that a checkpoint ends with; None where there is no file, or no checkpoint.

    Raises:
        OSError: it cannot be read.
    """
    try:
        if not is_sealed(path):
            return None
        with path.open("rb") as file:
            file.seek(len(TRAILER) - TRAILER_LENGTH, os.SEEK_END)
            return file.read().hex()
    except FileNotFoundError:
        return None


def is_sealed(path: Path) -> bool:
    """Whether a file ends as a checkpoint does; one that was cut does not, a flipped bit may.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) < TRAILER_LENGTH:
            return False
        file.seek(-TRAILER_LENGTH, os.SEEK_END)
        return file.read(len(TRAILER)) == TRAILER
