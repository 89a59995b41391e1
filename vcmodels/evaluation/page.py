"""A report as one HTML file that needs nothing else: tables, charts, pictures, settings.

The page asks no server for anything, and says so to the browser (its Content-Security-Policy); what
a script adds, sorting and filtering, it does without where scripts are off.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import cast

import numpy as np
from markupsafe import Markup

from vcmodels.comparison import Compared
from vcmodels.evaluation.html import (
    data_url,
    lines_of,
    number,
    render,
    require_free,
    settings_lines,
    write_html,
)
from vcmodels.evaluation.pictures import FOLDER, KeptPictures, Picture
from vcmodels.evaluation.report import Report, VolumeScores
from vcmodels.evaluation.summary import (
    Spread,
    class_of,
    figures_of,
    ranked,
    scores_of,
    template_of,
)
from vcmodels.metrics.base import Curve
from vcmodels.pictures.charts import (
    Line,
    StripRow,
    bar_chart,
    line_chart,
    profile_chart,
    strip_chart,
)
from vcmodels.pictures.forms import FormDrawing

SHOWN = 3
"""Volumes with pictures at either end of the ranking."""
ENDS = 2
"""Slices from the end of what was measured that are not shown as the best or the worst."""
MOST_LINES = 100
"""Of single volumes in one chart; more would be a blot."""
MOST_NAMED = 400
"""Points with a name that a mouse finds; of more volumes the points have none."""


def write_page(
    report: Report, path: Path, picture: Picture | None = None, title: str | None = None
) -> None:
    """Write the page of a report; one that is there is replaced.

    Args:
        report: what to show.
        path: the HTML file; its folder is made.
        picture: draws a slice of a volume: called for few of them. What it draws is kept in a
            folder `pictures` next to the page. None: pictures that lie there are shown. Of
            `KeptPictures` nothing is written but what they write themselves.
        title: by default says how many volumes there are.

    Raises:
        OutputError: another file, which is no such page, is in the way, or the path is in a store.
    """
    is_kept = isinstance(picture, KeptPictures)
    kept = picture if is_kept else KeptPictures(path.parent / FOLDER, picture)
    require_free(path)
    write_html(path, page_text(report, kept, title))
    kept.sweep()


def page_text(report: Report, picture: Picture | None = None, title: str | None = None) -> str:
    """The page of a report as HTML; the arguments are those of `write_page`."""
    targets = [_target(report, name, picture) for name in report.targets]
    return render(
        "report.html",
        title=title or _title(report),
        targets=targets,
        volumes=report.volumes,
        groups=report.groups,
        units=sorted({volume.unit for volume in report.volumes if volume.unit}),
        has_unknown_unit=not all(volume.unit for volume in report.volumes),
        notes=_notes(report),
        settings=settings_lines(report.settings),
        provenance=lines_of(report.provenance),
        has_groups=bool(report.groups),
        has_splits=any(volume.split for volume in report.volumes),
    )


def _title(report: Report) -> str:
    if len(report.volumes) == 1:
        return f"Evaluation of {report.volumes[0].name}"
    return f"Evaluation of {len(report.volumes)} volumes"


# --- one target of a report


@dataclass(frozen=True)
class TargetPage:
    """What the page shows of one target."""

    name: str
    form: str
    count: int
    """Volumes that have it."""
    first: str
    """The figure by which volumes are ranked."""
    columns: Sequence[tuple[str, str | None, str | None, str]]
    """Of each figure: its name, its class, better, and the name without the class."""
    summary: Sequence[tuple[str, str | None, Spread, float]]
    """Of figures of the whole target: name, better, spread over the volumes, all voxels together."""
    classes: Sequence[tuple[str, Sequence[float]]]
    """A row for each class: the means of `class_figures`."""
    class_figures: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Spread]]]
    """A row for each figure of the whole target: the spread of each group."""
    is_outlined: bool
    """Whether pictures have regions with outlines, as those of masks, classes and instances."""
    strips: Sequence[tuple[str, Markup]]
    curves: Sequence[tuple[str, Markup]]
    cards: Sequence["Card"]
    rows: Sequence[tuple[VolumeScores, Sequence[float]]]
    """Of each volume: a value for each of the columns."""

    @property
    def has_pictures(self) -> bool:
        """Whether any slice is drawn."""
        return any(card.pictures for card in self.cards)

    @property
    def headline(self) -> tuple[Spread, float]:
        """Spread and pooled value of the first figure."""
        return self.summary[0][2:]


@dataclass(frozen=True)
class Card:
    """One of the best or worst volumes."""

    volume: VolumeScores
    rank: int
    of: int
    value: float
    profile: Markup | None
    pictures: Sequence[tuple[str, str]]
    """(what it is, its data URL)"""


def _target(report: Report, name: str, picture: Picture | None) -> TargetPage:
    template, scores = template_of(report, name), scores_of(report, name)
    figures = figures_of(report, name)
    split = {figure: class_of(figure, template) for figure in figures}
    whole = [figure for figure, (_, cls) in split.items() if cls is None]
    pooled = report.pooled[name].figures if name in report.pooled else {}
    spread = {f: Spread.of([one.figures.get(f, nan) for one in scores.values()]) for f in figures}
    with_classes = list(dict.fromkeys(base for base, cls in split.values() if cls is not None))
    return TargetPage(
        name=name,
        form=template.form,
        count=len(scores),
        first=whole[0] if whole else "",
        columns=[(f, cls, template.better.get(f), base) for f, (base, cls) in split.items()],
        summary=[(f, template.better.get(f), spread[f], pooled.get(f, nan)) for f in whole],
        classes=[
            (cls, [spread[f"{base}_{cls}"].mean for base in with_classes])
            for cls in template.classes
        ],
        class_figures=with_classes,
        is_outlined=FormDrawing(cast(Compared, template.form), len(template.classes) or 1).drawn_as
        == "outlines",
        groups=[(f, [_group_spread(report, name, f, g) for g in report.groups]) for f in whole],
        strips=[(f, _strips(report, name, f, split)) for f in whole if spread[f].count > 1],
        curves=list(_curves(report, name)),
        cards=list(_cards(report, name, whole[0], picture)) if whole else [],
        rows=[
            (volume, [volume.targets[name].figures.get(f, nan) for f in figures])
            for volume in report.volumes
            if name in volume.targets
        ],
    )


def _group_spread(report: Report, target: str, figure: str, group: str) -> Spread:
    found = [v.targets[target] for v in report.volumes if v.group == group and target in v.targets]
    return Spread.of([scores.figures.get(figure, nan) for scores in found])


def _strips(
    report: Report, target: str, figure: str, split: Mapping[str, tuple[str, str | None]]
) -> Markup:
    """The values of a figure: of all volumes, of each class, of each group."""
    scores = scores_of(report, target)
    names = list(scores) if len(scores) <= MOST_NAMED else []
    rows = [StripRow("all", [one.figures.get(figure, nan) for one in scores.values()], names)]
    for full, (base, cls) in split.items():
        if base == figure and cls is not None:
            rows.append(StripRow(cls, [one.figures.get(full, nan) for one in scores.values()]))
    for group in report.groups:
        members = [v.targets.get(target) for v in report.volumes if v.group == group]
        rows.append(StripRow(group, [one.figures.get(figure, nan) for one in members if one]))
    return Markup(strip_chart(rows, f"{figure} of {target}, a point for each volume"))


def _curves(report: Report, target: str) -> Iterator[tuple[str, Markup]]:
    """A chart for each curve: thin lines of the volumes, strong ones of all voxels together."""
    scores = scores_of(report, target)
    pooled = report.pooled[target].curves if target in report.pooled else {}
    titles = [title for one in scores.values() for title in one.curves]
    for title in dict.fromkeys([*pooled, *titles]):
        each = {name: one.curves[title] for name, one in scores.items() if title in one.curves}
        main = pooled.get(title)
        if len(each) == 1 and main is None:
            (main,) = each.values()
        shown = main or next(iter(each.values()))
        thin = [_line(name, curve) for name, curve in _some(each)] if len(each) > 1 else []
        yield title, Markup(_chart(title, shown, main, thin))


def _chart(title: str, like: Curve, main: Curve | None, thin: Sequence[Line]) -> str:
    strong = Line(main.x, main.y) if main else None
    if like.style == "bars":
        return bar_chart(strong, thin, like.x_label, like.y_label, title)
    lines = [*thin, *([strong] if strong else [])]
    return line_chart(lines, like.x_label, like.y_label, title)


def _line(name: str, curve: Curve) -> Line:
    return Line(curve.x, curve.y, name, is_main=False)


def _some(each: Mapping[str, Curve]) -> list[tuple[str, Curve]]:
    """All of them, or as many as can be told apart, evenly chosen."""
    items = list(each.items())
    if len(items) <= MOST_LINES:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, MOST_LINES).round().astype(int)]


# --- best and worst


def _cards(report: Report, target: str, figure: str, picture: Picture | None) -> Iterator[Card]:
    """The best and the worst volumes, from the best on; all where they are few."""
    order = ranked(report, target, figure)
    sense = template_of(report, target).better.get(figure)
    chosen = range(len(order))
    if len(order) > 2 * SHOWN:
        chosen = [*chosen[:SHOWN], *chosen[-SHOWN:]]
    for rank in chosen:
        volume = order[rank]
        scores = volume.targets[target]
        slices = _telling(scores.slices, sense == "min", 1 if len(order) > 2 else 2)
        drawn = _pictures(volume.name, target, slices, scores.slices, figure, picture)
        yield Card(
            volume, rank + 1, len(order), scores.figures[figure],
            _profile(scores.slices, list(slices), figure), list(drawn),
        )  # fmt: skip


def _telling(slices: Mapping[int, float], is_less_better: bool, count: int) -> dict[int, str]:
    """The best and the worst z, `count` of each, not next to each other, with the word for it."""
    inner = _inner(slices)
    apart = max((max(inner, default=0) - min(inner, default=0)) // 8, 1)
    order = sorted(inner, key=lambda z: inner[z], reverse=not is_less_better)
    chosen: dict[int, str] = {}
    for word, zs in (("best", order), ("worst", order[::-1])):
        for z in zs:
            if all(abs(z - other) >= apart for other in chosen):
                chosen[z] = word
            if list(chosen.values()).count(word) == count:
                break
    return chosen


def _inner(slices: Mapping[int, float]) -> dict[int, float]:
    """The slices with `ENDS` known ones on either side; all that are known where there are none.

    Where an object ends a voxel more or less decides: there the worst slices would all be.
    """
    known = {z: value for z, value in slices.items() if isfinite(value)}
    sides = [shift for shift in range(-ENDS, ENDS + 1) if shift]
    inner = {z: v for z, v in known.items() if all(z + shift in known for shift in sides)}
    return inner or known


def _profile(slices: Mapping[int, float], marked: Sequence[int], figure: str) -> Markup | None:
    """The figure over z; None of a single slice."""
    if len(slices) < 2:
        return None
    zs = sorted(slices)
    return Markup(profile_chart(zs, [slices[z] for z in zs], marked, ("z", figure)))


def _pictures(
    volume: str,
    target: str,
    chosen: Mapping[int, str],
    slices: Mapping[int, float],
    figure: str,
    picture: Picture | None,
) -> Iterator[tuple[str, str]]:
    """Pictures of some slices, as data URLs; none where nothing draws them."""
    for z, word in chosen.items() if picture else ():
        assert picture is not None
        drawn = picture(volume, target, z)
        if drawn is not None:
            yield f"{word} slice, z = {z}: {figure} {number(slices[z])}", data_url(drawn)


# --- tables


def _notes(report: Report) -> dict[str, list[str]]:
    """What was not measured, and of which volumes and targets."""
    notes: dict[str, list[str]] = {}
    for volume in report.volumes:
        for target, scores in volume.targets.items():
            for note in scores.notes:
                notes.setdefault(note, []).append(f"{volume.name}: {target}")
    for target, scores in report.pooled.items():
        for note in scores.notes:
            notes.setdefault(note, []).append(f"all voxels together: {target}")
    return notes
