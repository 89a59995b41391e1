"""Scores of predictions against labels, block by block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vcmodels.data.labels import Label, StoredLabel
from vcmodels.data.task_volume import TaskVolume
from vcmodels.errors import TaskError
from vcmodels.evaluation.pairs import TargetPair
from vcmodels.evaluation.scoring import (
    ScoredTarget,
    ScoredVolume,
    score_volumes,
)
from vcmodels.geometry.boxes import Box, Shape, Spacing
from vcmodels.metrics.base import Metric, Metrics
from vcmodels.metrics.choice import default_metrics
from vcmodels.results import INPUT
from vcmodels.targets import AnyTarget
from vcmodels.volumes import ArrayVolume, Volume


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
        Those of `Target.stored_metrics` that are sums and, with `whole`, of the others; NaN where no
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
        found: list[ScoredTarget] = []
        for name, target in targets.items():
            if (label := self.label(name, target)) is not None:
                measured = (
                    default_metrics(target.stored_metrics) if metrics is None else metrics[name]
                )
                pair = pair_of(label, predictions[name], self.box)
                place = label.stored.array.location
                found.append(ScoredTarget(name, pair, measured, target.class_names, place))
        return ScoredVolume(
            self.volume.name,
            root,
            tuple(found),
            image=tuple(one.location for one in self.volume.inputs),
            unit=(self.volume.unit or "") if self.volume.has_spacing else "",
            split=self.volume.split,
        )


def wanted_targets(
    targets: Mapping[str, AnyTarget], names: Literal["all"] | Sequence[str]
) -> dict[str, AnyTarget]:
    """Those of some targets that `output_targets` names."""
    return {name: one for name, one in targets.items() if names == "all" or name in names}


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


def _text(box: Box) -> str:
    return "[" + ", ".join(f"{start}:{end}" for start, end in box.pairs) + "]"
