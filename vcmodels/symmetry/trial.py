"""A trial: can a test tell windows from their mirror images, on windows that it has not seen?

A classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv:1610.06545) on pairs: a linear
discriminant with a diagonal covariance is fitted to the differences between windows and their images,
and asked for each left-out window which of the two is the original.
"""

from dataclasses import dataclass
from math import comb

import numpy as np

LEAST_SHARE = 0.75
"""Told apart in fewer windows, a mirror image is so much like an original that it teaches well."""
MOST_CHANCE = 1e-3
"""A share as high is reached by guessing with at most this chance."""
RIDGE = 0.01


@dataclass(frozen=True)
class Trial:
    """How often the original was told from its image."""

    right: float
    """Windows; one without a difference counts a half."""
    windows: int

    @property
    def share(self) -> float:
        """Of windows that were right; a half without any."""
        return self.right / self.windows if self.windows else 0.5

    @property
    def refutes(self) -> bool:
        """Whether they are told apart: mostly, and not by chance."""
        is_rare = chance(self.right, self.windows) <= MOST_CHANCE
        return self.share >= LEAST_SHARE and is_rare

    def __str__(self) -> str:
        return f"told apart in {self.right:.0f} of {self.windows} windows"


def tell_apart(differences: np.ndarray, groups: np.ndarray) -> Trial:
    """Try to tell originals from images by a linear test.

    Args:
        differences: (n, features) float64: a window less its image.
        groups: (n,) int; a test has seen no window of the group that it is asked about.
    """
    if not differences.size:
        return Trial(0.5 * len(differences), len(differences))
    _, groups = np.unique(groups, return_inverse=True)
    count = np.bincount(groups)
    total, squares = (_summed(part, groups, len(count)) for part in (differences, differences**2))
    left = np.maximum(len(differences) - count, 1)[:, None]
    mean = (total.sum(0) - total) / left
    second = (squares.sum(0) - squares) / left
    variance = np.maximum(second - mean**2, 0) + RIDGE * second.mean(1, keepdims=True) + 1e-30
    scores = (differences * (mean / variance)[groups]).sum(1)
    return Trial(float((scores > 0).sum() + 0.5 * (scores == 0).sum()), len(differences))


def _summed(values: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """(n, f) -> (count, f): sums by group."""
    found = np.zeros((count, values.shape[1]))
    np.add.at(found, groups, values)
    return found


def chance(right: float, windows: int) -> float:
    """With which chance guessing gets as many right, or more."""
    first = int(np.ceil(right))
    return sum(comb(windows, k) for k in range(first, windows + 1)) / 2**windows
