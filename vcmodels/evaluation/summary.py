"""What the volumes of a report have in common: the spread of their figures, and their ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import fmean, median, stdev

from vcmodels.evaluation.report import Report, TargetScores, VolumeScores
from vcmodels.metrics.base import Sense


@dataclass(frozen=True)
class Spread:
    """Of the known values of a figure; NaN where there are none."""

    count: int
    mean: float
    sd: float
    """Of a sample (n - 1); NaN of one value."""
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of those that are finite."""
        known = [value for value in values if isfinite(value)]
        if not known:
            return cls(0, nan, nan, nan, nan, nan)
        sd = stdev(known) if len(known) > 1 else nan
        return cls(len(known), fmean(known), sd, median(known), min(known), max(known))


def class_of(figure: str, scores: TargetScores) -> tuple[str, str | None]:
    """The figure that one of a class belongs to, and the class: `dice_bone` -> dice, bone.

    None as the class where the figure is of the whole target.
    """
    for name in sorted(scores.classes, key=len, reverse=True):
        whole = figure.removesuffix(f"_{name}")
        if whole != figure and whole in scores.figures:
            return whole, name
    return figure, None


def scores_of(report: Report, target: str) -> dict[str, TargetScores]:
    """The scores of a target by volume; those without it are left out."""
    return {v.name: v.targets[target] for v in report.volumes if target in v.targets}


def figures_of(report: Report, target: str) -> list[str]:
    """The names of all figures of a target, in order; those of single classes too."""
    found = [*scores_of(report, target).values(), *_pooled(report, target)]
    return list(dict.fromkeys(name for scores in found for name in scores.figures))


def _pooled(report: Report, target: str) -> list[TargetScores]:
    return [report.pooled[target]] if target in report.pooled else []


def template_of(report: Report, target: str) -> TargetScores:
    """Scores that name all classes and senses of a target; its figures are all NaN."""
    found = [*scores_of(report, target).values(), *_pooled(report, target)]
    better: dict[str, Sense] = {}
    for scores in found:
        better |= scores.better
    classes = tuple(dict.fromkeys(name for scores in found for name in scores.classes))
    figures = dict.fromkeys(figures_of(report, target), nan)
    return TargetScores(found[0].form, figures, better, classes)


def ranked(report: Report, target: str, figure: str) -> list[VolumeScores]:
    """The volumes where a figure is known, the best first; of equal ones in their order."""
    known = [
        volume
        for volume in report.volumes
        if target in volume.targets and isfinite(volume.targets[target].figures.get(figure, nan))
    ]
    sign = 1 if template_of(report, target).better.get(figure) == "min" else -1
    return sorted(known, key=lambda volume: sign * volume.targets[target].figures[figure])
