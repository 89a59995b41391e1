"""Each labelled volume predicted by the fold that did not train on it, and scored as a whole."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean
from typing import Any

from vcmodels import evaluation, inference
from vcmodels.config import Task
from vcmodels.config.folds import fold_task
from vcmodels.data.volumes import TaskVolume, open_volumes
from vcmodels.errors import RefusedError
from vcmodels.inference.members import choose_checkpoints
from vcmodels.reporting import Reporter
from vcmodels.volumes.files import read_json
from vcmodels.workflows.fold_report import Figures

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
