"""A pair in memory for tests of metrics that are measured in blocks, and their oracles."""

from dataclasses import dataclass, field

import numpy as np

from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import blocks_of


@dataclass(eq=False)
class RegionPair:
    """Regions (K, Z, Y, X) bool; the first voxel is at `origin`."""

    predicted: np.ndarray
    labelled: np.ndarray
    spacing: tuple = (1.0, 1.0, 1.0)
    origin: tuple = (0, 0, 0)
    form: str = "masks"
    boxes: list = field(default_factory=list)
    """What was read."""

    @property
    def box(self):
        return Box(self.origin, self.predicted.shape[1:])

    @property
    def classes(self):
        return len(self.predicted)

    def read(self, box):
        predicted, labelled = self.regions(box)
        return predicted, labelled, np.ones_like(labelled)

    def regions(self, box):
        self.boxes.append(box)
        return self._cut(self.predicted, box), self._cut(self.labelled, box)

    def _cut(self, regions, box):
        found, part = np.zeros((len(regions), *box.shape), bool), self.box.intersect(box)
        if part.voxels:
            where = (slice(None), *part.slices(self.box))
            found[(slice(None), *part.slices(box))] = regions[where]
        return found


def measured(metric, pair, block):
    """What a metric of blocks keeps of a pair, joined."""
    return metric.join((box, metric.measure(pair, box)) for box in blocks_of(pair.box, block))


def figures(metric, pair, block):
    return metric.figures(measured(metric, pair, block))
