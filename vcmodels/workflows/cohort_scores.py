"""Checkpoints on cohorts: what a fine-tuning gains on the new one, and forgets of the old one."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config import Task, load_task
from vcmodels.config.load import fill_prepare
from vcmodels.config.task import volume_metrics
from vcmodels.data.selection import choose_volumes
from vcmodels.data.volumes import open_volumes
from vcmodels.devices import choose_device
from vcmodels.errors import RefusedError, TaskError
from vcmodels.evaluation.report import Report
from vcmodels.evaluation.task import VOLUMES, about_task
from vcmodels.inference.ensemble import find_checkpoints, load_networks
from vcmodels.inference.request import require_same_inputs
from vcmodels.reporting import Reporter
from vcmodels.results import file_name
from vcmodels.runs.run import Run
from vcmodels.volumes.places import read_json, write_json
from vcmodels.workflows.cascade import find_regions
from vcmodels.workflows.fold_report import Figures
from vcmodels.workflows.whole_volumes import PredictedPart, score_network

_PREDICTIONS = "predictions"


@dataclass(frozen=True)
class HeldOutCohort:
    """What one task holds out."""

    name: str
    task: Task
    parts: tuple[PredictedPart, ...]

    @classmethod
    def of(
        cls, path: str, overrides: Sequence[str], network: TrainedNetwork, reporter: Reporter
    ) -> "HeldOutCohort":
        """The volumes that `evaluation.volumes` of a task chooses; what its run held out when null.

        They are made as the network learnt them, as `prepare` and `region` of its task said.

        Raises:
            RefusedError: the task is not valid, holds out nothing, what it does has no label, or the
                network was trained on volumes that were made otherwise.
            RunError: a network that finds regions failed.
        """
        task = load_task(path, overrides).task
        task = fill_prepare(task, network.task.dataset_config.prepare)
        require_same_inputs(task.dataset_config, [network])
        find_regions(task, reporter, [network.path])
        volumes = open_volumes(task, reporter)
        run = Run(task.run_dir, task.tr_params.model_name)
        choice = task.evaluation.volumes or "val"
        chosen = choose_volumes(volumes, choice, run, key=VOLUMES, reporter=reporter)
        every = [PredictedPart(one.volume, one.box, one.split) for one in chosen]
        parts = tuple(p for p in every if p.has_label(task.dataset_config.targets))
        if not parts:
            raise TaskError(VOLUMES, f"none of those of {path} has a label", "choose others")
        return cls(Path(path).stem, task, parts)


@dataclass(frozen=True)
class CohortScore:
    """What one checkpoint reaches on one cohort."""

    checkpoint: str
    cohort: str
    targets: dict[str, dict[str, Figures]]
    """By target and figure: its values over the volumes."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "checkpoint": self.checkpoint,
            "cohort": self.cohort,
            "targets": {
                target: {name: list(one.values) for name, one in figures.items()}
                for target, figures in self.targets.items()
            },
        }


def score_cohorts(
    checkpoints: Sequence[str],
    tasks: Sequence[str],
    overrides: Sequence[str],
    output: Path,
    *,
    reporter: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[CohortScore] | None:
    """Predict and score what each task holds out with each checkpoint, or continue; None after a stop.

    Predictions are made as each task says, and deleted once they are scored.

    Args:
        checkpoints: files, or run folders for the best in each.
        tasks: task files.
        overrides: for all of them.
        output: folder for what is scored.
        reporter: gets the progress.
        should_stop: asked several times a second.

    Raises:
        RefusedError: a task, a volume or a checkpoint does not fit.
        RunError: a prediction failed; the same call continues.
    """
    _require_names(tasks)
    networks = {name: _one_network(name) for name in checkpoints}
    pairs = [
        (name, network, HeldOutCohort.of(path, overrides, network, reporter))
        for name, network in networks.items()
        for path in tasks
    ]
    found: list[CohortScore] = []
    for name, network, cohort in pairs:
        score = _scored(name, network, cohort, output, reporter, should_stop)
        if score is None:
            return None
        found.append(score)
    return found


def _require_names(tasks: Sequence[str]) -> None:
    """Cohorts are told apart by the names of their task files.

    Raises:
        RefusedError: two have one name.
    """
    known: dict[str, str] = {}
    for path in tasks:
        if (first := known.setdefault(Path(path).stem, path)) != path or tasks.count(path) > 1:
            found = (
                f"{first} and {path} have one name" if first != path else f"{path} is given twice"
            )
            raise RefusedError("--on", found, "give task files of different names")


def _one_network(named: str) -> TrainedNetwork:
    paths = find_checkpoints(named)
    if len(paths) > 1:
        found = f"{named} holds {len(paths)} folds, which are no one checkpoint"
        raise RefusedError("CHECKPOINT", found, "name one of them")
    return load_networks(paths)[0]


def _scored(
    name: str,
    network: TrainedNetwork,
    cohort: HeldOutCohort,
    output: Path,
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> CohortScore | None:
    """The score of a checkpoint on a cohort; that of before where nothing has changed."""
    place = output / f"{file_name(name)}-on-{cohort.name}.json"
    identity = _identity(network, cohort)
    with suppress(OSError, ValueError, KeyError, TypeError):
        before = read_json(place)
        if before["identity"] == identity:
            return _of_json(before["score"])
    reporter.say(f"{name} on {cohort.name}: {len(cohort.parts)} volumes")
    task = cohort.task
    report = score_network(
        task,
        network,
        cohort.parts,
        volume_metrics(task.dataset_config.targets, task.evaluation),
        folder=output / _PREDICTIONS,
        device=choose_device(task.inference_params.device, "inference_params.device"),
        about=about_task(task),
        reporter=reporter,
        should_stop=should_stop,
    )
    if report is None:
        return None
    score = CohortScore(name, cohort.name, _figures(report))
    output.mkdir(parents=True, exist_ok=True)
    write_json(place, {"identity": identity, "score": score.to_json()})
    return score


def _identity(network: TrainedNetwork, cohort: HeldOutCohort) -> str:
    """Of all that determines the figures."""
    task = cohort.task.to_json()
    parts = [
        [one.volume.name, one.box.origin, one.box.shape, [v.fingerprint() for v in arrays]]
        for one in cohort.parts
        for arrays in ([*one.volume.inputs, *one.volume.labels.values()],)
    ]
    sections = [task[name] for name in ("dataset_config", "inference_params", "evaluation")]
    text = json.dumps([network.sha256, *sections, parts])
    return hashlib.sha256(text.encode()).hexdigest()


def _figures(report: Report) -> dict[str, dict[str, Figures]]:
    found: dict[str, dict[str, Figures]] = {}
    for target in report.targets:
        rows = [v.targets[target].figures for v in report.volumes if target in v.targets]
        names = dict.fromkeys(name for row in rows for name in row)
        found[target] = {
            name: Figures(tuple(_finite(row.get(name)) for row in rows)) for name in names
        }
    return found


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def _of_json(stored: dict[str, Any]) -> CohortScore:
    targets = {
        target: {name: Figures(tuple(values)) for name, values in figures.items()}
        for target, figures in stored["targets"].items()
    }
    return CohortScore(stored["checkpoint"], stored["cohort"], targets)
