from math import isnan, nan

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vcmodels.evaluation.report import Report, TargetScores, VolumeScores
from vcmodels.evaluation.summary import (
    Spread,
    class_of,
    figures_of,
    ranked,
    template_of,
)
from vcmodels.geometry.boxes import Box


@given(st.lists(st.floats(-1e6, 1e6), min_size=2), st.integers(0, 3))
def test_a_spread_is_that_of_the_known_values(values, unknown):
    found = Spread.of([*values, *[nan] * unknown])
    wanted = [np.mean(values), np.std(values, ddof=1), np.median(values), min(values), max(values)]
    np.testing.assert_allclose(
        [found.mean, found.sd, found.median, found.low, found.high], wanted, atol=1e-6
    )
    assert found.count == len(values)


def test_the_spread_of_nothing_is_unknown():
    assert Spread.of([nan]).count == 0
    assert isnan(Spread.of([]).mean)
    assert isnan(Spread.of([1.0]).sd)


def test_a_figure_of_a_class_is_known_by_the_longest_name_of_a_class():
    figures = dict.fromkeys(("dice", "dice_a", "dice_b_a", "dice_b", "odd_a"), 0.5)
    scores = TargetScores("classes", figures, {}, ("a", "b_a"))
    found = {figure: class_of(figure, scores) for figure in figures}
    assert found == {
        "dice": ("dice", None),
        "dice_a": ("dice", "a"),
        "dice_b_a": ("dice", "b_a"),
        "dice_b": ("dice_b", None),  # no class
        "odd_a": ("odd_a", None),  # of no figure
    }


def volumes(values, figure="dice", better=None):
    return tuple(
        VolumeScores(
            name, "", {}, (Box((0, 0, 0), (1, 1, 1)),), (1.0, 1.0, 1.0), "",
            {"t": TargetScores("masks", {figure: value}, better or {}, ("a",))},
        )
        for name, value in values.items()
    )  # fmt: skip


def test_volumes_are_ranked_from_the_best_on():
    values = {"a": 0.5, "b": nan, "c": 0.9, "d": 0.5}
    up = Report(volumes(values, better={"dice": "max"}), {}, {}, {})
    assert [v.name for v in ranked(up, "t", "dice")] == ["c", "a", "d"]
    down = Report(volumes(values, better={"dice": "min"}), {}, {}, {})
    assert [v.name for v in ranked(down, "t", "dice")] == ["a", "d", "c"]
    assert ranked(up, "t", "other") == []


def test_figures_of_a_target_are_those_of_any_volume_and_of_all_together():
    pooled = TargetScores("masks", {"dice": 0.5, "only": 1.0}, {"only": "min"}, ("z",))
    several = (*volumes({"a": 1.0}), *volumes({"b": 1.0}, "iou", {"iou": "max"}))
    report = Report(several, {"t": pooled}, {}, {})
    assert figures_of(report, "t") == ["dice", "iou", "only"]
    template = template_of(report, "t")
    assert template.better == {"iou": "max", "only": "min"}
    assert template.classes == ("a", "z")
