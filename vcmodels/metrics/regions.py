"""Metrics of whole regions, which need more than sums over voxels."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from vcmodels.geometry.boxes import Spacing
from vcmodels.metrics.overlap import likeliest_class


def regions(
    prediction: np.ndarray, label: np.ndarray, valid: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The predicted and the labelled region of each mask, or of each class but the background.

    Args:
        prediction: (C, Z, Y, X) float32 probabilities.
        label: (C, Z, Y, X) masks in [0, 1]; or for C > 1 (1, Z, Y, X) class indices.
        valid: (V, Z, Y, X) bool, V being 1 or the channels of the label; no region goes beyond.

    Yields:
        Two (Z, Y, X) bool.
    """
    if len(label) == len(prediction):
        masks = zip(prediction, label, np.broadcast_to(valid, label.shape), strict=True)
        yield from (((p > 0.5) & v, (t > 0.5) & v) for p, t, v in masks)
        return
    index = likeliest_class(torch.from_numpy(prediction)).numpy()
    for c in range(1, len(prediction)):
        yield ((index == c) & valid)[0], ((label == c) & valid)[0]


def centroid_distance(
    prediction: np.ndarray, label: np.ndarray, valid: np.ndarray, spacing: Spacing
) -> dict[str, list[float]]:
    """How far the centre of each predicted region lies from the centre of the labelled one.

    In the unit of the spacing; NaN where one of the two regions is empty. Arguments as for
    `regions`, and the length of a voxel along (z, y, x).
    """
    pairs = regions(prediction, label, valid)
    distances = [math.dist(centroid(p, spacing), centroid(t, spacing)) for p, t in pairs]
    return {"centroid_distance": distances}


def centroid(region: np.ndarray, spacing: Spacing) -> tuple[float, float, float]:
    """The centre of mass of a (Z, Y, X) bool region from the centre of voxel (0, 0, 0); NaN if empty.

    By the voxels in each plane along an axis: three sums, and no array of positions.
    """
    voxels = np.count_nonzero(region)
    if not voxels:
        return math.nan, math.nan, math.nan
    z, y, x = (
        float(np.count_nonzero(region, axis=others) @ np.arange(region.shape[axis])) / voxels
        for axis, others in enumerate(((1, 2), (0, 2), (0, 1)))
    )
    return z * spacing[0], y * spacing[1], x * spacing[2]
