"""Predictions of plain arrays as what metrics take: masks, probabilities, classes, numbers."""

from dataclasses import dataclass

import numpy as np

from vcmodels.errors import RunError
from vcmodels.targets import MulticlassTarget
from vcmodels.targets.base import Target
from vcmodels.targets.stored import ForegroundRule

PREDICTION = "PREDICTION"


@dataclass(frozen=True)
class MaskOf:
    """A prediction as masks of 0 and 1: what a rule says of its values."""

    rule: ForegroundRule

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """(C, Z, Y, X) -> (C, Z, Y, X) float32."""
        return self.rule.of(stored).astype(np.float32)


OF_LOGITS = 'for logits give --predicted-foreground "> 0", for numbers --kind regression'
SOFTMAX = "for logits store their softmax, or the likeliest class in one channel"


@dataclass(frozen=True)
class ProbabilityOf:
    """A prediction of probabilities as it is."""

    name: str
    remedy: str = OF_LOGITS
    """For values that are none."""

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """(C, Z, Y, X) floats -> the same as float32.

        Raises:
            RunError: a value outside of [0, 1].
        """
        outside = (stored < 0) | (stored > 1)
        if outside.any():
            found = f"{self.name} holds {stored[outside][0]:g}, which is no probability"
            raise RunError(PREDICTION, found, self.remedy)
        return stored.astype(np.float32)


@dataclass(frozen=True)
class ClassOf:
    """A prediction of class values, all of which must be known."""

    target: MulticlassTarget
    name: str

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """(1, Z, Y, X) -> (classes, Z, Y, X) float32: 1 for the class, 0 for the others.

        Raises:
            RunError: a value that is no class.
        """
        found = self.target.decode(stored)
        unknown = ~found.any(axis=0, keepdims=True)
        if unknown.any():
            value = f"{self.name} holds {stored[unknown][0]:g}, which is no class"
            raise RunError(PREDICTION, value, "name it with --classes")
        return found


@dataclass(frozen=True)
class NumbersOf:
    """A prediction of plain numbers, integers too, in the order of the target's components."""

    target: Target

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """(C, Z, Y, X) -> (C, Z, Y, X) float32."""
        return self.target.decode(stored.astype(np.float32))
