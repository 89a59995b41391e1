"""Scores of a stored prediction against labels, block by block."""

import numpy as np
import torch

from vcmodels.data.labels import Label
from vcmodels.geometry.boxes import Box, Shape, blocks_of
from vcmodels.targets.base import Sums
from vcmodels.volumes import Volume

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
