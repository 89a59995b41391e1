"""The figures of a cross-validation: each fold's, their mean, and held-out volumes scored whole."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from vcmodels.config import Task
from vcmodels.config.train_params import FoldConfig
from vcmodels.data.task_volume import TaskVolume
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import RefusedError
from vcmodels.evaluation.evaluate import ScoredRegion, wanted_targets
from vcmodels.evaluation.report import Report
from vcmodels.evaluation.task import VOLUMES, ScoredPart, about_task, score_parts
from vcmodels.evaluation.written import require_folder
from vcmodels.geometry.boxes import Box
from vcmodels.inference.many import input_keys
from vcmodels.inference.predict import predict_request
from vcmodels.inference.predictor import load_predictor
from vcmodels.inference.request import Request, RunOptions, with_section
from vcmodels.reporting import Reporter
from vcmodels.results import file_name, result_root
from vcmodels.runs.run import Run, read_log
from vcmodels.runs.survey import read_status
from vcmodels.training.other_folds import begun_folds

VALIDATION = "val/"
NOT_BEGUN = "not begun"


@dataclass(frozen=True)
class FoldStatus:
    """How one fold stands, and its validation in two of its epochs."""

    index: int
    folder: Path
    state: str = NOT_BEGUN
    """As `vcmodels runs` shows it, or that it was not begun."""
    reason: str = ""
    epoch: int = 0
    max_epoch: int | None = None
    best_epoch: int | None = None
    """Of the checkpoint that inference uses."""
    best: Mapping[str, float] | None = None
    """Values of that epoch by curve, such as `val/dice_sheet`."""
    last: Mapping[str, float] | None = None
    """Those of the last epoch."""


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
    folds: tuple[FoldStatus, ...]
    rows: tuple[Row, ...]

    def notes(self) -> list[str]:
        """A line for each fold whose figures are not final, or not there."""
        lines: list[str] = []
        for fold in self.folds:
            if fold.state == NOT_BEGUN:
                lines.append(f"fold {fold.index}: not begun")
            elif fold.state != "complete" or fold.reason:
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


def report_folds(folder: Path, planned: FoldConfig | None = None) -> FoldReport:
    """The figures of all folds in the folder of a cross-validation.

    Args:
        folder: the `ckpt_out_base` that its folds have in common.
        planned: how many folds there are to be; by default as the first that was begun says.

    Raises:
        RefusedError: no fold was begun there.
    """
    begun = {index: one for index, _, one in begun_folds(folder)}
    if not begun:
        remedy = "train them first: train.py TASK --folds 5"
        raise RefusedError(str(folder), "no fold of a cross-validation was begun there", remedy)
    first = next(iter(begun.values()))
    planned = planned or first.tr_params.folds
    assert planned is not None
    count = max(planned.count, *(index + 1 for index in begun))
    places = [Run(folder).fold(index).folder for index in range(count)]
    folds = tuple(
        _read_fold(index, place) if index in begun else FoldStatus(index, place)
        for index, place in enumerate(places)
    )
    return FoldReport(folder, folds, tuple(_rows(folds, first.dataset_config.targets)))


def _read_fold(index: int, folder: Path) -> FoldStatus:
    run, by_epoch = read_status(folder), {int(line["epoch"]): line for line in read_log(folder)}
    best, last = run.best_epoch, max(by_epoch, default=None)
    return FoldStatus(
        index,
        folder,
        run.state,
        run.reason,
        run.epoch,
        run.max_epoch,
        best,
        by_epoch.get(best) if best is not None else None,
        by_epoch.get(last) if last is not None else None,
    )


def _rows(folds: Sequence[FoldStatus], targets: Iterable[str]) -> list[Row]:
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


@dataclass(frozen=True)
class HeldOutPart:
    """A part of a volume that one fold does not train on."""

    fold: int
    run: Run
    """Of the fold."""
    volume: TaskVolume
    box: Box

    @property
    def folder(self) -> Path:
        """Where its prediction lies: `held_out/<volume>` in the run, with `/` as `%2F`."""
        return self.run.folder / "held_out" / file_name(self.volume.name)

    def scored(self, model: str, others: "Sequence[HeldOutPart]") -> ScoredPart:
        """What is scored of it, as a group of its fold.

        Args:
            model: the `model_name` of the task.
            others: all parts; slabs of one volume are called after their fold, too.
        """
        name, group = self.volume.name, f"fold {self.fold}"
        if [other.volume.name for other in others].count(name) > 1:
            name = f"{name} ({group})"
        region = ScoredRegion(self.volume, self.box)
        return ScoredPart(region, result_root(str(self.folder), model), name, group, "val")


@dataclass(frozen=True)
class HeldOutScore:
    """What one fold reaches on a part that it held out."""

    fold: int
    volume: str
    box: Box
    scores: Mapping[str, Mapping[str, float]]
    """By target and metric."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values; what is not finite is null."""
        region = self.box.pairs
        scores = {
            target: {key: value if isfinite(value) else None for key, value in values.items()}
            for target, values in self.scores.items()
        }
        return {"fold": self.fold, "volume": self.volume, "region": region, "scores": scores}


