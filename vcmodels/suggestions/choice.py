"""Which boxes to label, of many and how unsure a network is of each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from vcmodels.geometry.boxes import Box
from vcmodels.suggestions.doubt import BoxDoubt

RuleName = Literal["uncertain", "random"]

FOREGROUND_SHARE = 2 / 3
"""Of the random boxes, so many have something in them if any has; the rest lie anywhere."""
LEAST_FOREGROUND = 1e-3
"""The share of voxels from which on a box has something in it."""


class Candidate(NamedTuple):
    """A box that could be labelled."""

    volume: str
    box: Box
    doubt: BoxDoubt


@dataclass(frozen=True)
class Choice:
    """One suggested box, and why."""

    candidate: Candidate
    reason: str
    """The class that it was taken for; `foreground` or `anywhere` of random ones."""
    score: float
    """How unsure the network is of it for that class; 0 of random ones."""


def choose(
    found: Sequence[Candidate],
    count: int,
    rule: RuleName,
    noise: float,
    gap: Sequence[int],
    rng: np.random.Generator,
) -> list[Choice]:
    """Boxes to label, the first first.

    `uncertain`: the classes take turns, each its most doubtful box of those that are left. The doubts
    are disturbed first, since the boxes of which a network is least sure are much alike: to their
    logarithm `noise` times a Gumbel number is added, which draws boxes in proportion to a power of
    their doubt (Kirsch et al. 2021, arXiv:2106.12059). `random`: two of three have something in them.
    Boxes that lie within `gap` of one that was taken come only when no other is left.

    Args:
        found: those to choose from.
        count: how many are wanted.
        rule: by which.
        noise: 0 for the plain order.
        gap: voxels along (z, y, x) between two boxes of a volume.
        rng: of the noise and the draws.

    Returns:
        `count` of them, or all where there are fewer.
    """
    ranked = _by_doubt(found, noise, rng) if rule == "uncertain" else _at_random(found, rng)
    chosen: dict[int, Choice] = {}
    for turn in range(min(count, len(found))):
        reason, order, scores = ranked[turn % len(ranked)]
        left = [n for n in order if n not in chosen]
        far = (n for n in left if _is_far(found[n], chosen.values(), gap))
        taken = next(far, left[0])
        chosen[taken] = Choice(found[taken], reason, float(scores[taken]))
    return list(chosen.values())


Ranking = tuple[str, list[int], np.ndarray]
"""A reason, the numbers of all candidates from the best on, and the score of each candidate."""


def _by_doubt(found: Sequence[Candidate], noise: float, rng: np.random.Generator) -> list[Ranking]:
    names = sorted({name for one in found for name in one.doubt.by_class})
    rankings: list[Ranking] = []
    for name in names:
        scores = np.array([one.doubt.by_class.get(name, 0.0) for one in found])
        disturbed = np.log(np.maximum(scores, 1e-12)) + noise * rng.gumbel(size=len(found))
        rankings.append((name, np.argsort(-disturbed, kind="stable").tolist(), scores))
    return rankings


def _at_random(found: Sequence[Candidate], rng: np.random.Generator) -> list[Ranking]:
    """Two turns for boxes with something in them, as long as there are some, and one for any."""
    order, none = rng.permutation(len(found)).tolist(), np.zeros(len(found))
    full = sorted(order, key=lambda n: found[n].doubt.foreground < LEAST_FOREGROUND)
    turns = round(1 / (1 - FOREGROUND_SHARE))
    return [("foreground", full, none)] * (turns - 1) + [("anywhere", order, none)]


def _is_far(one: Candidate, chosen: Iterable[Choice], gap: Sequence[int]) -> bool:
    around = one.box.grow(gap)
    return not any(
        other.candidate.volume == one.volume and around.intersect(other.candidate.box).voxels
        for other in chosen
    )
