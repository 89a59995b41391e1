"""Scores of objects: how two divisions of a volume agree, and how many objects are found.

All figures are made of one table, which adds over blocks: for each predicted and labelled id that
share a voxel, how many they share. Only voxels that count are in it. Id 0 is the background, which
is no object.

- *VOI* (Meila 2007, doi:10.1016/j.jmva.2006.11.013), in bits: `voi_split` is H(prediction | label),
  what the prediction cuts apart, `voi_merge` H(label | prediction), what it joins, `voi` their sum.
- *Adapted Rand* (Arganda-Carreras et al. 2015, doi:10.3389/fnana.2015.00142), over pairs of two
  different voxels: `rand_precision` is the share of the pairs in one predicted object that are in
  one labelled object, `rand_recall` the share of the pairs of labelled objects that are in one
  predicted object, `rand_error` 1 - 2PR / (P + R).
- *AP* at an IoU threshold t: TP / (TP + FP + FN), as in the evaluation of cell segmentation (2018
  Data Science Bowl, StarDist, Cellpose), which is not the area under a curve of confidences; `ap`
  is the mean over t = 0.50, 0.55 .. 0.95. A match has an IoU of at least t. Above one half an
  object has no second match; of several at one half, one counts.
- *PQ* (Kirillov et al. 2019, arXiv:1801.00868), over matches with an IoU above one half: `sq`, the
  mean IoU of the matches, times `rq`, TP / (TP + FP / 2 + FN / 2). `f1_50` is the same share with
  the matches of AP.

By default voxels that are labelled background are left out of VOI and Rand, as CREMI and SNEMI3D do
(`ignore_labels=(0,)` in scikit-image); a predicted background counts as one more object then. With
`ignore_background` off the background is one more object on both sides, the default of
`skimage.metrics.variation_of_information`. Equal to scikit-image to 1e-9, but for the names of
precision and recall, which `skimage.metrics.adapted_rand_error` (0.26) returns the other way round.
`funlib.evaluate.rand_voi` has the same VOI; its Rand also counts the pairs of a voxel with itself.
The CREMI code, which PyTorch Connectomics took over, has the same VOI and takes each voxel of
predicted background for an object of its own in Rand.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import nan

import numpy as np

from vcmodels.geometry.boxes import Box
from vcmodels.metrics.base import BlockMetric, BlockPart, Curve, FigureValues, Pair, Sense
from vcmodels.metrics.overlap import ratio

THRESHOLDS = tuple(round(0.5 + 0.05 * n, 2) for n in range(10))
"""Of the IoU, for average precision."""

_ROWS = 1 << 20
"""Rows that wait before tables are added up: 24 MB."""

OBJECT_SENSES: Mapping[str, Sense] = {
    "voi": "min",
    "voi_split": "min",
    "voi_merge": "min",
    "rand_error": "min",
    "rand_precision": "max",
    "rand_recall": "max",
    "ap": "max",
    "ap_50": "max",
    "ap_75": "max",
    "pq": "max",
    "sq": "max",
    "rq": "max",
    "f1_50": "max",
    "missed_objects": "min",
    "false_objects": "min",
    "count_error": "min",
}


@dataclass(frozen=True)
class Overlaps:
    """How many voxels each predicted id shares with each labelled id, 0 included.

    Each pair stands once; the rows are sorted by the predicted, then the labelled id.
    """

    predicted: np.ndarray
    """(n,) uint64."""
    labelled: np.ndarray
    """(n,) uint64."""
    voxels: np.ndarray
    """(n,) int64, 1 or more."""

    @classmethod
    def of(cls, predicted: np.ndarray, labelled: np.ndarray, valid: np.ndarray) -> "Overlaps":
        """The table of a block.

        By runs of voxels along x that do not change: objects are much wider than a voxel, so that
        there are far fewer runs to sort than voxels.

        Args:
            predicted: ids of any integer dtype; one below 0 stands for itself, as do others.
            labelled: of the same shape.
            valid: of the same shape, bool: which voxels count.
        """
        p, t, counts = predicted.reshape(-1), labelled.reshape(-1), valid.reshape(-1)
        if not len(p):
            return cls.added([])
        starts = np.flatnonzero(
            np.concatenate([[True], _changes(p) | _changes(t) | _changes(counts)])
        )
        lengths = np.diff(starts, append=len(p))
        kept = counts[starts]
        starts, lengths = starts[kept], lengths[kept]
        return cls.summed(p[starts].astype(np.uint64), t[starts].astype(np.uint64), lengths)

    @classmethod
    def summed(cls, predicted: np.ndarray, labelled: np.ndarray, voxels: np.ndarray) -> "Overlaps":
        """The table of rows in which a pair may stand several times."""
        (rows, row), (columns, column) = _numbered(predicted), _numbered(labelled)
        pairs, pair = _numbered(row * len(columns) + column)
        counts = np.bincount(pair, voxels, len(pairs)).astype(np.int64)  # exact below 2^53
        row, column = np.divmod(pairs, max(len(columns), 1))
        return cls(rows[row], columns[column], counts)

    @classmethod
    def added(cls, tables: Iterable["Overlaps"]) -> "Overlaps":
        """The table of several blocks; held are the sum, and a million rows or as many as it has."""
        empty = np.empty(0, np.uint64)
        total, waiting, rows = cls(empty, empty, np.empty(0, np.int64)), list[Overlaps](), 0
        for table in tables:
            waiting.append(table)
            rows += len(table.voxels)
            if rows > max(_ROWS, len(total.voxels)):
                total, waiting, rows = cls._concatenated([total, *waiting]), [], 0
        return cls._concatenated([total, *waiting])

    @classmethod
    def _concatenated(cls, tables: list["Overlaps"]) -> "Overlaps":
        columns = (
            [getattr(t, name) for t in tables] for name in ("predicted", "labelled", "voxels")
        )
        return cls.summed(*map(np.concatenate, columns))

    def to_part(self) -> BlockPart:
        """As arrays by name."""
        return {"predicted": self.predicted, "labelled": self.labelled, "voxels": self.voxels}

    def without_background(self) -> "Overlaps":
        """The rows whose labelled id is not 0."""
        kept = self.labelled != 0
        return Overlaps(self.predicted[kept], self.labelled[kept], self.voxels[kept])

    @cached_property
    def predicted_sizes(self) -> np.ndarray:
        """(n,) int64: voxels of the predicted object of each row, in the whole table."""
        return _sizes(self.predicted, self.voxels)

    @cached_property
    def labelled_sizes(self) -> np.ndarray:
        """(n,) int64: voxels of the labelled object of each row, in the whole table."""
        return _sizes(self.labelled, self.voxels)


def _changes(values: np.ndarray) -> np.ndarray:
    return values[1:] != values[:-1]


def _numbered(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ids in order, and the place of each among them.

    NumPy finds distinct integers by a hash table; with `return_inverse` it sorts, which takes four
    times as long as this.
    """
    distinct = np.sort(np.unique(ids))
    return distinct, np.searchsorted(distinct, ids)


