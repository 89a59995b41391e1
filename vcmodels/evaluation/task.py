"""The evaluation of a task: which volumes, which result of each, and by which metrics."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import vcmodels
from vcmodels.blockwise import Engine
from vcmodels.blockwise.engines import ShouldStop
from vcmodels.config import InferenceParams, Task
from vcmodels.config.evaluation_params import EvaluationParams
from vcmodels.config.reading import expand_together
from vcmodels.config.task import volume_metrics
from vcmodels.config.train_params import FoldConfig
from vcmodels.config.values import VolumeChoice
from vcmodels.data.selection import (
    ChosenVolume,
    choose_volumes,
    held_out_boxes,
    inputs_of,
    result_names,
)
from vcmodels.data.task_volume import TaskVolume
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import TaskError, VolumeError
from vcmodels.evaluation.evaluate import (
    ScoredRegion,
    given_regions,
    held_out_regions,
    volumes_of_inputs,
    wanted_targets,
)
from vcmodels.evaluation.limits import known_figures, parse_limits
from vcmodels.evaluation.made_with import changed_checkpoints, made_with, replaced_report
from vcmodels.evaluation.objects import Objects, objects_of, scored_objects, with_tuning
from vcmodels.evaluation.report import Report
from vcmodels.evaluation.scoring import (
    ScoredVolume,
    remove_records,
    score_volumes,
)
from vcmodels.evaluation.written import RECORD, require_folder, write_report
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.metrics.base import Metrics
from vcmodels.pictures.overlay import DrawnTarget, write_overlay
from vcmodels.reporting import Reporter, Silent, list_some
from vcmodels.results import (
    OUTPUT,
    is_complete,
    open_inputs,
    open_prediction,
    our_attributes,
    result_root,
    volume_root,
    volumes_folder,
)
from vcmodels.runs.run import Run, now
from vcmodels.targets import AnyTarget
from vcmodels.volumes import Place, Volume
from vcmodels.volumes.places import refuse_in_store

VOLUMES = "evaluation.volumes"
MOST_NAMED = 8
NO_OBJECTS = Objects()


@dataclass(frozen=True, eq=False)
class TaskScores(Mapping[str, dict[str, float]]):
    """The figures of a task, by target: of all voxels of all volumes together.

    Those that are no sums over voxels, as of surfaces, are means over the volumes.
    """

    report: Report
    """All of it, volume by volume."""
    failures: tuple[str, ...] = ()
    """In words, which figures are worse than `fail_under` asks for."""

    def __getitem__(self, target: str) -> dict[str, float]:
        if target not in self.report.targets:
            raise KeyError(target)
        pooled = self.report.pooled.get(target)
        return {**self.report.means(target), **(pooled.figures if pooled else {})}

    def __iter__(self) -> Iterator[str]:
        return iter(self.report.targets)

    def __len__(self) -> int:
        return len(self.report.targets)


@dataclass(frozen=True)
class ScoredPart:
    """A part of a volume, the result that is scored there, and what it is called in a report."""

    region: ScoredRegion
    root: Place
    """The group of the result."""
    name: str
    group: str | None
    """The cohort or group of the volume."""
    split: str | None


def evaluate(
    task: Task,
    *,
    volumes: VolumeChoice | None = None,
    bbox: Sequence[tuple[int, int]] | None = None,
    overlay: Path | None = None,
    output: Path | None = None,
    fail_under: Sequence[str] = (),
    engine: Engine | None = None,
    reporter: Reporter | None = None,
) -> TaskScores:
    """The metrics of what inference has stored, by target.

    Scored are the targets that were predicted and that a volume has a label of: what a run held out
    of training of the volumes that `evaluation.volumes` chooses, or of the one that a single
    `input_path` names.

    Args:
        task: its inference must have been run.
        volumes: score these instead.
        bbox: score this part of each instead, [start, end) along (z, y, x).
        overlay: draw slices of the first part that has a label into this PNG.
        output: keep `report.json` and `scores.csv` in this folder, and until then what is measured:
            the same call continues after a stop.
        fail_under: means over the volumes that must be reached, as in `sheet.dice=0.8`.
        engine: who works on the blocks; the threads of this process when None.
        reporter: gets the region, the scores and the progress.

    Raises:
        RefusedError: `fail_under` names a figure that is not measured.
        TaskError: nothing can be scored: the input is none of the labelled volumes, or nothing of
            it was held out.
        VolumeError: a prediction is missing, unfinished or written with other settings.
        OutputError: the overlay or the report would lie in a Zarr store, or the report would replace
            a file that is none of vcmodels.
        RunError: a label holds what its kind cannot have, or a chunk is damaged.
    """
    reporter = reporter or Silent()
    if overlay is not None:
        refuse_in_store("--overlay", overlay)
    if output is not None:
        require_folder("--output", output)
    choice = volumes or task.evaluation.volumes or task.inference_params.volumes
    parts = _parts(task, choice, bbox, reporter)
    wanted = wanted_targets(task.dataset_config.targets, task.inference_params.output_targets)
    if not _is_of_input(choice, task.inference_params):
        _require_results(parts, wanted, choice or "val", task.tr_params.folds)
    scores = score_parts(
        parts, wanted, task.evaluation, objects=objects_of(task), overlay=overlay, output=output, fail_under=fail_under,
        engine=engine, reporter=reporter, about=about_task(task),
    )  # fmt: skip
    assert scores is not None, "nothing asked it to stop"
    return scores


def about_task(task: Task) -> dict[str, Any]:
    """What a report says of where its figures come from: JSON values."""
    return {
        "time": now(),
        "vcmodels": vcmodels.__version__,
        "model": task.tr_params.model_name,
        "run": str(task.run_dir),
        "evaluation": task.evaluation.model_dump(mode="json"),
    }


def score_parts(
    parts: Sequence[ScoredPart],
    targets: Mapping[str, AnyTarget],
    params: EvaluationParams,
    *,
    objects: Objects = NO_OBJECTS,
    overlay: Path | None = None,
    output: Path | None = None,
    fail_under: Sequence[str] = (),
    engine: Engine | None = None,
    reporter: Reporter,
    about: Mapping[str, Any],
    should_stop: ShouldStop = lambda: False,
) -> TaskScores | None:
    """The metrics of stored results over parts of their inputs; None after a stop.

    Args:
        parts: one or more.
        targets: what to score; those without a label on a part are left out there.
        params: which metrics.
        objects: outputs of ids that are scored too, where they are made.
        overlay: as for `evaluate`.
        output: as for `evaluate`.
        fail_under: as for `evaluate`.
        engine: as for `evaluate`.
        reporter: gets the parts, the scores and the progress.
        about: JSON values for the report.
        should_stop: as for `score_volumes`.

    Raises:
        TaskError: no target has a label.
        RefusedError, RunError: as for `evaluate`.
    """
    scored = _labelled(parts, targets)
    opened = [open_predictions(part, scored) for part in parts]
    metrics = volume_metrics(scored, params)
    _report_parts(parts, scored, reporter)
    pairs = zip(parts, opened, strict=True)
    volumes = [
        with_objects(scored_part(part, found, scored, metrics), part, objects, params, reporter)
        for part, found in pairs
    ]
    limits = parse_limits(fail_under, known_figures(t for one in volumes for t in one.targets))
    made = made_with(part.root for part in parts)
    _report_changes(made, output, reporter)
    report = score_volumes(
        [one for one in volumes if one.targets],
        record=output and output / RECORD,
        engine=engine,
        provenance={**about, **made},
        reporter=reporter,
        should_stop=should_stop,
    )
    if report is None:
        return None
    report = with_tuning(report, objects.tuned)
    failures = tuple(failure for limit in limits if (failure := limit.failure(report)))
    scores = TaskScores(report, failures)
    _report_scores(scores, reporter)
    if overlay is not None:
        part, predictions = next((p, o) for p, o in zip(parts, opened, strict=True) if o)
        _draw(overlay, part.region, scored, predictions, scores)
        reporter.say(f"overlay: {overlay}")
    if output is not None:
        write_report(report, output, volumes, reporter)
        remove_records(output / RECORD, volumes)
    return scores


def _report_changes(made: Mapping[str, Any], output: Path | None, reporter: Reporter) -> None:
    """Report what has changed since the results were predicted, and since the report before."""
    for path in changed_checkpoints(made):
        reporter.say(
            f"note: {path} has changed since it predicted what is scored here; "
            "run infer again to score what it predicts now"
        )
    if output is not None and (found := replaced_report(output, made)):
        reporter.say(f"note: {found}")


def _labelled(
    parts: Sequence[ScoredPart], targets: Mapping[str, AnyTarget]
) -> dict[str, AnyTarget]:
    """The targets that have a label on some part.

    Raises:
        TaskError: none has.
    """
    found = {
        name: target
        for name, target in targets.items()
        if any(part.region.label(name, target) for part in parts)
    }
    if not found:
        raise TaskError(OUTPUT, "no predicted target has a label on this volume")
    return found


def _report_scores(scores: TaskScores, reporter: Reporter) -> None:
    for name, figures in scores.items():
        listed = ", ".join(f"{key} {value:.4f}" for key, value in figures.items())
        reporter.say(f"{name}: {listed}")


def _parts(
    task: Task,
    choice: VolumeChoice | None,
    bbox: Sequence[tuple[int, int]] | None,
    reporter: Reporter,
) -> list[ScoredPart]:
    """What is scored of a task, in the order of its volumes.

    Raises:
        TaskError, VolumeError: as for `evaluate`.
    """
    params, volumes = task.inference_params, open_volumes(task)
    predicted = None if params.bbox is None else _box(params.bbox)
    if _is_of_input(choice, params):
        return _of_input(task, volumes, bbox, predicted, reporter)
    run = Run(task.run_dir, task.tr_params.model_name)
    every = choose_volumes(volumes, choice or "val", run, key=VOLUMES, reporter=reporter)
    chosen = [one.as_stored() for one in every]
    roots = _result_roots(task, [volume.as_stored for volume in volumes])
    found = [
        ScoredPart(
            ScoredRegion(one.volume, box),
            roots[inputs_of(one.volume)],
            one.volume.name,
            one.volume.scored_with,
            one.split,
        )
        for one in chosen
        if (box := _part(one, bbox, predicted)).voxels
    ]
    if not found:
        text = "nothing of the chosen volumes lies in the bbox"
        raise TaskError("bbox", text, "give another, or choose other volumes")
    kept = {part.name for part in found}
    for one in chosen:
        if one.volume.name not in kept:
            reporter.say(f"note: nothing of {one.volume.name} lies in the bbox: it is left out")
    return found


def _is_of_input(choice: VolumeChoice | None, params: InferenceParams) -> bool:
    """Whether the one input is scored, whose result has no name of a volume."""
    return choice is None and params.input_path is not None and not params.is_many


def _of_input(
    task: Task,
    volumes: Sequence[TaskVolume],
    bbox: Sequence[tuple[int, int]] | None,
    predicted: Box | None,
    reporter: Reporter,
) -> list[ScoredPart]:
    """What is scored of the one input of a task."""
    params = task.inference_params
    inputs = open_inputs(params.input_path, params, reporter)
    stored = [volume.as_stored for volume in volumes]
    mine = volumes_of_inputs(stored, [image.identity for image in inputs])
    if bbox is None:
        found = held_out_boxes(Run(task.run_dir), volumes, reporter)
        known = {volume.name: volume for volume in volumes}
        held_out = {name: known[name].box_as_stored(box) for name, box in found.items()}
        regions = held_out_regions(mine, held_out, predicted)
        split = "val"
    else:
        regions, split = given_regions(mine, _box(bbox), predicted), None
    root = result_root(params.output_dir, task.tr_params.model_name)
    return [
        ScoredPart(one, root, one.volume.name, one.volume.scored_with, split or one.volume.split)
        for one in regions
    ]


def _part(
    chosen: ChosenVolume, bbox: Sequence[tuple[int, int]] | None, predicted: Box | None
) -> Box:
    """What is scored of a chosen volume: what is meant of it, or a box, as far as it was predicted."""
    image = chosen.volume.inputs[0]
    box = chosen.box if bbox is None else _box(bbox).intersect(image.box)
    return box if predicted is None else box.intersect(predicted)


def _result_roots(task: Task, volumes: Sequence[TaskVolume]) -> dict[tuple[str, ...], Place]:
    """The group of the result of each input, by identities: of many volumes, or the single one."""
    params, model = task.inference_params, task.tr_params.model_name
    folder, names = volumes_folder(params.output_dir, model), result_names(volumes)
    found = {inputs_of(v): volume_root(folder, names[v.name]) for v in volumes}
    if params.volumes is not None or not params.input_path:
        return found
    if params.is_pattern:
        expanded = _expanded_roots(params, folder).items()
        # Else the volume may have been predicted by its name.
        return found | {key: root for key, root in expanded if root.names()}
    single = tuple(image.identity for image in open_inputs(params.input_path, params))
    if single in found and not found[single].names():
        found[single] = result_root(params.output_dir, model)
    return found


def _expanded_roots(params: InferenceParams, folder: Place) -> dict[tuple[str, ...], Place]:
    """The results of all volumes that `input_path` stands for."""
    found: dict[tuple[str, ...], Place] = {}
    for stem, paths, _ in expand_together(params.input_paths, {}, "inference_params", "input_path"):
        inputs = open_inputs(paths, params)
        found[tuple(image.identity for image in inputs)] = volume_root(folder, stem)
    return found


def _require_results(
    parts: Sequence[ScoredPart],
    targets: Mapping[str, AnyTarget],
    choice: VolumeChoice,
    folds: FoldConfig | None,
) -> None:
    """Refuse volumes that were not predicted, all at once.

    Raises:
        VolumeError: naming them.
    """
    lacking = [part.name for part in parts if not _is_there(part, targets)]
    if lacking:
        listed = list_some(lacking, MOST_NAMED)
        found = f"{len(lacking)} of {len(parts)} volumes have no finished prediction: {listed}"
        option = f"inference_params.volumes={json.dumps(choice)}"
        fold = "" if folds is None or folds.index is None else f" --fold {folds.index}"
        remedy = f"predict them: vcmodels infer TASK{fold} --set '{option}'"
        raise VolumeError(VOLUMES, found, remedy)


def _is_there(part: ScoredPart, targets: Mapping[str, AnyTarget]) -> bool:
    """Whether all of a part's targets have predictions that are whole."""
    groups = [part.root / n for n, target in targets.items() if part.region.label(n, target)]
    return all(group.names() and is_complete(our_attributes(group)) for group in groups)


