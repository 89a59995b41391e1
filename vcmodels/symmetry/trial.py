"""A trial: can a test tell windows from their mirror images, on windows that it has not seen?

A classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv:1610.06545) on pairs: a linear
discriminant with a diagonal covariance is fitted to the differences between windows and their images,
and asked for each left-out window which of the two is the original. How rare as many right answers
are is found by exchanging originals and images at random (sign flips of whole groups; Good 2005,
"Permutation, Parametric and Bootstrap Tests of Hypotheses"), for the answers depend on each other.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LEAST_SHARE = 0.75
"""Told apart in fewer windows, a mirror image is so much like an original that it teaches well."""
FLIPS = 10_000
"""Exchanges at random."""
MOST_CHANCE = 2e-4
"""A share as high is reached by guessing with at most this chance: there are some 200 trials of a
data set."""
FEWEST = 14
"""Groups of windows below which even right answers alone would be no rarer; from so many volumes on, a
volume is a group."""
RIDGE = 0.01


@dataclass(frozen=True)
class PairTrial:
    """How often the original was told from its image."""

    right: float
    """Windows; one without a difference counts a half."""
    windows: int
    chance: float = 1.0
    """How often guessing gets as many right; 1 where that was not asked, as of a low share."""

    @property
    def share(self) -> float:
        """Of windows that were right; a half without any."""
        return self.right / self.windows if self.windows else 0.5

    @property
    def refutes(self) -> bool:
        """Whether they are told apart: mostly, and not by chance."""
        return self.share >= LEAST_SHARE and self.chance <= MOST_CHANCE

    def __str__(self) -> str:
        return f"told apart in {self.right:.0f} of {self.windows} windows"


def tell_apart(differences: np.ndarray, groups: np.ndarray) -> PairTrial:
    """Try to tell originals from images by a linear test.

    Args:
        differences: (n, features) float64: a window less its image.
        groups: (n,) int; a test has seen no window of the group that it is asked about.
    """
    if not differences.size:
        return PairTrial(0.5 * len(differences), len(differences))
    _, groups = np.unique(groups, return_inverse=True)
    likeness = _likeness(differences) * (groups[:, None] != groups)
    (right,) = _right(likeness, np.ones((1, len(groups))))
    count = int(groups.max()) + 1
    if right < LEAST_SHARE * len(groups) or count < FEWEST:
        return PairTrial(float(right), len(groups))
    guesses = _right(likeness, _exchanges(count)[:, groups])
    chance = float(1 + (guesses >= right).sum()) / (1 + FLIPS)
    return PairTrial(float(right), len(groups), chance)


def _likeness(differences: np.ndarray) -> np.ndarray:
    """(n, n): inner products of differences, each feature over its mean square.

    A mean square does not change when windows and images are exchanged, so that it may be of all.
    """
    square = (differences**2).mean(0)
    scaled = differences / np.sqrt(square + RIDGE * square.mean() + 1e-30)
    return scaled @ scaled.T


def _right(likeness: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """How many windows are right, (m,), for each of the exchanges (m, n) of signs 1 and -1.

    The score of a window is its likeness to the sum of all others.
    """
    scores = signs * (signs @ likeness)
    # Rounding is no evidence.
    least = 1e-9 * np.abs(likeness).sum(1)
    return (scores > least).sum(1) + 0.5 * (np.abs(scores) <= least).sum(1)


@lru_cache(maxsize=4)
def _exchanges(count: int) -> np.ndarray:
    """(FLIPS, count) of 1 and -1, the same every time."""
    rng = np.random.Generator(np.random.Philox(key=[count, 5]))
    return 2.0 * rng.integers(0, 2, (FLIPS, count)) - 1
