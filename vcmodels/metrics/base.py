"""What a metric is: sums over voxels, parts of blocks that are joined, or a volume seen whole.

- A `Metric` is computed from sums over voxels. They add over patches, blocks, volumes and processes,
  so that training can validate with it.
- A `BlockMetric` needs to know where things lie: surfaces, components, instances. It measures a volume
  block by block and joins the parts exactly: the figures do not depend on the blocks.
- A `VolumeMetric` is a plain function of a whole volume in memory.

What the figures of empty regions are, for all of them:

- Nothing is predicted and nothing labelled: NaN, there is nothing to measure. So is a share of
  nothing: precision where nothing is predicted; recall and average precision where nothing is
  labelled. Means leave NaN out.
- Only one of the two is empty: the worst value where there is one (Dice, surface Dice and panoptic
  quality 0); NaN where there is none (a distance may be of any length).
- Voxels that do not count are in no region, and in no figure.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

from vcmodels.comparison import Comparator, Compared
from vcmodels.geometry.boxes import Box, Spacing

Sense = Literal["min", "max"]
"""Whether less or more of a figure is better."""
Sums = dict[str, Tensor]
"""Named sums over valid voxels (float64, on the CPU); they add over patches, blocks and ranks."""
FigureValues = float | Sequence[float]
"""A number, or one for each class but the background (for masks: of the mask)."""
Measure = Callable[[Tensor, Tensor, Tensor], Sums]
"""(prediction, label, valid) -> sums over the valid voxels; see `Metric.measure`."""
BlockPart = dict[str, np.ndarray]
"""What a `BlockMetric` keeps of one block: arrays by name, as an npz file holds them."""


@dataclass(frozen=True)
class Curve:
    """A line or bars for people, such as precision over recall."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    x_label: str
    y_label: str
    style: Literal["line", "bars"] = "line"


CurveValues = Curve | Sequence[Curve]
"""A curve, or one for each class but the background (for masks: of the mask)."""


class Pair(Protocol):
    """A prediction and its label over one volume, readable in boxes of any size."""

    @property
    def form(self) -> Compared:
        """What the arrays are."""
        ...

    @property
    def box(self) -> Box:
        """What is scored."""
        ...

    @property
    def spacing(self) -> Spacing:
        """Length of a voxel along (z, y, x)."""
        ...

    @property
    def classes(self) -> int:
        """Of classes: how many, the background too; of masks: how many; else 1."""
        ...

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Prediction (C, Z, Y, X), label (L, Z, Y, X) and valid (V, Z, Y, X) bool of a box.

        The arrays are what `Compared` says of the form. The box may reach out of `self.box`: nothing
        is valid there. A box that was read before may come from a cache: do not write into it.
        """
        ...

    def regions(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """The predicted and the labelled region of each mask, or of each class but the background.

        Two (K, Z, Y, X) bool, false where nothing is valid and out of `self.box`.
        """
        ...

    def ids(self, box: Box) -> np.ndarray:
        """Which labelled object each voxel of a box belongs to, of a mask or of instances.

        (1, Z, Y, X) of an integer dtype: the values that are stored where the label is foreground, 0
        elsewhere, where nothing is valid and out of `self.box`.
        """
        ...


@dataclass(frozen=True)
class Metric(Comparator):
    """A figure of all voxels that count; with `by_class`, also one for each class.

    `summarise` turns sums into the figure: NaN where nothing was measured, a list with `by_class`.
    """

    measure: Measure
    """(prediction, label, valid) -> sums over the valid voxels. Metrics that share it share its
    sums, which are then made once."""
    summarise: Callable[[Sums], FigureValues]
    better: Sense | None
    """None for a figure that is neither, such as a threshold: nothing is chosen by it."""
    by_class: bool = False
    curves: Callable[[Sums], Mapping[str, CurveValues]] | None = None
    """Lines for a report, by title, from the same sums."""
    needs_probabilities: bool = False
    """Whether it says nothing of stored classes, which are certain of everything."""
    takes_counts: bool = False
    """Whether `measure` takes int64 in the place of `valid`, the number of voxels that each element
    stands for, and returns the same sums, to the bit, as of all of them."""


@dataclass(frozen=True)
class VolumeMetric(Comparator):
    """One or several figures of a whole volume.

    `function` takes a prediction (C, Z, Y, X), its label (L, Z, Y, X), valid (V, Z, Y, X) bool and
    the length of a voxel along (z, y, x), and returns the figures that `better` names.
    """

    function: Callable[[np.ndarray, np.ndarray, np.ndarray, Spacing], Mapping[str, FigureValues]]
    better: Mapping[str, Sense]
    is_default: bool = True
    """Whether it is measured where no metrics are named."""

    def __call__(
        self, prediction: np.ndarray, label: np.ndarray, valid: np.ndarray, spacing: Spacing
    ) -> Mapping[str, FigureValues]:
        """The figures by name."""
        return self.function(prediction, label, valid, spacing)


@dataclass(frozen=True)
class BlockMetric(Comparator, ABC):
    """Figures of a volume that is measured block by block, whatever the blocks.

    A subclass is a frozen dataclass; its fields are the options that a task may give.
    """

    is_default: bool = True
    """Whether it is measured where no metrics are named."""

    @property
    @abstractmethod
    def better(self) -> Mapping[str, Sense]:
        """The figures, and whether less or more of each is better."""

    @abstractmethod
    def measure(self, pair: Pair, block: Box) -> BlockPart:
        """What is kept of one block; the blocks do not overlap and cover `pair.box`.

        It may read around the block, as far as it needs, and keep what it finds of the rest of the
        volume as long as the pair lives: give it the same object for all blocks. Parts are small:
        they wait on disk until all are there.
        """

    @abstractmethod
    def join(self, parts: Iterable[tuple[Box, BlockPart]]) -> BlockPart:
        """All parts of a volume as one; their order does not matter. Read as a stream."""

    @abstractmethod
    def figures(self, joined: BlockPart) -> Mapping[str, FigureValues]:
        """The figures that `better` names.

        NaN where neither has anything to measure. Where only one has, a figure is at its worst value
        (a Dice is 0), or NaN if that has none: a distance.
        """

    def curves(self, joined: BlockPart) -> Mapping[str, Curve]:
        """Lines for a report, by title."""
        del joined
        return {}


AnyMetric = Metric | VolumeMetric | BlockMetric
Metrics = Mapping[str, AnyMetric]
"""By name."""
