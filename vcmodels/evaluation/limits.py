"""What figures a report must reach: `sheet.dice=0.8`."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vcmodels.errors import RefusedError
from vcmodels.evaluation.report import Report
from vcmodels.evaluation.scoring import ScoredTarget, better_of
from vcmodels.metrics.base import Metric, Sense

OPTION = "--fail-under"
KnownFigures = Mapping[str, Mapping[str, Sense]]
"""By target, the figures of which less or more is better."""


@dataclass(frozen=True)
class Limit:
    """A figure of a target, and the least or the most that it may be."""

    target: str
    figure: str
    bound: float
    sense: Sense

    def failure(self, report: Report) -> str:
        """In words, how the mean over all volumes misses it; "" where it does not."""
        value = report.means(self.target).get(self.figure, math.nan)
        is_met = value >= self.bound if self.sense == "max" else value <= self.bound
        if is_met:
            return ""
        found = "is unknown" if math.isnan(value) else f"is {value:.6g}"
        side = "least" if self.sense == "max" else "most"
        return f"{self.target}.{self.figure} {found}, at {side} {self.bound:g} was asked for"


def known_figures(targets: Iterable[ScoredTarget]) -> dict[str, dict[str, Sense]]:
    """The figures that scoring gives of some targets; those of classes as `<figure>_<class>`."""
    known: dict[str, dict[str, Sense]] = {}
    for target in targets:
        figures: list[str] = []
        for name, metric in target.metrics.items():
            is_by_class = not isinstance(metric, Metric) or metric.by_class
            for figure in [name] if isinstance(metric, Metric) else metric.better:
                figures += [figure, *(f"{figure}_{c}" for c in target.class_names if is_by_class)]
        senses = better_of(target.metrics, figures, target.class_names)
        known.setdefault(target.name, {}).update(senses)
    return known


def parse_limits(texts: Sequence[str], known: KnownFigures) -> list[Limit]:
    """The limits that texts state, as `target.figure=value`, or `figure=value` of one target.

    Raises:
        RefusedError: one is no such text, or names no target or no figure that is known.
    """
    return [_parsed(text, known) for text in texts]


def _parsed(text: str, known: KnownFigures) -> Limit:
    name, _, number = text.rpartition("=")
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not name or not math.isfinite(bound):
        raise RefusedError(
            OPTION, f'found "{text}"', "write TARGET.FIGURE=VALUE, as in mask.dice=0.8"
        )
    target, figure = _figure(name, known)
    return Limit(target, figure, bound, known[target][figure])


def _figure(name: str, known: KnownFigures) -> tuple[str, str]:
    """The target and the figure that a name stands for: both, and names of classes, may hold dots.

    Raises:
        RefusedError: it stands for none, or for several.
    """
    meant = [(t, name.removeprefix(f"{t}.")) for t in known if name.startswith(f"{t}.")]
    if len(known) == 1:
        meant += [(t, name) for t in known]
    found = [(target, figure) for target, figure in meant if figure in known[target]]
    if len(found) == 1:
        return found[0]
    if found:
        several = " or ".join(f'figure "{figure}" of target "{target}"' for target, figure in found)
        raise RefusedError(OPTION, f'"{name}" may be {several}', "rename a target or a class")
    if not meant:
        remedy = f"write TARGET.FIGURE=VALUE; targets are {', '.join(known)}"
        raise RefusedError(OPTION, f'"{name}" names no target', remedy)
    target, figure = max(meant, key=lambda one: (one[1] != name, len(one[0])))
    names = [f for f in known[target] if re.fullmatch(r"\w+", f)]
    remedy = f"choose from {', '.join(names)}"
    raise RefusedError(OPTION, f'no figure "{figure}" of {target} is measured', remedy)
