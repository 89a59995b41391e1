"""Scores of thin structures."""

from itertools import starmap

import numpy as np

from vcmodels.geometry.boxes import Spacing
from vcmodels.metrics.base import Sense
from vcmodels.metrics.overlap import ratio, regions

CENTRELINE_SENSES: dict[str, Sense] = {
    "cldice": "max",
    "skeleton_precision": "max",
    "skeleton_recall": "max",
}


def centreline_dice(
    prediction: np.ndarray, label: np.ndarray, valid: np.ndarray, spacing: Spacing
) -> dict[str, list[float]]:
    """The clDice (Shit et al. 2021, arXiv:2003.07311) of each mask, or class but the background.

    The share of the predicted skeleton that is in the labelled region, the share of the labelled
    skeleton that is in the predicted region, and their harmonic mean, which is clDice. Skeletons
    are made by scikit-image with the thinning of Lee, Kashyap and Chu (1994), of the whole volume,
    for the skeleton of a block is no part of that. A sheet is thinned to lines too, so that the
    figure says less of sheets than of tubes.

    Args:
        prediction: as for `overlap.regions`.
        label: as for `overlap.regions`.
        valid: as for `overlap.regions`.
        spacing: does not matter; the thinning knows voxels only.

    Returns:
        `cldice`, `skeleton_precision` and `skeleton_recall` of each; 0 where one of the two regions
        is empty, NaN where both are, or where the thinning leaves nothing of a region: it does of a
        cube of 2 x 2 x 2.
    """
    del spacing
    scores = list(starmap(_centreline_scores, regions(prediction, label, valid)))
    return {name: [score[n] for score in scores] for n, name in enumerate(CENTRELINE_SENSES)}


def _centreline_scores(predicted: np.ndarray, labelled: np.ndarray) -> tuple[float, float, float]:
    """clDice, precision and recall of two (Z, Y, X) bool."""
    if not predicted.any() or not labelled.any():
        value = 0.0 if predicted.any() or labelled.any() else np.nan
        return value, value, value
    precision, recall = _inside(predicted, labelled), _inside(labelled, predicted)
    both = precision + recall
    return 2 * precision * recall / both if both else 0.0, precision, recall


def _inside(region: np.ndarray, other: np.ndarray) -> float:
    """The share of the skeleton of a region that lies in another."""
    # Late: slow to import, and few measure this.
    from skimage.morphology import skeletonize

    skeleton = np.asarray(skeletonize(region, method="lee")) > 0
    return ratio(float(np.count_nonzero(skeleton & other)), float(np.count_nonzero(skeleton)))
