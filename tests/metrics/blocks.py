"""Pairs in memory, and a block metric that is measured over random blocks."""

import random
from dataclasses import dataclass, field

import numpy as np

from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import blocks_of
from vcmodels.metrics.overlap import regions


@dataclass
class MemoryPair:
    form: str
    prediction: np.ndarray
    label: np.ndarray
    valid: np.ndarray
    spacing: tuple = (1.0, 1.0, 1.0)
    corner: tuple = (0, 0, 0)

    @property
    def box(self):
        return Box(self.corner, self.label.shape[1:])

    @property
    def classes(self):
        return len(self.prediction)

    def read(self, box):
        return tuple(cut(a, self.box, box) for a in (self.prediction, self.label, self.valid))

    def ids(self, box):
        _, label, valid = self.read(box)
        return np.where(valid, label, 0).astype(np.int64)

    def regions(self, box):
        pairs = list(regions(*self.read(box)))
        return tuple(np.stack(side) for side in zip(*pairs, strict=True))


@dataclass(eq=False)
class RegionPair:
    """Regions (K, Z, Y, X) bool that a test may change; the first voxel is at `corner`."""

    predicted: np.ndarray
    labelled: np.ndarray
    spacing: tuple = (1.0, 1.0, 1.0)
    corner: tuple = (0, 0, 0)
    form: str = "masks"
    boxes: list = field(default_factory=list)
    """What was read."""

    @property
    def box(self):
        return Box(self.corner, self.predicted.shape[1:])

    @property
    def classes(self):
        return len(self.predicted)

    def read(self, box):
        predicted, labelled = self.regions(box)
        return predicted, labelled, np.ones_like(labelled)

    def regions(self, box):
        self.boxes.append(box)
        return tuple(cut(a, self.box, box) for a in (self.predicted, self.labelled))


def cut(array, whole, box):
    """What an array (C, Z, Y, X) over a box holds in another; 0 outside of its own."""
    found, part = np.zeros((len(array), *box.shape), array.dtype), box.intersect(whole)
    if part.voxels:
        found[:, *part.slices(box)] = array[:, *part.slices(whole)]
    return found


def masks(predicted, labelled, valid=None, corner=(0, 0, 0)):
    """A pair of masks from (Z, Y, X) or (K, Z, Y, X) bool."""
    predicted, labelled = (a if a.ndim == 4 else a[None] for a in (predicted, labelled))
    valid = np.ones((1, *labelled.shape[1:]), bool) if valid is None else valid[None]
    return MemoryPair(
        "masks", predicted.astype(np.float32), labelled.astype(np.float32), valid, corner=corner
    )


def instances(predicted, labelled, valid=None):
    valid = np.ones(labelled.shape, bool) if valid is None else valid
    return MemoryPair("instances", predicted[None], labelled[None], valid[None])


def measured(metric, pair, block, seed=0):
    """The joined part of a metric over blocks in random order."""
    blocks = list(blocks_of(pair.box, block))
    random.Random(seed).shuffle(blocks)
    return metric.join((box, metric.measure(pair, box)) for box in blocks)


def figures(metric, pair, block, seed=0):
    found = metric.figures(measured(metric, pair, block, seed))
    assert list(found) == list(metric.better)
    return found
