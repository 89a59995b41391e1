import numpy as np
import pytest

from vcmodels.symmetry.trial import FEWEST, MOST_CHANCE, RIDGE, tell_apart


def brute_force(differences, groups):
    """Each window asked of a discriminant that was fitted without its group."""
    right, square = 0.0, (differences**2).mean(0)
    for d, group in zip(differences, groups, strict=True):
        others = differences[groups != group].sum(0)
        score = d @ (others / (square + RIDGE * square.mean()))
        right += 1.0 if score > 0 else 0.5 * (score == 0)
    return right


def test_each_window_is_asked_of_a_test_that_has_not_seen_its_group():
    rng = np.random.default_rng(0)
    for lean in (0.0, 0.3, 2.0):
        differences = rng.normal(lean * np.array([1, 0, -1, 0.5, 0]), 1, (21, 5))
        groups = rng.integers(0, 6, 21)
        assert tell_apart(differences, groups).right == brute_force(differences, groups)


def test_what_leans_is_told_apart():
    trial = tell_apart(np.random.default_rng(1).normal(1.0, 1, (40, 6)), np.arange(40))
    assert trial.refutes
    assert str(trial) == f"told apart in {trial.right:.0f} of 40 windows"


@pytest.mark.parametrize("windows", [16, 40])
def test_noise_is_told_apart_as_rarely_as_is_said(windows):
    """The answers of one trial depend on each other: a binomial would be wrong 10 times as often."""
    rng = np.random.default_rng(2)
    trials = [tell_apart(rng.normal(0, 1, (windows, 24)), np.arange(windows)) for _ in range(400)]
    assert not any(trial.refutes for trial in trials)
    rare = np.mean([trial.chance <= 0.05 for trial in trials])
    assert rare <= 0.05 + 3 * np.sqrt(0.05 / 400)


def test_a_lean_of_each_group_on_its_own_is_no_lean_of_the_data():
    """As many windows of few volumes, each volume turned otherwise: by itself each would tell."""
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(16), 5)
    differences = rng.normal(0, 3, (16, 4))[groups] + rng.normal(0, 0.1, (80, 4))
    assert not tell_apart(differences, groups).refutes


@pytest.mark.parametrize(("windows", "refutes"), [(FEWEST - 1, False), (FEWEST, True)])
def test_few_windows_refute_nothing(windows, refutes):
    trial = tell_apart(np.ones((windows, 3)), np.arange(windows))
    assert trial.share == 1
    assert trial.refutes == refutes
    assert (trial.chance <= MOST_CHANCE) == refutes


@pytest.mark.parametrize("shape", [(0, 3), (5, 0), (5, 3)])
def test_nothing_to_compare_is_a_guess(shape):
    trial = tell_apart(np.zeros(shape), np.arange(shape[0]))
    assert trial.share == 0.5
    assert not trial.refutes
