"""Doubt by classes against sums by hand; the choice against what must hold of any."""

from collections import Counter

import numpy as np
import pytest

from vcmodels.geometry.boxes import Box
from vcmodels.suggestions.choice import Candidate, choose
from vcmodels.suggestions.doubt import (
    BoxDoubt,
    doubt_in_dispersion,
    doubt_in_probabilities,
    joined,
)
from vcmodels.targets.binary import BinaryTarget
from vcmodels.targets.multiclass import MulticlassTarget

SIZE = (4, 4, 4)


def entropy(*shares: float) -> float:
    return -sum(p * np.log(p) for p in shares if p > 0)


def test_doubt_of_a_mask_is_entropy_weighed_by_the_mask() -> None:
    values = np.array([0.5, 0.9, 0.1, 1.0, 0.0, 0.0]).reshape(1, 1, 2, 3)
    found = doubt_in_probabilities("sheet", BinaryTarget(channels=1), values)
    nats = [entropy(p, 1 - p) * p for p in values.ravel()]
    assert found.by_class == {"sheet": pytest.approx(np.mean(nats) / np.log(2), abs=1e-5)}
    assert found.foreground == pytest.approx(2 / 6)


def test_doubt_of_classes_is_apart_for_each_and_none_for_the_background() -> None:
    target = MulticlassTarget(channels=3, label_values=[0, 2, 7], output="probabilities")
    shares = np.array([[0.98, 0.01, 0.01], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0]]).T
    found = doubt_in_probabilities("organ", target, shares.reshape(3, 1, 1, 3))
    unsure = [entropy(*column) / np.log(3) for column in shares.T]
    expected = {
        "organ: 2": np.dot(unsure, shares[1]) / 3,
        "organ: 7": np.dot(unsure, shares[2]) / 3,
    }
    assert found.by_class == pytest.approx(expected, abs=1e-5)
    assert found.foreground == pytest.approx(2 / 3)


def test_sure_voxels_have_no_doubt() -> None:
    for sure in (0.0, 1.0):
        found = doubt_in_probabilities(
            "sheet", BinaryTarget(channels=1), np.full((1, 2, 3, 4), sure)
        )
        assert found.by_class["sheet"] < 1e-5


def test_dispersion_counts_in_parts_of_the_largest() -> None:
    spread = np.array([0.0, 0.25, 0.5, 9.0]).reshape(1, 1, 1, 4)
    assert doubt_in_dispersion("depth", spread, 0.5).by_class == {"depth": (0 + 0.5 + 1 + 1) / 4}


def test_several_targets_add_their_classes() -> None:
    both = joined([BoxDoubt({"a": 0.1}, 0.2), BoxDoubt({"b": 0.3, "c": 0.4}, 0.1)])
    assert both == BoxDoubt({"a": 0.1, "b": 0.3, "c": 0.4}, 0.2)


def row_of(doubts: list[dict[str, float]], step: int = 40, foreground: float = 0.5):
    """Boxes along x, `step` voxels apart."""
    return [
        Candidate("one", Box((0, 0, step * n), SIZE), BoxDoubt(doubt, foreground))
        for n, doubt in enumerate(doubts)
    ]


def test_without_noise_the_classes_take_turns_by_doubt() -> None:
    found = row_of([
        {"a": 0.9, "b": 0.1}, {"a": 0.8, "b": 0.0}, {"a": 0.1, "b": 0.5}, {"a": 0.7, "b": 0.6},
    ])  # fmt: skip
    chosen = choose(found, 4, "uncertain", 0, SIZE, np.random.default_rng(0))
    assert [(found.index(one.candidate), one.reason) for one in chosen] == [
        (0, "a"), (3, "b"), (1, "a"), (2, "b"),
    ]  # fmt: skip
    assert [one.score for one in chosen] == [0.9, 0.6, 0.8, 0.5]


def test_noise_draws_in_proportion_to_doubt() -> None:
    """The largest of log-doubts with Gumbel noise is each box with its share of all doubt."""
    doubts = np.array([0.5, 0.3, 0.2])
    found, rng = row_of([{"a": d} for d in doubts]), np.random.default_rng(0)
    drawn = Counter(
        choose(found, 1, "uncertain", 1.0, SIZE, rng)[0].candidate.box.origin[2] // 40
        for _ in range(3000)
    )
    shares = np.array([drawn[n] for n in range(3)]) / 3000
    assert shares == pytest.approx(doubts, abs=0.03)


@pytest.mark.parametrize("rule", ["uncertain", "random"])
def test_boxes_keep_apart_as_long_as_others_are_left(rule) -> None:
    rng = np.random.default_rng(1)
    doubts = [{"a": float(d)} for d in rng.random(40)]
    touching = row_of(doubts, step=4)
    chosen = choose(touching, 8, rule, 1.0, SIZE, rng)
    places = sorted(one.candidate.box.origin[2] for one in chosen)
    assert min(np.diff(places)) >= 8  # a box's length between any two
    every = choose(touching, 100, rule, 1.0, SIZE, rng)
    assert len(every) == len({one.candidate.box for one in every}) == 40


def test_boxes_of_other_volumes_are_never_near() -> None:
    box = Box((0, 0, 0), SIZE)
    found = [Candidate(name, box, BoxDoubt({"a": 0.5}, 0.5)) for name in "xyz"]
    assert len(choose(found, 3, "uncertain", 0, SIZE, np.random.default_rng(0))) == 3


def test_two_of_three_random_boxes_have_something_in_them() -> None:
    empty = row_of([{"a": 0.5}] * 90, foreground=0.0)
    full = [one._replace(volume="two") for one in row_of([{"a": 0.5}] * 10, foreground=0.5)]
    chosen = choose([*empty, *full], 12, "random", 1.0, SIZE, np.random.default_rng(0))
    assert sum(one.candidate.doubt.foreground > 0 for one in chosen) >= 8
    assert {one.candidate.doubt.foreground > 0 for one in chosen} == {True, False}
