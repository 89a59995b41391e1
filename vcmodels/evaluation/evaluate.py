"""Scores of stored predictions against the labels of a task, block by block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vcmodels.config import Task
from vcmodels.data.labels import Label
from vcmodels.data.volumes import TaskVolume, open_volumes
from vcmodels.errors import TaskError, VolumeError
from vcmodels.geometry.boxes import Box, Shape, blocks_of
from vcmodels.pictures.overlay import DrawnTarget, write_overlay
from vcmodels.reporting import Reporter, Silent
from vcmodels.targets import AnyTarget
from vcmodels.targets.base import Sums
from vcmodels.volumes import (
    Place,
    Volume,
    expand_location,
    group_attributes,
    open_volume,
    place_at,
)
from vcmodels.volumes.places import read_json

BLOCK: Shape = (128, 128, 128)


def score_volume(
    label: Label, prediction: Volume, box: Box, block: Shape = BLOCK
) -> dict[str, float]:
    """The metrics of a prediction over the valid voxels of a box.

    Args:
        label: of a target with the keys that the prediction was encoded with.
        prediction: as inference wrote it, of the same extent.
        box: what to score.
        block: how much is held in memory at once; the result does not depend on it, but for the
            order in which float64 sums are added.

    Returns:
        As from `Target.summarise`; NaN where no voxel is valid.

    Raises:
        ValueError: the extents differ, or the box is not inside them.
        RunError: the label holds a value that its kind cannot have.
    """
    return label.target.summarise(sum_volume(label, prediction, box, block))


def sum_volume(label: Label, prediction: Volume, box: Box, block: Shape = BLOCK) -> Sums:
    """The sums behind `score_volume`, which add over volumes."""
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


def add_sums(a: Sums, b: Sums) -> Sums:
    """The sums of two parts together; an empty dict stands for nothing."""
    if not a or not b:
        return a or b
    return {name: a[name] + b[name] for name in a}


def _sum_block(label: Label, prediction: Volume, box: Box) -> Sums:
    truth, valid = label.read(box)
    target = label.target
    if valid.any():
        predicted = target.decode(prediction.read(box))
    else:  # Nothing counts here, so the prediction need not be read, but the sums have a shape.
        box = Box(box.origin, (0, 0, 0))
        predicted = target.decode(np.zeros((prediction.channels, *box.shape), prediction.dtype))
        truth, valid = truth[:, :0, :0, :0], valid[:, :0, :0, :0]
    tensors = (torch.from_numpy(np.ascontiguousarray(a))[None] for a in (predicted, truth, valid))
    return target.measure(*tensors)


BoundingBox = Sequence[tuple[int, int]]
INPUT, OUTPUT = "inference_params.input_path", "inference_params.output_dir"


@dataclass(frozen=True)
class Part:
    """A region of the predicted volume with the labels of one volume entry."""

    volume: TaskVolume
    box: Box

    def label(self, name: str, target: AnyTarget) -> Label | None:
        """The label of a target; None where there is none, or one that a network made.

        A given bbox may reach out of the used part, where voxels may be labelled all the same; but
        nothing is derived from them, as nothing was in training.
        """
        if name in self.volume.pseudo:
            return None
        used = self.volume.region if target.derive else self.volume.inputs[0].box
        return self.volume.label(name, target, used)


def evaluate(
    task: Task,
    *,
    bbox: BoundingBox | None = None,
    overlay: Path | None = None,
    reporter: Reporter | None = None,
) -> dict[str, dict[str, float]]:
    """The metrics of the stored prediction of `inference_params.input_path`, by target.

    Scored are the targets that were predicted and whose label the task has on that volume, where
    the run's `splits.json` holds voxels out of training.

    Args:
        task: its inference must have been run.
        bbox: score this part instead, [start, end) along (z, y, x).
        overlay: draw slices of the scored part into this PNG.
        reporter: told the region, the scores and the progress.

    Raises:
        TaskError: nothing can be scored: the input is none of the labelled volumes, or nothing of
            it was held out.
        VolumeError: the prediction is missing, unfinished or written with other settings.
    """
    reporter = reporter or Silent()
    parts = _parts(task, bbox, reporter)
    targets = _predicted_targets(task, parts)
    boxes = ", ".join(_text(part.box) for part in parts)
    reporter.say(f"scoring {', '.join(targets)} on (z, y, x) = {boxes}")
    scores: dict[str, dict[str, float]] = {}
    for name, (target, prediction) in targets.items():
        scores[name] = target.summarise(_sum(name, target, prediction, parts, reporter))
        figures = ", ".join(f"{key} {value:.4f}" for key, value in scores[name].items())
        reporter.say(f"{name}: {figures}")
    if overlay is not None:
        _draw(overlay, parts[0], targets, scores)
        reporter.say(f"overlay: {overlay}")
    return scores


def _sum(
    name: str,
    target: AnyTarget,
    prediction: Volume,
    parts: Sequence[Part],
    reporter: Reporter,
) -> Sums:
    """The sums of one target over all parts, told block by block."""
    sums: Sums = {}
    labels = [(part.box, label) for part in parts if (label := part.label(name, target))]
    with reporter.bar(f"score {name}", sum(box.voxels for box, _ in labels)) as advance:
        for box, label in labels:
            for block in blocks_of(box, BLOCK):
                sums = add_sums(sums, sum_volume(label, prediction, block))
                advance(block.voxels, "")
    return sums


def _draw(
    path: Path,
    part: Part,
    targets: Mapping[str, tuple[AnyTarget, Volume]],
    scores: Mapping[str, Mapping[str, float]],
) -> None:
    scored = {
        name: DrawnTarget(
            label,
            prediction,
            ", ".join(f"{key} {value:.3g}" for key, value in list(scores[name].items())[:2]),
        )
        for name, (target, prediction) in targets.items()
        if (label := part.label(name, target))
    }
    write_overlay(path, part.volume.inputs[0], scored, part.box)


def _parts(task: Task, bbox: BoundingBox | None, reporter: Reporter) -> list[Part]:
    """What to score: the regions held out, or `bbox`, of the labelled volumes that were predicted."""
    volumes = open_volumes(task)
    places = _input_locations(task)
    mine = [v for v in volumes if [i.location for i in v.inputs] == places]
    if not mine:
        found = f"{places} is none of dataset_config.volume_paths"
        raise TaskError(INPUT, found, "predict a labelled volume, or add its labels to the task")
    held_out = _regions(task, volumes, reporter) if bbox is None else {}
    predicted = task.inference_params.bbox
    parts: list[Part] = []
    for volume in mine:
        box = held_out.get(volume.name) if bbox is None else _box(bbox)
        if box is not None and predicted is not None:
            box = box.intersect(_box(predicted))
        if box is not None and bbox is not None and not volume.inputs[0].box.contains(box):
            extent = volume.inputs[0].extent
            raise TaskError("bbox", f"{_text(box)} is not inside the volume, shape {extent}")
        if box is not None and box.voxels:
            parts.append(Part(volume, box))
    if not parts:
        found = "nothing of the predicted part was held out of training"
        raise TaskError(INPUT, found, "give a bbox to score, or predict a validation volume")
    # Several entries may be parts of one volume; a bbox is scored once, with the labels of all.
    return parts if bbox is None else _distinct(parts)


def _distinct(parts: Sequence[Part]) -> list[Part]:
    """One part for each set of label arrays."""
    seen: dict[tuple[str, ...], Part] = {}
    for part in parts:
        seen.setdefault(tuple(sorted(v.location for v in part.volume.labels.values())), part)
    return list(seen.values())


def _input_locations(task: Task) -> list[str]:
    """Where the arrays of `input_path` are, groups resolved to the level that is read."""
    params = task.inference_params
    if not params.input_path:
        raise TaskError(INPUT, "is not set", "name the volume that was predicted")
    paths = [params.input_path] if isinstance(params.input_path, str) else params.input_path
    return [
        open_volume(
            expand_location(path),
            key=INPUT,
            level=params.level,
            channels="any",
            channel_axis=params.channel_axis,
        ).location
        for path in paths
    ]


def _regions(task: Task, volumes: Sequence[TaskVolume], reporter: Reporter) -> dict[str, Box]:
    """The validation region of each volume by its name, from the run's `splits.json`."""
    path = task.run_dir / "splits.json"
    if not path.exists():
        whole = {volume.name: volume.region for volume in volumes if volume.split == "val"}
        if whole:
            return whole
        raise TaskError(str(path), "is not there", "train first, or give a bbox to score")
    try:
        saved: dict[str, Any] = read_json(path)
        named = zip(saved["volumes"], saved["val_regions"], strict=True)
        regions = {name: _box(pairs) for name, pairs in named if pairs is not None}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TaskError(str(path), f"damaged ({type(error).__name__})", "give a bbox") from error
    if saved.get("split_mode") == "random":
        reporter.say("random split: voxels that were trained on are scored too")
    return regions


