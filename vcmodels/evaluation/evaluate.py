"""Scores of predictions against labels, block by block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from vcmodels.config import Task
from vcmodels.data.labels import Label, StoredLabel
from vcmodels.data.volumes import TaskVolume, open_volumes
from vcmodels.errors import TaskError, VolumeError
from vcmodels.geometry.boxes import Box, Shape, Spacing
from vcmodels.geometry.grid import blocks_of
from vcmodels.metrics.base import Sums
from vcmodels.metrics.joint import JOINABLE
from vcmodels.metrics.registry import add_sums, measure
from vcmodels.pictures.overlay import DrawnTarget, write_overlay
from vcmodels.reporting import Reporter, Silent
from vcmodels.results import INPUT, OUTPUT, open_inputs, open_prediction, result_root
from vcmodels.runs.run import Run
from vcmodels.targets import AnyTarget
from vcmodels.targets.stored import LabelError
from vcmodels.volumes import ArrayVolume, Place, Volume
from vcmodels.volumes.places import refuse_in_store

BLOCK: Shape = (128, 128, 128)


def score(
    prediction: Volume | np.ndarray,
    label: Volume | np.ndarray,
    target: AnyTarget,
    *,
    spacing: Spacing | None = None,
    box: Box | None = None,
    block: Shape = BLOCK,
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
        block: how much is held in memory at once; the result does not depend on it, but for the
            order in which float64 sums are added.
        whole: also those that need a volume whole (`VolumeMetric`); `box` is then in memory at once.

    Returns:
        As from `Target.summarise_stored` and, with `whole`, `Target.measure_volume`; NaN where no voxel is
        valid.

    Raises:
        ValueError: the extents differ, or the box is not inside them.
        RunError: the label holds a value that its kind cannot have.
    """
    predicted, stored = _as_volume(prediction, "prediction"), _as_volume(label, "label")
    source = StoredLabel("label", stored, stored.box)
    read = Label(target, source, spacing or stored.spacing)
    box = box or stored.box
    figures = target.summarise_stored(sum_volume(read, predicted, box, block))
    if whole:
        truth, valid = read.read(box)
        values = target.decode(predicted.read(box))
        figures |= target.measure_volume(values, truth, valid, read.spacing)
    return figures


def _as_volume(values: Volume | np.ndarray, name: str) -> Volume:
    if isinstance(values, Volume):
        return values
    return ArrayVolume.of(np.asarray(values), (1.0, 1.0, 1.0), name)


def sum_volume(label: Label, prediction: Volume, box: Box, block: Shape = BLOCK) -> Sums:
    """The sums behind the metrics of a box, which add over boxes and volumes.

    Args:
        label: of a target with the keys that the prediction was encoded with.
        prediction: as inference wrote it, of the same extent.
        box: what to score.
        block: how much is held in memory at once.

    Raises:
        ValueError: the extents differ, or the box is not inside them.
        RunError: the label holds a value that its kind cannot have.
    """
    array = label.stored.array
    if prediction.extent != array.extent:
        raise ValueError(
            f"the prediction has extent {prediction.extent} and the label {array.extent}"
        )
    if not array.box.contains(box):
        raise ValueError(f"{box} is not inside the extent {array.extent}")
    sums: Sums = {}
    for part in blocks_of(box, block):
        sums = add_sums(sums, _sum_block(label, prediction, part))
    return sums


def _sum_block(label: Label, prediction: Volume, box: Box) -> Sums:
    return _sum_codes(label, prediction, box) or _sum_values(label, prediction, box)


def _sum_codes(label: Label, prediction: Volume, box: Box) -> Sums | None:
    """The sums of a block from its stored codes; None where that is no way."""
    stored = label.stored
    if not stored.region.contains(box) or prediction.dtype not in JOINABLE:
        return None
    codes = stored.array.read(box)
    if (codes == codes.flat[0]).all():  # perhaps nothing counts, and the prediction is not needed
        return None
    try:
        return label.target.measure_stored(prediction.read(box), codes)
    except LabelError:  # the other way raises it too, with its place
        return None


def _sum_values(label: Label, prediction: Volume, box: Box) -> Sums:
    truth, valid = label.read(box)
    target = label.target
    if valid.any():
        predicted = target.decode(prediction.read(box))
    else:  # Nothing counts here, so the prediction need not be read, but the sums have a shape.
        box = Box(box.origin, (0, 0, 0))
        predicted = target.decode(np.zeros((prediction.channels, *box.shape), prediction.dtype))
        truth, valid = truth[:, :0, :0, :0], valid[:, :0, :0, :0]
    tensors = (torch.from_numpy(np.ascontiguousarray(a))[None] for a in (predicted, truth, valid))
    found, wanted, counts = tensors
    return measure(target.stored_metrics, *target.comparable(found, wanted), counts)


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
    scores: Scores = {}
    for name, target in labelled.items():
        sums = _sum_regions(name, target, predictions[name], regions, reporter)
        scores[name] = target.summarise_stored(sums)
        figures = ", ".join(f"{key} {value:.4f}" for key, value in scores[name].items())
        reporter.say(f"{name}: {figures}")
    if overlay is not None:
        _draw(overlay, regions[0], labelled, predictions, scores)
        reporter.say(f"overlay: {overlay}")
    return scores


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


def _sum_regions(
    name: str,
    target: AnyTarget,
    prediction: Volume,
    regions: Sequence[ScoredRegion],
    reporter: Reporter,
) -> Sums:
    """The sums of one target over all regions, with a bar that moves block by block."""
    sums: Sums = {}
    labels = [(one.box, label) for one in regions if (label := one.label(name, target))]
    with reporter.bar(f"score {name}", sum(box.voxels for box, _ in labels)) as advance:
        for box, label in labels:
            for block in blocks_of(box, BLOCK):
                sums = add_sums(sums, sum_volume(label, prediction, block))
                advance(block.voxels, "")
    return sums


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