def open_predictions(part: ScoredPart, targets: Mapping[str, AnyTarget]) -> dict[str, Volume]:
    """The predictions of the targets that have a label on a part."""
    extent = part.region.volume.inputs[0].extent
    return {
        name: _prediction(part.root, name, target, extent)
        for name, target in targets.items()
        if part.region.label(name, target)
    }


def _prediction(root: Place, name: str, target: AnyTarget, extent: Shape) -> Volume:
    """Open the prediction of a target.

    Raises:
        VolumeError: as from `open_prediction`, or it has another extent than its input.
    """
    array = open_prediction(root, name, target)
    if array.extent != extent:
        found = f"has extent {array.extent}, its input {extent}"
        raise VolumeError(str(root / name), found, "predict again into another output_dir")
    return array


def scored_part(
    part: ScoredPart,
    predictions: Mapping[str, Volume],
    targets: Mapping[str, AnyTarget],
    metrics: Mapping[str, Metrics],
) -> ScoredVolume:
    """What is scored of a part: the targets that have a label there, which may be none."""
    found = part.region.scored(str(part.root), targets, predictions, metrics)
    return replace(found, name=part.name, group=part.group, split=part.split)


def with_objects(
    volume: ScoredVolume,
    part: ScoredPart,
    objects: Objects,
    params: EvaluationParams,
    reporter: Reporter,
) -> ScoredVolume:
    """The same with the objects that were made there and have a label."""
    found = scored_objects(part.region, part.root, objects, params.metrics, reporter)
    return replace(volume, targets=(*volume.targets, *found))