def score_held_out(
    task: Task,
    reporter: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
    output: Path | None = None,
) -> list[HeldOutScore] | None:
    """Predict and score what each fold held out, or continue doing so.

    Predictions are made as `inference_params` say, and kept in the run folder of each fold.

    Args:
        task: of all folds, each of which has a checkpoint.
        reporter: gets the progress and the scores.
        should_stop: asked after every batch, and several times a second while it scores.
        output: keep a report of all folds in this folder, as from `evaluate`; each is a group.

    Returns:
        The scores, None after a stop.

    Raises:
        RefusedError: a fold has no checkpoint or no split; nothing was predicted.
        RunError: a prediction failed.
    """
    folds, name = task.tr_params.folds, task.tr_params.model_name
    if folds is None or folds.index is not None:
        raise RefusedError("tr_params.folds", "this is no whole cross-validation", "give --folds K")
    if output is not None:
        require_folder("--output", output)
    if (choice := task.evaluation.volumes) not in (None, "val"):
        reporter.say(
            f"note: {VOLUMES}, {json.dumps(choice)}, is not used: each fold is scored on what it "
            "held out; vcmodels evaluate scores others"
        )
    run, volumes = Run(task.run_dir, name), open_volumes(task)
    targets = wanted_targets(task.dataset_config.targets, task.inference_params.output_targets)
    parts = held_out_parts([run.fold(index) for index in range(folds.count)], volumes)
    for part in parts:
        reporter.say(f"fold {part.fold}: {part.volume.name}")
        if not _predict(task, part, reporter, should_stop):
            return None
    scores = score_parts(
        [part.scored(name, parts) for part in parts], targets, task.evaluation,
        output=output, reporter=reporter, about=about_task(task), should_stop=should_stop,
    )  # fmt: skip
    if scores is None:
        return None
    return _held_out_scores(parts, name, scores.report)


def _held_out_scores(
    parts: Sequence[HeldOutPart], model: str, report: Report
) -> list[HeldOutScore]:
    """The figures of each part that has labels."""
    known = {volume.name: volume.targets for volume in report.volumes}
    found: list[HeldOutScore] = []
    for part in parts:
        targets = known.get(part.scored(model, parts).name, {})
        scores = {name: one.figures for name, one in targets.items()}
        if scores:
            found.append(HeldOutScore(part.fold, part.volume.name, part.box, scores))
    return found


def held_out_parts(folds: Sequence[Run], volumes: Sequence[TaskVolume]) -> list[HeldOutPart]:
    """What each fold validates on, as its split says.

    Raises:
        RefusedError: a fold has no checkpoint, no split, or one of other volumes.
    """
    known = {volume.name: volume for volume in volumes}
    parts: list[HeldOutPart] = []
    for index, run in enumerate(folds):
        run.require_best()
        splits = run.splits()
        if splits is None:
            raise RefusedError(str(run.splits_file), "is not there", "train this fold first")
        for name, box in splits.held_out().items():
            if name not in known:
                found = f"fold {index} validates on {name}, which the task does not have"
                raise RefusedError(str(run.folder), found, "restore the volumes, or --restart")
            parts.append(HeldOutPart(index, run, known[name], box))
    return parts


def _predict(
    task: Task, part: HeldOutPart, reporter: Reporter, should_stop: Callable[[], bool]
) -> bool:
    """Predict a held-out part with the best checkpoint of its fold; false after a stop."""
    params = task.inference_params.changed(
        **input_keys(task, part.volume),
        volumes=None,
        output_dir=str(part.folder),
        bbox=tuple(zip(part.box.origin, part.box.end, strict=True)),
        pyramid=0,
    )
    request = Request(
        networks=load_predictor(part.run.folder).networks,
        inputs=part.volume.inputs,
        output=result_root(params.output_dir, task.tr_params.model_name),
        params=params,
        targets=task.dataset_config.targets,
        record=with_section(part.run.task(), params),
    )
    options = RunOptions(reporter=reporter, should_stop=should_stop)
    report = predict_request(request, options)
    return report.is_through


def figures_of(scored: Sequence[HeldOutScore], count: int) -> dict[tuple[str, str], Figures]:
    """The means over the volumes of each fold, by target and metric."""
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
    scored: Sequence[HeldOutScore], figures: Mapping[tuple[str, str], Figures]
) -> dict[str, Any]:
    """Each part that was scored, and the figures over the folds, as JSON values."""
    targets: dict[str, dict[str, Any]] = {}
    for (target, metric), row in figures.items():
        targets.setdefault(target, {})[metric] = row.to_json()
    return {"parts": [one.to_json() for one in scored], "targets": targets}


def _mean_of_fold(
    scored: Sequence[HeldOutScore], index: int, target: str, metric: str
) -> float | None:
    found = [one.scores.get(target, {}).get(metric) for one in scored if one.fold == index]
    values = [value for value in found if value is not None and isfinite(value)]
    return fmean(values) if values else None
