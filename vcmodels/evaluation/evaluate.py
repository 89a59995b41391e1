"""Scores of predictions against labels, block by block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vcmodels.config import Task
from vcmodels.data.labels import Label, StoredLabel
from vcmodels.data.volumes import TaskVolume, open_volumes
from vcmodels.errors import TaskError, VolumeError
from vcmodels.evaluation.pairs import TargetPair
from vcmodels.evaluation.report import Report
from vcmodels.evaluation.scoring import (
    ScoredTarget,
    ScoredVolume,
    default_metrics,
    score_volumes,
)
from vcmodels.geometry.boxes import Box, Shape, Spacing
from vcmodels.metrics.base import Metric, Metrics
from vcmodels.pictures.overlay import DrawnTarget, write_overlay
from vcmodels.reporting import Reporter, Silent
from vcmodels.results import INPUT, OUTPUT, open_inputs, open_prediction, result_root
from vcmodels.runs.run import Run
from vcmodels.targets import AnyTarget
from vcmodels.volumes import ArrayVolume, Place, Volume
from vcmodels.volumes.places import refuse_in_store


def score(
    prediction: Volume | np.ndarray,
    label: Volume | np.ndarray,
    target: AnyTarget,
    *,
    spacing: Spacing | None = None,
    box: Box | None = None,
    block: Shape | None = None,
    whole: bool = False,
) -> dict[str, float]:
    """The metrics of a prediction over the valid voxels of a label.

    Args:
        prediction: (Z, Y, X) or (C, Z, Y, X), with values as inference writes them for this target.
        label: of the same extent, with values as a task names them: of the target itself, or of
            what it is derived from.
        target: says what the values mean, what is ignored, and which metrics there are.
        spacing: length of a voxel along (z, y, x); by default that of the label, which is 1 for an
            array in memory.
        box: what to score; by default all of it.
        block: how much a thread holds in memory at once; the result does not depend on it, but for
            the order in which float64 sums are added. Chosen by the chunks when None.
        whole: also those that are no sums over voxels: of surfaces and objects, and of the volume
            as a whole, which are NaN where `box` is too large to be in memory.

    Returns:
        As from `Target.summarise_stored` and, with `whole`, the figures of the others; NaN where no
        voxel is valid.

    Raises:
        ValueError: the extents differ, or the box is not inside them.
        RunError: the label holds a value that its kind cannot have.
    """
    predicted, stored = _as_volume(prediction, "prediction"), _as_volume(label, "label")
    source = StoredLabel("label", stored, stored.box)
    read = Label(target, source, spacing or stored.spacing)
    metrics = default_metrics(target.stored_metrics)
    if not whole:
        metrics = {name: one for name, one in metrics.items() if isinstance(one, Metric)}
    pair = pair_of(read, predicted, box or stored.box, block)
    one = ScoredTarget("target", pair, metrics, target.class_names)
    report = score_volumes([ScoredVolume("volume", predicted.location, (one,))])
    assert report is not None, "nothing asked it to stop"
    return dict(report.volumes[0].targets["target"].figures)


def _as_volume(values: Volume | np.ndarray, name: str) -> Volume:
    if isinstance(values, Volume):
        return values
    return ArrayVolume.of(np.asarray(values), (1.0, 1.0, 1.0), name)


def pair_of(label: Label, prediction: Volume, box: Box, cell: Shape | None = None) -> TargetPair:
    """A stored prediction against its label.

    Args:
        label: of a target with the keys that the prediction was encoded with.
        prediction: as inference wrote it, of the same extent.
        box: what to score.
        cell: how much is read at once; chosen by the chunks when None.

    Raises:
        ValueError: the extents differ, or the box is not inside them.
    """
    array = label.stored.array
    if prediction.extent != array.extent:
        raise ValueError(
            f"the prediction has extent {prediction.extent} and the label {array.extent}"
        )
    if not array.box.contains(box):
        raise ValueError(f"{box} is not inside the extent {array.extent}")
    return TargetPair(label, prediction, box, cell or (0, 0, 0))


@dataclass(frozen=True)
class ScoredRegion:
    """A part of the predicted volume, with the labels of one entry of the task."""

    volume: TaskVolume
    box: Box

    def label(self, name: str, target: AnyTarget) -> Label | None:
        """The label of a target; None where there is none, or one that a network made.

        A given box may reach out of the used part, where voxels may be labelled all the same; but
        nothing is derived from them, as nothing was in training.
        """
        if name in self.volume.pseudo:
            return None
        used = self.volume.region if target.derive else self.volume.inputs[0].box
        return self.volume.label(name, target, used)

    def scored(
        self,
        root: str,
        targets: Mapping[str, AnyTarget],
        predictions: Mapping[str, Volume],
        metrics: Mapping[str, Metrics] | None = None,
    ) -> ScoredVolume:
        """What is scored here: the targets that have a label, which may be none.

        Args:
            root: where the result lies.
            targets: by name.
            predictions: the stored prediction of each.
            metrics: of each target; those of its kind that are measured by default when None.
        """
        image = self.volume.inputs[0]
        found: list[ScoredTarget] = []
        for name, target in targets.items():
            if (label := self.label(name, target)) is not None:
                measured = default_metrics(target.stored_metrics) if metrics is None else metrics[name]
                pair = pair_of(label, predictions[name], self.box)
                place = label.stored.array.location
                found.append(ScoredTarget(name, pair, measured, target.class_names, place))
        return ScoredVolume(
            self.volume.name,
            root,
            tuple(found),
            image=tuple(one.location for one in self.volume.inputs),
            unit=image.unit or "",
            split=self.volume.split,
        )


Scores = dict[str, dict[str, float]]
"""By target and metric."""


def evaluate(
    task: Task,
    *,
    bbox: Sequence[tuple[int, int]] | None = None,
    overlay: Path | None = None,
    reporter: Reporter | None = None,
) -> Scores:
    """The metrics of the stored prediction of `inference_params.input_path`, by target.

    Scored are the targets that were predicted and whose label the task has on that volume, where
    the run held voxels out of training.

    Args:
        task: its inference must have been run.
        bbox: score this part instead, [start, end) along (z, y, x).
        overlay: draw slices of the scored part into this PNG.
        reporter: gets the region, the scores and the progress.

    Raises:
        TaskError: nothing can be scored: the input is none of the labelled volumes, or nothing of
            it was held out.
        VolumeError: the prediction is missing, unfinished or written with other settings.
        OutputError: the overlay would lie in a Zarr store.
    """
    reporter, params = reporter or Silent(), task.inference_params
    if overlay is not None:
        refuse_in_store("--overlay", overlay)
    volumes = open_volumes(task)
    inputs = open_inputs(params.input_path, params)
    mine = volumes_of_inputs(volumes, [image.identity for image in inputs])
    predicted = None if params.bbox is None else _box(params.bbox)
    if bbox is None:
        held_out = held_out_boxes(Run(task.run_dir), volumes, reporter)
        regions = held_out_regions(mine, held_out, predicted)
    else:
        regions = given_regions(mine, _box(bbox), predicted)
    wanted = wanted_targets(task.dataset_config.targets, params.output_targets)
    root = result_root(params.output_dir, task.tr_params.model_name)
    return score_result(root, wanted, regions, overlay=overlay, reporter=reporter)


def wanted_targets(
    targets: Mapping[str, AnyTarget], names: Literal["all"] | Sequence[str]
) -> dict[str, AnyTarget]:
    """Those of some targets that `output_targets` names."""
    return {name: one for name, one in targets.items() if names == "all" or name in names}


def score_result(
    root: Place,
    targets: Mapping[str, AnyTarget],
    regions: Sequence[ScoredRegion],
    *,
    overlay: Path | None = None,
    reporter: Reporter,
) -> Scores:
    """The metrics of a stored result over some regions of its input, by target.

    Args:
        root: the group of the result.
        targets: what to score; those without a label on any region are left out.
        regions: of one input.
        overlay: draw slices of the first region into this PNG.
        reporter: gets the regions, the scores and the progress.

    Raises:
        TaskError: no target has a label.
        VolumeError: a prediction is missing, unfinished, of another shape or another encoding.
    """
    labelled = {n: t for n, t in targets.items() if any(r.label(n, t) for r in regions)}
    if not labelled:
        raise TaskError(OUTPUT, "no predicted target has a label on this volume")
    extent = regions[0].volume.inputs[0].extent
    predictions = {name: _prediction(root, name, t, extent) for name, t in labelled.items()}
    boxes = ", ".join(_text(region.box) for region in regions)
    reporter.say(f"scoring {', '.join(labelled)} on (z, y, x) = {boxes}")
    volumes = [region.scored(str(root), labelled, predictions) for region in regions]
    report = score_volumes([one for one in volumes if one.targets], reporter=reporter)
    assert report is not None, "nothing asked it to stop"
    scores = {name: _together(report, name) for name in labelled}
    for name, found in scores.items():
        figures = ", ".join(f"{key} {value:.4f}" for key, value in found.items())
        reporter.say(f"{name}: {figures}")
    if overlay is not None:
        _draw(overlay, regions[0], labelled, predictions, scores)
        reporter.say(f"overlay: {overlay}")
    return scores


def _together(report: Report, target: str) -> dict[str, float]:
    """The figures of all voxels of all volumes; of what is no sum over voxels, the means."""
    return {**report.means(target), **report.pooled[target].figures}


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


def _draw(
    path: Path,
    region: ScoredRegion,
    targets: Mapping[str, AnyTarget],
    predictions: Mapping[str, Volume],
    scores: Scores,
) -> None:
    """Draw slices of a region, with the first two metrics of each target that has a label there."""
    scored: dict[str, DrawnTarget] = {}
    for name, target in targets.items():
        if label := region.label(name, target):
            figures = [f"{key} {value:.3g}" for key, value in list(scores[name].items())[:2]]
            scored[name] = DrawnTarget(label, predictions[name], ", ".join(figures))
    write_overlay(path, region.volume.inputs[0], scored, region.box)


def volumes_of_inputs(volumes: Sequence[TaskVolume], inputs: Sequence[str]) -> list[TaskVolume]:
    """The labelled volumes with inputs of these identities; several may be parts of one.

    Raises:
        TaskError: there are none.
    """
    mine = [v for v in volumes if [image.identity for image in v.inputs] == list(inputs)]
    if not mine:
        found = f"{list(inputs)} is none of dataset_config.volume_paths"
        raise TaskError(INPUT, found, "predict a labelled volume, or add its labels to the task")
    return mine


def held_out_boxes(run: Run, volumes: Sequence[TaskVolume], reporter: Reporter) -> dict[str, Box]:
    """The validation region of each volume by its name: of a run, else of `"split": "val"`.

    Raises:
        TaskError: no training has divided the volumes, and the task does not; or the record of the
            run is damaged.
    """
    splits = run.splits()
    if splits is None:
        whole = {volume.name: volume.region for volume in volumes if volume.split == "val"}
        if whole:
            return whole
        remedy = "train first, or give a bbox to score"
        raise TaskError(str(run.splits_file), "is not there", remedy)
    if splits.is_random:
        reporter.say("random split: voxels that were trained on are scored too")
    return splits.held_out()


def held_out_regions(
    volumes: Sequence[TaskVolume], held_out: Mapping[str, Box], predicted: Box | None
) -> list[ScoredRegion]:
    """What was held out of some volumes.

    Args:
        volumes: of one input; several entries of a task may be parts of it.
        held_out: by name of the volume.
        predicted: what there is of the prediction; all when None.

    Raises:
        TaskError: nothing of it was predicted.
    """
    named = [(volume, held_out[volume.name]) for volume in volumes if volume.name in held_out]
    regions = [ScoredRegion(volume, _common(box, predicted)) for volume, box in named]
    return _require_some([region for region in regions if region.box.voxels])


def given_regions(
    volumes: Sequence[TaskVolume], box: Box, predicted: Box | None
) -> list[ScoredRegion]:
    """A box, once for each set of label arrays that the entries of one volume have.

    Args:
        volumes: of one input; several entries of a task may be parts of it.
        box: what to score.
        predicted: what there is of the prediction; all when None.

    Raises:
        TaskError: the box is not inside the volume, or nothing of it was predicted.
    """
    box, image = _common(box, predicted), volumes[0].inputs[0]
    if not image.box.contains(box):
        raise TaskError("bbox", f"{_text(box)} is not inside the volume, shape {image.extent}")
    distinct: dict[tuple[str, ...], ScoredRegion] = {}
    for volume in volumes if box.voxels else ():
        arrays = tuple(sorted(label.identity for label in volume.labels.values()))
        distinct.setdefault(arrays, ScoredRegion(volume, box))
    return _require_some(list(distinct.values()))


def _common(box: Box, predicted: Box | None) -> Box:
    return box if predicted is None else box.intersect(predicted)


def _require_some(regions: list[ScoredRegion]) -> list[ScoredRegion]:
    if not regions:
        found = "nothing of the predicted part was held out of training"
        raise TaskError(INPUT, found, "give a bbox to score, or predict a validation volume")
    return regions


def _box(bbox: Sequence[tuple[int, int]]) -> Box:
    return Box.between([start for start, _ in bbox], [end for _, end in bbox])


def _text(box: Box) -> str:
    pairs = zip(box.origin, box.end, strict=True)
    return "[" + ", ".join(f"{start}:{end}" for start, end in pairs) + "]"
