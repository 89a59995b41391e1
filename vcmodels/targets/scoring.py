"""How a target kind is measured: what its metrics compare, and the figures that they give."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vcmodels.comparison import Compared
from vcmodels.geometry.boxes import Spacing
from vcmodels.metrics.registry import (
    Metrics,
    Sense,
    Sums,
    fitting_metrics,
    measure,
    measure_volume,
    senses,
    summarise,
)
from vcmodels.section import Section


class Scoring(Section):
    """The part of a target that compares predictions with labels.

    A kind says what it `predicts` and which `metric` counts; the rest has defaults.
    """

    predicts: ClassVar[Compared]
    """What losses and metrics must compare; all that do are allowed, but for the excluded ones."""
    metric: ClassVar[str]
    """The figure that shows best how good a prediction is."""
    excluded_metrics: ClassVar[frozenset[str]] = frozenset()
    """Metrics that compare what the kind predicts and say little about it."""

    def comparable(self, prediction: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Prediction and label in the form that metrics compare: see `Compared`.

        Args:
            prediction: (B, P, Z, Y, X) float32, as from `unblend` or `decode`.
            label: (B, L, Z, Y, X) float32.
        """
        return prediction, label

    @property
    def class_names(self) -> tuple[str, ...]:
        """What figures of single classes are named after: all classes but the background."""
        return ()

    @property
    def metrics(self) -> Metrics:
        """The metrics of this target, by name."""
        fitting = fitting_metrics(self.predicts)
        return {name: m for name, m in fitting.items() if name not in self.excluded_metrics}

    @property
    def figures(self) -> dict[str, Sense]:
        """The figures that `summarise` returns, and whether less or more of each is better."""
        return senses(self.metrics, self.class_names)

    def measure(self, prediction: Tensor, label: Tensor, valid: Tensor) -> Sums:
        """Sums over the valid voxels from which `summarise` computes the figures.

        Args:
            prediction: (B, P, Z, Y, X) float32, as from `unblend` or `decode`.
            label: (B, L, Z, Y, X) float32.
            valid: (B, V, Z, Y, X) bool.
        """
        return measure(self.metrics, *self.comparable(prediction, label), valid)

    def summarise(self, sums: Sums) -> dict[str, float]:
        """Figures of all that was measured; NaN where nothing was valid."""
        return summarise(self.metrics, sums, self.class_names)

    def measure_volume(
        self, prediction: np.ndarray, label: np.ndarray, valid: np.ndarray, spacing: Spacing
    ) -> dict[str, float]:
        """The figures that need a volume whole.

        Args:
            prediction: (P, Z, Y, X) float32, as from `decode`.
            label: (L, Z, Y, X) float32, as from `read_label`.
            valid: (V, Z, Y, X) bool.
            spacing: length of a voxel along (z, y, x).
        """
        pair = self.comparable(torch.from_numpy(prediction)[None], torch.from_numpy(label)[None])
        found, wanted = (tensor[0].numpy() for tensor in pair)
        return measure_volume(self.metrics, found, wanted, valid, spacing, self.class_names)
