"""Reports side by side: figures in columns, differences of the volumes that all have, a test of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

from markupsafe import Markup
from scipy.stats import wilcoxon

from vcmodels.evaluation.html import lines_of, render, settings_lines, write_html
from vcmodels.evaluation.report import Report, TargetScores
from vcmodels.evaluation.summary import Spread, figures_of, scores_of, template_of
from vcmodels.metrics.base import Sense
from vcmodels.pictures.charts import StripRow, strip_chart

FEWEST_PAIRS = 6
"""For a test: with five pairs the least p of the signed-rank test is 0.06."""


def write_comparison(reports: Mapping[str, Report], path: Path) -> list["FigureComparison"]:
    """Write a page that shows reports side by side; returns what is compared.

    Args:
        reports: two or more, by the names they are to have; others are compared with the first.
        path: as for `write_page`.

    Raises:
        OutputError: as for `write_page`.
    """
    found = list(compare(list(reports.values())))
    write_html(path, comparison_text(reports, found))
    return found


def comparison_text(reports: Mapping[str, Report], found: Sequence["FigureComparison"]) -> str:
    """The page as HTML, given also what `compare` says of the reports."""
    names = list(reports)
    return render(
        "comparison.html",
        title=f"Comparison of {len(names)} evaluations",
        names=names,
        reports=list(reports.values()),
        targets={target: list(_compared(found, target, names)) for target in _targets(found)},
        rows=_paired_rows(found),
        fewest=FEWEST_PAIRS,
        differing=_differing(reports),
    )


@dataclass(frozen=True)
class FigureComparison:
    """One figure of one target in several reports."""

    target: str
    figure: str
    better: Sense | None
    spreads: tuple[Spread, ...]
    """Of each report, all its volumes."""
    pairs: tuple["Difference", ...]
    """Of each report but the first: against the first, by name of the volume."""

    @property
    def best(self) -> int | None:
        """Number of the report with the best mean; None without a sense, or where all are equal."""
        means = [spread.mean for spread in self.spreads]
        known = [value for value in means if isfinite(value)]
        if self.better is None or len(set(known)) < 2:
            return None
        return means.index(min(known) if self.better == "min" else max(known))


@dataclass(frozen=True)
class Difference:
    """How the volumes of a report differ from those of the first in one figure."""

    values: Mapping[str, float]
    """Value minus that of the first, by name of the volume, where both are known."""
    p: float
    """Two-sided, of the Wilcoxon signed-rank test; NaN of fewer than `FEWEST_PAIRS` pairs."""

    @property
    def spread(self) -> Spread:
        """Of the differences."""
        return Spread.of(list(self.values.values()))


def compare(reports: Sequence[Report]) -> Iterator[FigureComparison]:
    """Each figure that is in every report, of each target that is, the first report's order.

    Volumes are paired by their names.
    """
    first = reports[0]
    for target in first.targets:
        if not all(target in other.targets for other in reports):
            continue
        every = [scores_of(report, target) for report in reports]
        others = [figures_of(report, target) for report in reports[1:]]
        better = template_of(first, target).better
        for figure in figures_of(first, target):
            if all(figure in known for known in others):
                columns = [_column(scores, figure) for scores in every]
                spreads = tuple(Spread.of(list(column.values())) for column in columns)
                pairs = tuple(_difference(columns[0], column) for column in columns[1:])
                yield FigureComparison(target, figure, better.get(figure), spreads, pairs)


def _column(scores: Mapping[str, TargetScores], figure: str) -> dict[str, float]:
    found = {name: one.figures.get(figure, nan) for name, one in scores.items()}
    return {name: value for name, value in found.items() if isfinite(value)}


def _difference(first: Mapping[str, float], other: Mapping[str, float]) -> Difference:
    values = {name: other[name] - value for name, value in first.items() if name in other}
    if len(values) < FEWEST_PAIRS:
        return Difference(values, nan)
    if not any(values.values()):  # the test has no rank to give then
        return Difference(values, 1.0)
    tested: Any = wilcoxon(list(values.values()))
    return Difference(values, float(tested.pvalue))


def _targets(found: Sequence[FigureComparison]) -> list[str]:
    return list(dict.fromkeys(one.target for one in found))


def _compared(
    found: Sequence[FigureComparison], target: str, names: Sequence[str]
) -> Iterator[tuple[FigureComparison, Markup | None]]:
    """The figures of a target, each with a chart of the differences where there are some."""
    for one in found:
        if one.target == target:
            rows = [
                StripRow(name, list(pair.values.values()), list(pair.values))
                for name, pair in zip(names[1:], one.pairs, strict=True)
            ]
            title = f"{one.figure} of {target}: difference from {names[0]}"
            drawn = (
                Markup(strip_chart(rows, title, origin=0.0))
                if any(r.values for r in rows)
                else None
            )
            yield one, drawn


def _paired_rows(found: Sequence[FigureComparison]) -> dict[str, list[tuple[str, list[float]]]]:
    """By target: a row for each volume that all reports have, of the first figure's differences."""
    rows: dict[str, list[tuple[str, list[float]]]] = {}
    for target in _targets(found):
        first = next(one for one in found if one.target == target)
        names = dict.fromkeys(name for pair in first.pairs for name in pair.values)
        rows[target] = [(n, [pair.values.get(n, nan) for pair in first.pairs]) for n in names]
    return rows


def _differing(reports: Mapping[str, Report]) -> list[tuple[str, list[str]]]:
    """Settings and provenance that are not the same in all reports: (key, a value for each)."""
    columns = [
        dict(
            settings_lines(report.settings, "settings.")
            + lines_of({"provenance": report.provenance})
        )
        for report in reports.values()
    ]
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [(key, [column.get(key, "–") for column in columns]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]
