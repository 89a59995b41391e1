from math import isnan, nan

import numpy as np
import pytest
from scipy import stats

from tests.evaluation.test_page import NASTY, Tables
from vcmodels.evaluation.html import number
from vcmodels.evaluation.report import Report, TargetScores, VolumeScores
from vcmodels.evaluation.side_by_side import compare, comparison_text, write_comparison
from vcmodels.geometry.boxes import Box

BETTER = {"dice": "max", "assd": "min"}


def report(values, target="organ", settings=None, figure="dice"):
    """A report with one figure, by name of the volume."""
    volumes = tuple(
        VolumeScores(
            name, "p", {}, (Box((0, 0, 0), (1, 1, 1)),), (1.0, 1.0, 1.0), "",
            {target: TargetScores("masks", {figure: value}, BETTER)},
        )
        for name, value in values.items()
    )  # fmt: skip
    return Report(volumes, {}, settings or {}, {})


def random(seed, count=20, shift=0.0):
    rng = np.random.default_rng(seed)
    return {f"v{i}": float(rng.normal() + shift) for i in range(count)}


@pytest.mark.parametrize("count", [6, 7, 20, 80])
def test_differences_are_paired_by_name_and_tested_as_scipy_does(count):
    first, second = random(0, count), random(1, count, 0.5)
    turned = dict(reversed(list(second.items())))
    (one,) = compare([report(first), report(turned)])
    (pair,) = one.pairs
    wanted = np.array([second[name] - first[name] for name in first])
    np.testing.assert_allclose([pair.values[name] for name in first], wanted)
    assert pair.p == pytest.approx(
        stats.wilcoxon(list(second.values()), list(first.values())).pvalue
    )
    assert pair.spread.mean == pytest.approx(wanted.mean())
    assert one.spreads[1].mean == pytest.approx(np.mean(list(second.values())))


def test_what_is_not_in_both_or_not_known_is_in_no_pair():
    first = random(0, 8) | {"only first": 0.3, "unknown": nan}
    second = random(1, 8) | {"only second": 0.9, "unknown": 0.5}
    (one,) = compare([report(first), report(second)])
    assert set(one.pairs[0].values) == {f"v{i}" for i in range(8)}
    assert one.spreads[0].count == 9
    assert one.spreads[1].count == 10


def test_few_pairs_are_not_tested_and_equal_reports_do_not_differ():
    (one,) = compare([report(random(0, 5)), report(random(1, 5))])
    assert isnan(one.pairs[0].p)
    (one,) = compare([report(random(0, 9)), report(random(0, 9))])
    assert one.pairs[0].p == 1
    assert one.best is None


@pytest.mark.parametrize(("figure", "best"), [("dice", 1), ("assd", 2), ("other", None)])
def test_the_best_is_that_of_the_sense(figure, best):
    reports = [report(random(0, 9, shift), figure=figure) for shift in (0, 2, -2)]
    (one,) = compare(reports)
    assert one.best == best
    assert len(one.pairs) == 2


def test_targets_and_figures_that_one_report_lacks_are_left_out():
    a = report(random(0))
    assert not list(compare([a, report(random(1), target="other")]))
    assert not list(compare([a, report(random(1), figure="assd")]))


def test_the_page_holds_means_differences_and_what_differs():
    a, b = (
        report(random(0), settings={"m": 1, "n": 2}),
        report(random(1), settings={"m": 5, "n": 2}),
    )
    found = list(compare([a, b]))
    tables = Tables(comparison_text({"one": a, "two": b}, found))
    row = tables.table("figure")["dice"]
    (one,) = found
    spreads = [f"{number(s.mean)} ± {number(s.sd)} (20)" for s in one.spreads]
    difference = one.pairs[0]
    assert row == [*spreads, number(difference.spread.mean), "20", number(difference.p)]
    assert tables.table("key") == {"settings.m": ["1", "5"]}
    volumes = next(t for t in tables.tables if t[0] == ["volume", "two"])
    assert {row[0]: row[1] for row in volumes[1:]} == {
        name: number(value) for name, value in difference.values.items()
    }


def test_names_are_escaped(tmp_path):
    a = report({NASTY + str(i): float(i) for i in range(7)}, target=NASTY)
    write_comparison({NASTY: a, "b": a}, tmp_path / "c.html")
    text = (tmp_path / "c.html").read_text()
    assert "<script>alert" not in text
    assert Tables(text).tags.count("script") == 1


def test_reports_without_anything_in_common_are_said_to_have_nothing(tmp_path):
    a, b = report(random(0)), report(random(1), target="other")
    assert not write_comparison({"a": a, "b": b}, tmp_path / "c.html")
    assert "no figure in common" in (tmp_path / "c.html").read_text()