def _report_parts(
    parts: Sequence[ScoredPart], targets: Mapping[str, AnyTarget], reporter: Reporter
) -> None:
    """Report what is scored where, and which volumes have no label."""
    listed = ", ".join(_text(part.region.box) for part in parts)
    where = f"(z, y, x) = {listed}" if len({part.root for part in parts}) < 2 else ""
    reporter.say(f"scoring {', '.join(targets)} on {where or f'{len(parts)} volumes'}")
    for part in parts:
        if not any(part.region.label(name, target) for name, target in targets.items()):
            reporter.say(f"note: {part.name} has no label of these, and is left out")


def _draw(
    path: Path,
    region: ScoredRegion,
    targets: Mapping[str, AnyTarget],
    predictions: Mapping[str, Volume],
    scores: TaskScores,
) -> None:
    """Draw slices of a region, with the first two metrics of each target that has a label there."""
    drawn: dict[str, DrawnTarget] = {}
    for name, target in targets.items():
        if label := region.label(name, target):
            figures = [f"{key} {value:.3g}" for key, value in list(scores[name].items())[:2]]
            drawn[name] = DrawnTarget(label, predictions[name], ", ".join(figures))
    write_overlay(path, region.volume.inputs[0], drawn, region.box)


def _box(bbox: Sequence[tuple[int, int]]) -> Box:
    return Box.between([start for start, _ in bbox], [end for _, end in bbox])


def _text(box: Box) -> str:
    return "[" + ", ".join(f"{start}:{end}" for start, end in box.pairs) + "]"