def _sizes(ids: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    distinct, place = _numbered(ids)
    return np.bincount(place, voxels, len(distinct)).astype(np.int64)[place]


def variation_of_information(table: Overlaps) -> tuple[float, float]:
    """H(prediction | label) and H(label | prediction) in bits; NaN where the table is empty."""
    n, whole = table.voxels, float(table.voxels.sum())
    split = n * np.log2(table.labelled_sizes / n)
    merge = n * np.log2(table.predicted_sizes / n)
    return ratio(_total(split), whole), ratio(_total(merge), whole)


def _total(terms: np.ndarray) -> float:
    """Their sum, which does not depend on their order: objects are numbered as the blocks come."""
    return float(np.sort(terms).sum())


def adapted_rand(table: Overlaps) -> tuple[float, float, float]:
    """Error, precision and recall; NaN where no object has two voxels."""
    together = _pairs(table.voxels)
    predicted, labelled = (_pairs(_each(*of)) for of in _sides(table))
    error = 1 - ratio(2 * together, predicted + labelled)
    return error, ratio(together, predicted), ratio(together, labelled)


def _sides(table: Overlaps) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    return (
        (table.predicted, table.predicted_sizes),
        (table.labelled, table.labelled_sizes),
    )


def _each(ids: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The size of each distinct id once."""
    return sizes[np.unique(ids, return_index=True)[1]]


def _pairs(sizes: np.ndarray) -> float:
    """Ordered pairs of different voxels in sets of these sizes."""
    return _total(sizes.astype(np.float64) * (sizes - 1))


@dataclass(frozen=True)
class Matches:
    """The predicted objects that overlap a labelled one by half of their union or more."""

    iou: np.ndarray
    """(n,) float64, in descending order; of several matches of one object, which all have an IoU of
    one half, there is one."""
    predicted: int
    """How many objects there are."""
    labelled: int

    @classmethod
    def of(cls, table: Overlaps) -> "Matches":
        """Match all objects of a table, which has the rows of the background too."""
        objects = (table.predicted != 0) & (table.labelled != 0)
        n = table.voxels[objects]
        iou = n / (table.predicted_sizes[objects] + table.labelled_sizes[objects] - n)
        half = iou >= 0.5
        p, t, iou = (
            values[half] for values in (table.predicted[objects], table.labelled[objects], iou)
        )
        order = np.argsort(-iou, kind="stable")
        first = _is_first(p[order]) & _is_first(t[order])
        counts = (
            int(np.count_nonzero(np.unique(ids))) for ids in (table.predicted, table.labelled)
        )
        return cls(iou[order][first], *counts)

    def average_precision(self, threshold: float) -> float:
        """TP / (TP + FP + FN) at a threshold of the IoU; NaN without objects."""
        true = self._above(threshold)
        return ratio(true, self.predicted + self.labelled - true)

    def f1(self) -> float:
        """2 TP / (objects on both sides) at an IoU of one half; NaN without objects."""
        return ratio(2 * len(self.iou), self.predicted + self.labelled)

    def panoptic(self) -> tuple[float, float, float]:
        """PQ, SQ and RQ; NaN without objects, 0 without matches."""
        matched = self.iou[self.iou > 0.5]
        recognition = ratio(2 * len(matched), self.predicted + self.labelled)
        if not len(matched):
            return recognition, recognition, recognition
        quality = _total(matched) / len(matched)
        return quality * recognition, quality, recognition

    def _above(self, threshold: float) -> int:
        # A quotient of whole numbers that is 0.55, say, is the float that is nearest to it.
        return int(np.count_nonzero(self.iou >= threshold))


def _is_first(ids: np.ndarray) -> np.ndarray:
    first = np.zeros(len(ids), bool)
    first[np.unique(ids, return_index=True)[1]] = True
    return first


def object_figures(table: Overlaps, *, ignore_background: bool) -> dict[str, float]:
    """All figures of a table that has the rows of the background too.

    Without a voxel that counts all are NaN; without objects on one side AP, PQ and F1 are 0.
    """
    divided = table.without_background() if ignore_background else table
    split, merge = variation_of_information(divided)
    error, precision, recall = adapted_rand(divided)
    matches = Matches.of(table)
    precisions = [matches.average_precision(threshold) for threshold in THRESHOLDS]
    quality, segmentation, recognition = matches.panoptic()
    found, any_voxel = len(matches.iou), len(table.voxels) > 0
    return {
        "voi": split + merge,
        "voi_split": split,
        "voi_merge": merge,
        "rand_error": error,
        "rand_precision": precision,
        "rand_recall": recall,
        "ap": float(np.mean(precisions)),
        "ap_50": precisions[0],
        "ap_75": precisions[5],
        "pq": quality,
        "sq": segmentation,
        "rq": recognition,
        "f1_50": matches.f1(),
        "missed_objects": float(matches.labelled - found) if any_voxel else nan,
        "false_objects": float(matches.predicted - found) if any_voxel else nan,
        "count_error": float(abs(matches.predicted - matches.labelled)) if any_voxel else nan,
    }


def precision_curve(table: Overlaps) -> Curve:
    """AP over the threshold of the IoU."""
    matches = Matches.of(table)
    values = tuple(matches.average_precision(threshold) for threshold in THRESHOLDS)
    return Curve(THRESHOLDS, values, "IoU of a match, at least", "TP / (TP + FP + FN)")


@dataclass(frozen=True)
class Instances(BlockMetric):
    """Scores of ids."""

    ignore_background: bool = True
    """Whether voxels that are labelled background are left out of VOI and Rand."""

    @property
    def better(self) -> Mapping[str, Sense]:
        return OBJECT_SENSES

    def measure(self, pair: Pair, block: Box) -> BlockPart:
        predicted, labelled, valid = pair.read(block)
        return Overlaps.of(predicted[0], labelled[0], valid[0]).to_part()

    def join(self, parts: Iterable[tuple[Box, BlockPart]]) -> BlockPart:
        return Overlaps.added(Overlaps(**part) for _, part in parts).to_part()

    def figures(self, joined: BlockPart) -> Mapping[str, FigureValues]:
        return object_figures(Overlaps(**joined), ignore_background=self.ignore_background)

    def curves(self, joined: BlockPart) -> Mapping[str, Curve]:
        return {"Average precision of objects": precision_curve(Overlaps(**joined))}
