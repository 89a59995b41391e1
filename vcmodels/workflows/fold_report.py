"""The figures of a cross-validation: each fold's, their mean, and held-out volumes scored whole."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from vcmodels import evaluation, inference
from vcmodels.config import Task
from vcmodels.config.folds import fold_name, fold_task
from vcmodels.data.volumes import TaskVolume, open_volumes
from vcmodels.errors import RefusedError
from vcmodels.inference.ensemble import choose_checkpoints
from vcmodels.reporting import Reporter
from vcmodels.runs.records import read_log
from vcmodels.runs.survey import read_status
from vcmodels.training.other_folds import begun_folds
from vcmodels.volumes.places import read_json

VALIDATION = "val/"
NOT_BEGUN = "not begun"


@dataclass(frozen=True)
class Fold:
    """How one fold stands, and its validation in two of its epochs."""

    index: int
    folder: Path
    state: str = NOT_BEGUN
    """As `vcmodels runs` has it, or that it was not begun."""
    reason: str = ""
    epoch: int = 0
    max_epoch: int | None = None
    best_epoch: int | None = None
    """Of the checkpoint that inference uses."""
    best: Mapping[str, float] | None = None
    """Values of that epoch by curve, such as `val/dice_sheet`."""
    last: Mapping[str, float] | None = None
    """Those of the last epoch."""

    @property
    def is_complete(self) -> bool:
        """Whether its training has ended for good."""
        return self.state == "complete"


@dataclass(frozen=True)
class Figures:
    """The values of one metric over the folds, in their order; None where a fold has none."""

    values: tuple[float | None, ...]

    @cached_property
    def known(self) -> list[float]:
        """The values that there are."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float | None:
        """Of the folds that have a value."""
        return fmean(self.known) if self.known else None

    @property
    def sd(self) -> float | None:
        """Sample standard deviation (n - 1) over the folds; None for fewer than two."""
        return stdev(self.known) if len(self.known) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        values = {"folds": list(self.values), "count": len(self.known)}
        return values | {"mean": self.mean, "sd": self.sd}


@dataclass(frozen=True)
class Row:
    """One metric of one target, at each fold's best epoch and at its last."""

    target: str
    """Empty for what is about all targets together."""
    metric: str
    best: Figures
    last: Figures


