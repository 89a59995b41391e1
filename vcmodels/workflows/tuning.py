"""Values of post-processing, chosen on what was held out of training.

The best network predicts the validation volumes once. Then each combination of values that a step may
take makes its output there, which is scored against the label; the best stays. The values stand in
the run's `tuned.json`, with all that was tried, and in its best checkpoint, where `infer` finds them.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, nan
from pathlib import Path
from typing import Any

from vcmodels.blockwise import Crew, Engine, Threads
from vcmodels.blockwise.engines import ShouldStop
from vcmodels.checkpoint import TrainedNetwork, build_network, load_checkpoint, save_checkpoint
from vcmodels.config import Task
from vcmodels.data.selection import choose_volumes
from vcmodels.data.volumes import open_volumes
from vcmodels.devices import choose_device
from vcmodels.errors import RunError, TaskError
from vcmodels.evaluation.evaluate import pair_of
from vcmodels.evaluation.objects import ignored_ids, scored_ids
from vcmodels.evaluation.scoring import ScoredTarget, ScoredVolume, score_volumes
from vcmodels.inference.predict import predict_request
from vcmodels.inference.request import RunOptions
from vcmodels.metrics.base import Sense
from vcmodels.metrics.choice import default_metrics
from vcmodels.metrics.registry import fitting_metrics, volume_senses
from vcmodels.postprocess import AnyStep, kinds_of_outputs
from vcmodels.postprocess.base import IDS
from vcmodels.postprocess.tuning import (
    TUNED,
    Trial,
    TunedStep,
    TunedValues,
    as_asked,
    candidates,
    chosen_values,
    read_tuned,
    tuned_keys,
    with_tuned,
    with_values,
)
from vcmodels.reporting import Reporter, Silent
from vcmodels.runs.run import Run
from vcmodels.targets import AnyTarget
from vcmodels.volumes import Place, open_volume
from vcmodels.volumes.places import read_json, write_json
from vcmodels.workflows.ground import ground_of_result
from vcmodels.workflows.postprocess import postprocess
from vcmodels.workflows.whole_volumes import PredictedPart

TRIALS = "trials.json"
"""In the folder: what came out so far."""
FOLDER = "tuning"
"""In the run folder, until the values are chosen: predictions of the validation volumes."""


def needs_tuning(task: Task) -> bool:
    """Whether a step of the task has a key that is to be chosen."""
    return any(tuned_keys(step) for step in task.postprocess)


def tune(
    task: Task,
    *,
    engine: Engine | None = None,
    reporter: Reporter | None = None,
    should_stop: ShouldStop = lambda: False,
) -> tuple[TunedStep, ...] | None:
    """Choose the values of all tuned keys of a trained task; None after a stop.

    What was chosen for these weights and steps is read, not chosen again; after a stop or a kill the
    same call continues.

    Args:
        task: trained; its validation volumes have labels.
        engine: who works on blocks; the threads of this process when None.
        reporter: gets what is tried and chosen.
        should_stop: asked several times a second.

    Raises:
        TaskError: nothing is to be chosen, or there is no label or no such figure to choose by.
        VolumeError: nothing is trained yet.
        RunError: a volume cannot be predicted.
    """
    reporter = reporter or Silent()
    if not needs_tuning(task):
        found = 'no key of a step is "tuned"'
        raise TaskError("postprocess", found, 'give one, as in "threshold": "tuned"')
    run = Run(task.run_dir, task.tr_params.model_name)
    checkpoint = load_checkpoint(run.require_best())
    network, weights = build_network(checkpoint), _digest_of(checkpoint.state)
    kept = _read_tuned(run, task, weights)
    if kept is None:
        parts = _parts(task, run, reporter)
        place = run.folder / FOLDER
        tuner = Tuner(task, weights, parts, place, engine or Threads(), reporter, should_stop)
        kept = tuner.tune(network)
        if kept is None:
            return None
        document = {"weights": weights, "steps": [one.to_json() for one in kept]}
        write_json(run.folder / TUNED, {**document, "wanted": as_asked(task.postprocess)})
        shutil.rmtree(run.folder / FOLDER)
    _keep_in_checkpoint(
        run, weights, {"wanted": as_asked(task.postprocess), "values": chosen_values(kept)}
    )
    for one in kept:
        said = ", ".join(f"{key} {value:g}" for key, value in one.best.values.items())
        reporter.say(f"tuned {one.output}: {said} ({one.figure} {one.best.score:.4f})")
    return kept


def _keep_in_checkpoint(run: Run, weights: str, tuned: Mapping[str, Any]) -> None:
    """Add what was chosen to the best checkpoint, which predicts the same as before.

    Raises:
        RunError: it has other weights by now.
    """
    now = load_checkpoint(run.require_best())
    if _digest_of(now.state) != weights:
        found = "has other weights than when the choice began"
        raise RunError(
            str(run.best), found, "run the same command again, once the training is over"
        )
    if now.state.get("tuned") != tuned:
        first = now.state.get("untuned_sha256", now.sha256)
        state = {**now.state, "tuned": dict(tuned), "untuned_sha256": first}
        save_checkpoint(run.best, state, keep_previous=False)


def steps_of_task(task: Task) -> tuple[AnyStep, ...]:
    """The steps of a task, with what was chosen for its run in the place of tuned keys.

    Raises:
        TaskError: nothing was chosen for a tuned key.
    """
    if not needs_tuning(task):
        return task.postprocess
    run = Run(task.run_dir, task.tr_params.model_name)
    found = read_json(run.folder / TUNED) if (run.folder / TUNED).exists() else {}
    is_of_these = found.get("wanted") == as_asked(task.postprocess)
    values = chosen_values(read_tuned(run.folder)) if is_of_these else {}
    return with_tuned(task.postprocess, values)


def _read_tuned(run: Run, task: Task, weights: str) -> tuple[TunedStep, ...] | None:
    """What was chosen for these weights and steps before; None where that is not known."""
    path = run.folder / TUNED
    if not path.exists():
        return None
    found = read_json(path)
    wanted = as_asked(task.postprocess)
    is_same = found.get("weights") == weights and found.get("wanted") == wanted
    return read_tuned(run.folder) if is_same else None


def _digest_of(state: Mapping[str, Any]) -> str:
    """A sha256 of the weights that predict, whatever else the file holds."""
    digest = hashlib.sha256()
    for name, tensor in (state.get("ema") or state["model"]).items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _parts(task: Task, run: Run, reporter: Reporter) -> list[PredictedPart]:
    chosen = choose_volumes(open_volumes(task), "val", run, key="postprocess", reporter=reporter)
    return [PredictedPart(one.volume, one.box, one.split) for one in chosen]


@dataclass(frozen=True)
class Judge:
    """How the output of one step is scored."""

    output: str
    label: str
    figure: str
    sense: Sense
    target: AnyTarget | None
    """Of which a mask is a prediction; None for ids."""
    ignored: tuple[int, ...] = ()

    @classmethod
    def of(cls, step: AnyStep, number: int, task: Task, kind: str) -> "Judge":
        """How a step of a task is scored.

        Raises:
            TaskError: there is no such label, or no such figure.
        """
        key, targets = f"postprocess.{number}", task.dataset_config.targets
        labels = {name for one in task.dataset_config.volume_paths for name in one.labels}
        if kind == IDS:
            label, target = step.tune_by or step.output, None
            known = volume_senses(default_metrics(fitting_metrics("instances")))
            figure = step.tune_for or "voi"
            ignored = ignored_ids(label, targets.values())
        else:
            label = step.tune_by or next(iter(step.sources.values()))
            target, labels = targets.get(label), set(targets)
            known = {} if target is None else _figures_of(target)
            figure, ignored = step.tune_for or "dice", ()
        if label not in labels:
            found = f'there is no label "{label}" to choose by'
            raise TaskError(f"{key}.tune_by", found, f"give one of {', '.join(sorted(labels))}")
        if figure not in known:
            found = f'"{figure}" is no figure of {step.output}'
            raise TaskError(f"{key}.tune_for", found, f"give one of {', '.join(known)}")
        return cls(step.output, label, figure, known[figure], target, ignored)

    def can_score(self, part: PredictedPart) -> bool:
        """Whether a part has the label, and no network made it."""
        if self.target is not None:
            return part.region.label(self.label, self.target) is not None
        volume = part.volume
        return self.label in volume.labels and self.label not in volume.pseudo

    def score(self, part: PredictedPart, root: Place, engine: Engine) -> float:
        """The figure of the output on a part that it can score; NaN where nothing counts."""
        volume = ScoredVolume(part.volume.name, str(root), (self._scored(part, root),))
        report = score_volumes([volume], engine=engine)
        assert report is not None, "nothing asked it to stop"
        return report.volumes[0].targets[self.output].figures[self.figure]

    def _scored(self, part: PredictedPart, root: Place) -> ScoredTarget:
        place, region = root / self.output, part.region
        found = open_volume(str(place / "0"), key=str(place), channels="any")
        if self.target is None:
            label = region.volume.labels[self.label]
            return scored_ids(self.output, found, label, region, self.ignored)
        read = region.label(self.label, self.target)
        assert read is not None, "can_score says so"
        metrics = default_metrics(self.target.stored_metrics)
        return ScoredTarget(self.output, pair_of(read, found, part.box), metrics)

    def worst(self) -> float:
        """What no score is worse than."""
        return inf if self.sense == "min" else -inf

    def is_beaten(self, total: float, done: int, count: int, best: float) -> bool:
        """Whether a mean over `count` volumes can no longer be better than `best`.

        `total` is the sum of the first `done` scores; the others may still be perfect: 0 or 1.
        """
        if self.sense == "min":
            return total / count > best
        return (total + count - done) / count < best


def _figures_of(target: AnyTarget) -> dict[str, Sense]:
    return dict(volume_senses(default_metrics(target.stored_metrics), target.class_names))


def judges_of(task: Task) -> dict[int, Judge]:
    """How each tuned step of a task is scored, by its number.

    Raises:
        TaskError: there is no such label, or no such figure.
    """
    targets, steps = task.dataset_config.targets, task.postprocess
    kinds = kinds_of_outputs(steps, {n: t.kind_name for n, t in targets.items()})
    return {
        number: Judge.of(step, number, task, kinds[step.output])
        for number, step in enumerate(steps)
        if tuned_keys(step)
    }


@dataclass
class Tuner:
    """Chooses the values of the steps of a task, one step after the other."""

    task: Task
    weights: str
    """A digest of what predicts."""
    parts: Sequence[PredictedPart]
    folder: Path
    engine: Engine
    reporter: Reporter
    should_stop: ShouldStop
    chosen: list[TunedStep] = field(default_factory=list)

    def tune(self, network: TrainedNetwork) -> tuple[TunedStep, ...] | None:
        """All of it; None after a stop."""
        judges = judges_of(self.task)
        roots = self._predicted(network)
        if roots is None:
            return None
        for number, step in enumerate(self.task.postprocess):
            if tuned_keys(step) and not self._choose(number, judges[number], roots):
                return None
        return tuple(self.chosen)

    def _predicted(self, network: TrainedNetwork) -> list[Place] | None:
        """The results of all parts; None after a stop."""
        roots: list[Place] = []
        options = RunOptions(reporter=self.reporter, should_stop=self.should_stop)
        device = choose_device(self.task.inference_params.device, "inference_params.device")
        for part in self.parts:
            request = part.request(self.task, network, device, self.folder / network.sha256[:16])
            if not predict_request(request, options).is_through:
                return None
            roots.append(request.output)
        return roots

    def _choose(self, number: int, judge: Judge, roots: Sequence[Place]) -> bool:
        """Try all values of a step, and note them; false after a stop."""
        places = [(p, r) for p, r in zip(self.parts, roots, strict=True) if judge.can_score(p)]
        if not places:
            found = f'no validation volume has a label "{judge.label}"'
            raise TaskError(f"postprocess.{number}", found, "add one, or give numbers")
        tried, best = list[Trial](), judge.worst()
        every = list(candidates(self.task.postprocess[number]))
        with self.reporter.bar(f"tune {judge.output}", len(every)) as advance:
            for values in every:
                trial = self._tried(number, values) or self._try(
                    number, values, judge, places, best
                )
                if trial is None:
                    return False
                self._note(number, trial)
                tried.append(trial)
                if trial.volumes == len(places) and trial.score == trial.score:
                    best = (min if judge.sense == "min" else max)(best, trial.score)
                advance(1, "")
        if all(trial.score != trial.score for trial in tried):
            found = f"{judge.figure} of {judge.output} has no value on the validation volumes"
            raise TaskError(f"postprocess.{number}.tune_for", found, "give another, or numbers")
        self.chosen.append(TunedStep(judge.output, judge.figure, judge.sense, tuple(tried)))
        return True

    def _tried(self, number: int, values: TunedValues) -> Trial | None:
        """What came out with some values before a stop; None where that is not known."""
        found = self._trials().get(self._key(number, values))
        return None if found is None else Trial(values, *found)

    def _note(self, number: int, trial: Trial) -> None:
        """Keep what came out, for the case of a stop."""
        if trial.score == trial.score:
            noted = {self._key(number, trial.values): [trial.score, trial.volumes]}
            write_json(self.folder / TRIALS, {**self._trials(), **noted})

    def _trials(self) -> dict[str, Any]:
        path = self.folder / TRIALS
        return read_json(path) if path.exists() else {}

    def _key(self, number: int, values: TunedValues) -> str:
        """All that decides on a trial, as a text: weights, steps, what was chosen before, values."""
        asked = as_asked(self.task.postprocess[: number + 1])
        parts = [self.weights, asked, chosen_values(self.chosen), dict(values)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _try(
        self,
        number: int,
        values: TunedValues,
        judge: Judge,
        places: Sequence[tuple[PredictedPart, Place]],
        best: float,
    ) -> Trial | None:
        """The mean score with some values, as far as it is worth knowing; None after a stop."""
        crew = Crew(self.engine, should_stop=self.should_stop)
        before = with_tuned(self.task.postprocess[:number], chosen_values(self.chosen))
        steps = (*before, with_values(self.task.postprocess[number], values))
        scores, done = list[float](), 0
        for part, root in places:
            if not postprocess(ground_of_result(root), steps, crew, overwrite=True).is_complete:
                return None
            score, done = judge.score(part, root, self.engine), done + 1
            if score == score:  # a volume on which nothing counts says nothing of the values
                scores.append(score)
            left = len(places) - done
            if scores and judge.is_beaten(sum(scores), len(scores), len(scores) + left, best):
                break
        return Trial(values, sum(scores) / len(scores) if scores else nan, done)