def _predicted_targets(task: Task, parts: Sequence[Part]) -> dict[str, tuple[AnyTarget, Volume]]:
    """The predictions that some part has labels for, opened and checked."""
    folder = task.inference_params.output_dir
    if not folder:
        raise TaskError(OUTPUT, "is not set", "name the folder of the prediction")
    root = place_at(expand_location(folder)) / f"{task.tr_params.model_name}.zarr"
    wanted = task.inference_params.output_targets
    found: dict[str, tuple[AnyTarget, Volume]] = {}
    for name, target in task.dataset_config.targets.items():
        if (wanted == "all" or name in wanted) and any(p.label(name, target) for p in parts):
            found[name] = target, _open_prediction(root / name, target, parts[0])
    if not found:
        raise TaskError(OUTPUT, "no predicted target has a label on this volume")
    return found


def _open_prediction(group: Place, target: AnyTarget, part: Part) -> Volume:
    """Open what inference wrote for one target.

    Raises:
        VolumeError: it is missing, unfinished, of another shape, or encoded otherwise than the
            task says.
    """
    if not group.names():
        raise VolumeError(str(group), "there is no prediction", "run infer.py first")
    notes = group_attributes(str(group)).get("vcmodels", {})
    if notes.get("complete") is False:
        raise VolumeError(str(group), "the prediction is not finished", "run infer.py again")
    array = open_volume(str(group), key=OUTPUT, channels="any")
    written, expected = notes.get("encoding"), target.encoding(array.dtype)
    if written != expected:
        found = f"was written with {written}, the task now says {expected}"
        raise VolumeError(str(group), found, "restore the target's keys or predict again")
    extent = part.volume.inputs[0].extent
    if array.extent != extent:
        found = f"has extent {array.extent}, its input {extent}"
        raise VolumeError(str(group), found, "predict again into another output_dir")
    return array


def _box(bbox: BoundingBox) -> Box:
    return Box.between([start for start, _ in bbox], [end for _, end in bbox])


def _text(box: Box) -> str:
    pairs = zip(box.origin, box.end, strict=True)
    return "[" + ", ".join(f"{start}:{end}" for start, end in pairs) + "]"