@dataclass(frozen=True)
class FoldReport:
    """A whole cross-validation."""

    folder: Path
    folds: tuple[Fold, ...]
    rows: tuple[Row, ...]

    def notes(self) -> list[str]:
        """A line for each fold whose figures are not final, or not there."""
        lines: list[str] = []
        for fold in self.folds:
            if fold.state == NOT_BEGUN:
                lines.append(f"fold {fold.index}: not begun")
            elif not fold.is_complete or fold.reason:
                why = f": {fold.reason}" if fold.reason else ""
                epochs = f"epoch {fold.epoch} of {fold.max_epoch}"
                lines.append(f"fold {fold.index}: {fold.state}, {epochs}{why}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        hidden = ("best", "last", "folder")
        folds = [
            {k: v for k, v in vars(f).items() if k not in hidden} | {"folder": str(f.folder)}
            for f in self.folds
        ]
        targets: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            figures = {"best": row.best.to_json(), "last": row.last.to_json()}
            targets.setdefault(row.target, {})[row.metric] = figures
        return {"folder": str(self.folder), "folds": folds, "targets": targets}


def report_folds(folder: Path, task: Task | None = None) -> FoldReport:
    """Read the figures of all folds in the folder of a cross-validation.

    Args:
        folder: the `ckpt_out_base` that its folds have in common.
        task: for how many folds there are to be; else those that were begun tell.

    Raises:
        RefusedError: no fold was begun there.
    """
    begun = {index: (place, one) for index, place, one in begun_folds(folder)}
    if not begun:
        remedy = "train them first: train.py TASK --folds 5"
        raise RefusedError(str(folder), "no fold of a cross-validation was begun there", remedy)
    _, first = next(iter(begun.values()))
    wanted = task.tr_params.folds if task and task.tr_params.folds else first.tr_params.folds
    assert wanted is not None
    folds = tuple(
        _read_fold(index, *begun[index])
        if index in begun
        else Fold(index, folder / fold_name(index))
        for index in range(max(wanted.count, *(i + 1 for i in begun)))
    )
    return FoldReport(folder, folds, tuple(_rows(folds, first.dataset_config.targets)))


def _read_fold(index: int, folder: Path, task: Task) -> Fold:
    run, by_epoch = read_status(folder), {int(line["epoch"]): line for line in read_log(folder)}
    best, last = run.best_epoch, max(by_epoch, default=None)
    return Fold(
        index,
        folder,
        run.state,
        run.reason,
        run.epoch,
        task.tr_params.max_epoch,
        best,
        by_epoch.get(best) if best is not None else None,
        by_epoch.get(last) if last is not None else None,
    )


def _rows(folds: Sequence[Fold], targets: Iterable[str]) -> list[Row]:
    """A row for each curve of the validation that any fold has, by target."""
    lines = [line for fold in folds for line in (fold.best, fold.last) if line]
    curves = dict.fromkeys(key for line in lines for key in line if key.startswith(VALIDATION))
    found: list[Row] = []
    for curve in curves:
        target, metric = _divided(curve.removeprefix(VALIDATION), targets)
        values = [[_value(line, curve) for line in (f.best, f.last)] for f in folds]
        best, last = zip(*values, strict=True)
        found.append(Row(target, metric, Figures(best), Figures(last)))
    order = ["", *targets]
    return sorted(found, key=lambda row: order.index(row.target))


def _divided(name: str, targets: Iterable[str]) -> tuple[str, str]:
    """Target and metric of `<metric>_<target>`; both may hold underscores."""
    for target in sorted(targets, key=len, reverse=True):
        if name.endswith(f"_{target}"):
            return target, name.removesuffix(f"_{target}")
    return "", name


def _value(line: Mapping[str, float] | None, curve: str) -> float | None:
    value = line.get(curve) if line else None
    return value if value is not None and isfinite(value) else None


Region = list[tuple[int, int]]


@dataclass(frozen=True)
class Scored:
    """What one fold reaches on a part that it held out."""

    fold: int
    volume: str
    region: Region
    """[start, end) along (z, y, x)."""
    scores: Mapping[str, Mapping[str, float]]
    """By target and metric."""


def score_held_out(
    task: Task, reporter: Reporter, should_stop: Callable[[], bool] = lambda: False
) -> list[Scored] | None:
    """Predict and score what each fold held out, or continue doing so.

    Predictions go into `held_out/<volume>` of each run folder, with `/` as `%2F`, and are made as
    `inference_params` say.

    Args:
        task: of all folds, each of which has a checkpoint.
        reporter: told the progress and the scores.
        should_stop: asked after every batch.

    Returns:
        The scores, None after a stop.

    Raises:
        RefusedError: a fold has no checkpoint or no split.
        RunError: a prediction failed.
    """
    folds = task.tr_params.folds
    if folds is None or folds.index is not None:
        raise RefusedError("tr_params.folds", "this is no whole cross-validation", "give --folds K")
    volumes = {volume.name: volume for volume in open_volumes(task)}
    found: list[Scored] = []
    for index in range(folds.count):
        one = fold_task(task, index)
        checkpoint = choose_checkpoints(_without_checkpoint(one))[0]
        for name, region in _held_out(one):
            if name not in volumes:
                what = f"fold {index} validates on {name}, which the task does not have"
                raise RefusedError(str(one.run_dir), what, "restore the volumes, or --restart")
            reporter.say(f"fold {index}: {name}")
            part = prediction_task(one, volumes[name], region)
            report = inference.run_inference(
                part, checkpoint=str(checkpoint), reporter=reporter, should_stop=should_stop
            )
            if not report.is_through:
                return None
            scores = evaluation.evaluate(part, bbox=region, reporter=reporter)
            found.append(Scored(index, name, region, scores))
    return found


def _without_checkpoint(task: Task) -> Task:
    """The task, predicting with its own best."""
    params = task.inference_params.model_copy(update={"checkpoint_path": None})
    return task.model_copy(update={"inference_params": params})


def prediction_task(task: Task, volume: TaskVolume, region: Region) -> Task:
    """The task of a fold that predicts a region of one of the labelled volumes."""
    # Escaped, so that `a/b` and `a_b` do not meet in one folder.
    name = volume.name.replace("%", "%25").replace("/", "%2F")
    folder = task.run_dir / "held_out" / name
    changed = {
        "input_path": [array.location for array in volume.inputs],
        "output_dir": str(folder),
        "bbox": tuple(region),
        "level": 0,
        "pyramid": 0,
    }
    params = task.inference_params.model_copy(update=changed)
    return task.model_copy(update={"inference_params": params})


def figures_of(scored: Sequence[Scored], count: int) -> dict[tuple[str, str], Figures]:
    """By target and metric, of each fold the mean over its volumes."""
    every = dict.fromkeys(
        (target, metric)
        for one in scored
        for target, values in one.scores.items()
        for metric in values
    )
    return {
        key: Figures(tuple(_mean_of_fold(scored, index, *key) for index in range(count)))
        for key in every
    }


def scores_to_json(
    scored: Sequence[Scored], figures: Mapping[tuple[str, str], Figures]
) -> dict[str, Any]:
    """As JSON values: each part that was scored, and the means over the folds."""
    targets: dict[str, dict[str, Any]] = {}
    for (target, metric), row in figures.items():
        targets.setdefault(target, {})[metric] = row.to_json()
    parts = [
        {
            **vars(one),
            "scores": {
                target: {key: value if isfinite(value) else None for key, value in values.items()}
                for target, values in one.scores.items()
            },
        }
        for one in scored
    ]
    return {"parts": parts, "targets": targets}


def _mean_of_fold(scored: Sequence[Scored], index: int, target: str, metric: str) -> float | None:
    found = [one.scores.get(target, {}).get(metric) for one in scored if one.fold == index]
    values = [value for value in found if value is not None and isfinite(value)]
    return fmean(values) if values else None


def _held_out(task: Task) -> Iterator[tuple[str, Region]]:
    """Name and region of what a fold validates on, as its split says."""
    path = task.run_dir / "splits.json"
    try:
        saved = read_json(path)
        pairs = list(zip(saved["volumes"], saved["val_regions"], strict=True))
    except (OSError, ValueError, LookupError, TypeError) as error:
        found = f"cannot be read ({type(error).__name__})"
        raise RefusedError(str(path), found, "train this fold first") from error
    for name, region in pairs:
        if region is not None:
            yield name, [(start, end) for start, end in region]
