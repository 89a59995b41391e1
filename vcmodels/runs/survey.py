"""Runs found below a folder, and how each of them stands; no weights are read."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from vcmodels.runs.run import (
    LOCK,
    TASK,
    JsonObject,
    Run,
    is_sealed,
    model_name,
    read_log,
    read_starts,
)
from vcmodels.volumes.locks import is_locked

RunState = Literal["training", "complete", "stopped", "failed", "killed", "damaged"]

_OF_ZARR = {"zarr.json", ".zarray", ".zgroup"}
_NOT_RUNS = ("before-", ".")  # of earlier runs that were moved aside; hidden


@dataclass(frozen=True)
class Figure:
    """The main metric of a target, in the epoch of the best checkpoint and in the last one."""

    metric: str
    best: float | None
    last: float | None


@dataclass(frozen=True)
class RunStatus:
    """How a run stands, as its small files say."""

    folder: Path
    name: str
    """The `model_name` of its task."""
    state: RunState
    reason: str
    """Why it failed or is damaged, in words; else empty."""
    epoch: int
    """Epochs that have ended."""
    max_epoch: int | None
    best_epoch: int | None
    """Of the best checkpoint, as the log says; None before an epoch has ended."""
    best_loss: float | None
    last_loss: float | None
    figures: Mapping[str, Figure]
    """By target."""
    minutes: float | None
    """Of training and validation, in epochs that have ended."""
    patches_per_second: float | None
    """In the last epoch, by the wall clock."""
    device: str
    changed: datetime
    """Of its newest file."""
    task: Mapping[str, Any]
    """The resolved task; {} when it cannot be read."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values, without the task."""
        values = {key: value for key, value in vars(self).items() if key != "task"}
        figures = {name: vars(figure) for name, figure in self.figures.items()}
        place = {"folder": str(self.folder), "changed": self.changed.isoformat(timespec="seconds")}
        return values | place | {"figures": figures}


def find_runs(folder: Path) -> Iterator[Path]:
    """The run folders at or below `folder`; volumes and what was moved aside are not searched."""
    for place, folders, files in os.walk(folder):
        if _OF_ZARR.intersection(files):
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not f.startswith(_NOT_RUNS))
        if Run(place).is_begun():
            yield Path(place)


def read_status(folder: Path) -> RunStatus:
    """How the run in a folder stands."""
    task, log, starts = Run(folder).task(), read_log(folder), read_starts(folder)
    settings = _block(task.get("tr_params"))
    name, last = model_name(task), log[-1] if log else {}
    epoch, most = int(last.get("epoch", 0)), settings.get("max_epoch")
    start = starts[-1] if starts else {}
    best = _best(log, _block(start.get("best")))
    state, reason = _state(folder, name, start, epoch, most or math.inf)
    targets = list(_block(_block(task.get("dataset_config")).get("targets")))
    minutes = [line["speed/epoch_minutes"] for line in log if "speed/epoch_minutes" in line]
    return RunStatus(
        folder,
        name,
        state,
        reason,
        epoch,
        most,
        int(best["epoch"]) if best else None,
        best.get("val/loss"),
        last.get("val/loss"),
        _figures(targets, _block(start.get("metrics")), best, last),
        sum(minutes) if minutes else None,
        last.get("speed/patches_per_s"),
        _device(start),
        _newest(folder),
        task,
    )


def _state(
    folder: Path, name: str, start: JsonObject, epoch: int, most: float
) -> tuple[RunState, str]:
    """The state of a run, and the reason for it."""
    if is_locked(folder / LOCK):
        return "training", ""
    outcome = str(start.get("outcome", ""))
    # The last checkpoint is written before the first line of the log, the best one after it.
    if damage := _damage(folder, name, epoch=max(epoch, 2 * (outcome == "complete"))):
        return "damaged", damage
    run = Run(folder, name)
    if outcome == "complete" or (epoch >= most and run.last.exists() and run.best.exists()):
        return "complete", ""
    if outcome.startswith("failed"):
        return "failed", outcome.removeprefix("failed").lstrip(": ")
    if "started" in start and not outcome:
        return "killed", "ended without a word: a kill, or the machine went down"
    return "stopped", ""


def _damage(folder: Path, name: str, *, epoch: int) -> str:
    """What is wrong with the files; a missing checkpoint is, once it was saved in some epoch."""
    if not name:
        return f"{TASK} cannot be read"
    run = Run(folder, name)
    for path, since in ((run.last, 1), (run.best, 2)):
        try:
            if not is_sealed(path):
                return f"{path.name} is cut short"
        except FileNotFoundError:
            if epoch >= since:
                return f"{path.name} is gone"
        except OSError as error:
            return f"{path.name} cannot be read ({error.strerror})"
    return ""


def _best(log: Sequence[JsonObject], rule: Mapping[str, Any]) -> JsonObject:
    """The log of the epoch of the best checkpoint: of the newest one while its curve has no value."""
    curve, sign = rule.get("curve", "val/loss"), -1 if rule.get("sense") == "max" else 1
    known = [line for line in log if curve in line] or log[-1:]
    return min(known, key=lambda line: sign * line.get(curve, 0.0), default={})


def _figures(
    targets: Sequence[str], metrics: Mapping[str, Any], best: JsonObject, last: JsonObject
) -> dict[str, Figure]:
    """The main metrics; in a run that does not name them, the first one of each target."""
    found: dict[str, Figure] = {}
    for name in targets:
        ending = f"_{name}"
        tags = [
            tag.removeprefix("val/").removesuffix(ending)
            for tag in last
            if tag.startswith("val/") and tag.endswith(ending) and not tag.startswith("val/loss_")
        ]
        metric = metrics.get(name) or (tags[0] if tags else None)
        if metric is not None:
            tag = f"val/{metric}_{name}"
            found[name] = Figure(metric, best.get(tag), last.get(tag))
    return found


def _block(value: object) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], value) if isinstance(value, dict) else {}


def _device(start: JsonObject) -> str:
    device, processes = str(start.get("device", "")), start.get("processes", 1)
    return device if processes == 1 else f"{processes} x {device}"


def _newest(folder: Path) -> datetime:
    times = [0.0]
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # a temporary file of the training
            times += [entry.stat().st_mtime] if entry.is_file() else []
    return datetime.fromtimestamp(max(times), UTC)
