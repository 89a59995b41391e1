"""Charts as SVG for a page: curves, histograms and strips of points, crisp at every size.

Lines and texts have classes and no colours: the style sheet of the page gives them, for light and for
dark. Nothing is drawn where a value is not finite.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from math import ceil, floor, isfinite, log10

import numpy as np

WIDTH, HEIGHT = 360, 230
"""Of a chart of curves, in CSS pixels when the page gives it that width."""
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 38
"""Room around the lines, for ticks and names."""
MOST_POINTS = 64
"""Of one line: what a chart of this width can show; 100 lines stay small."""
STEPS = (1, 2, 2.5, 5, 10)
ROW, LABELS = 26, 96
"""Height of a row of a strip chart, and the width of the names of its rows."""
DOT_BINS = 80
"""Places along a row where points are stacked instead of hiding each other."""
CHARACTERS = 14
"""Of the name of a row; a longer one is cut."""


@dataclass(frozen=True)
class Line:
    """Points that are joined, in order."""

    x: Sequence[float]
    y: Sequence[float]
    name: str = ""
    """Shown when a mouse rests on it."""
    is_main: bool = True
    """Drawn strong; else thin and pale, as one of many."""
    colour: int = 0
    """Number of the colour, from 0."""


@dataclass(frozen=True)
class StripRow:
    """The values of one row of a strip chart."""

    name: str
    values: Sequence[float]
    names: Sequence[str] = ()
    """Of each value, shown when a mouse rests on it; none when empty."""


@dataclass(frozen=True)
class Scale:
    """Values along one axis of a chart as pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value is drawn."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round numbers inside the range, `most` or a few less."""
        step = _round_step((self.high - self.low) / most)
        first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]

    @classmethod
    def of(cls, values: Iterable[float], start: float, end: float, pad: float = 0.0) -> "Scale":
        """The scale that shows all finite values, and a share `pad` of their range around them."""
        known = [value for value in values if isfinite(value)] or [0.0, 1.0]
        low, high = min(known), max(known)
        room = pad * (high - low)
        if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):  # one value: some room
            room = 0.5 * abs(low) or 0.5
        return cls(low - room, high + room, start, end)


def _round_step(step: float) -> float:
    power = 10.0 ** floor(log10(step))
    return power * next(one for one in STEPS if one * power >= 0.999 * step)


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, title: str) -> str:
    """Curves over one pair of axes.

    Args:
        lines: those that are not main come first, so that the main ones lie over them.
        x_label: below.
        y_label: at the left.
        title: what the chart shows, for who cannot see it.
    """
    x, y = _scales(lines)
    drawn = [_polyline(line, x, y) for line in lines]
    return _svg(WIDTH, HEIGHT, title, [*_axes(x, y, x_label, y_label), *drawn])


def bar_chart(
    bars: Line | None, lines: Sequence[Line], x_label: str, y_label: str, title: str
) -> str:
    """A histogram whose bars start at 0, with thin steps of others over the same places.

    Args:
        bars: x is the middle of each bar; as wide as the nearest two are apart.
        lines: others, drawn as lines through the same middles.
        x_label: below.
        y_label: at the left.
        title: what the chart shows, for who cannot see it.
    """
    shown = [*lines, *([bars] if bars else [])]
    middles = sorted({value for line in shown for value in line.x if isfinite(value)})
    width = min((b - a for a, b in pairwise(middles)), default=1.0)
    edges = [value + side * width / 2 for value in middles for side in (-1, 1)]
    heights = [value for line in shown for value in line.y]
    x = Scale.of(edges, LEFT, WIDTH - RIGHT)
    y = Scale.of([0.0, *heights], HEIGHT - BOTTOM, TOP)
    parts = _axes(x, y, x_label, y_label)
    for at, top in zip(bars.x, bars.y, strict=True) if bars else ():
        if isfinite(at) and isfinite(top):
            parts.append(_bar(at, top, width, x, y))
    parts += [_polyline(_stepped(line, width), x, y) for line in lines]
    return _svg(WIDTH, HEIGHT, title, parts)


def _stepped(line: Line, width: float) -> Line:
    """The outline of the bars of a line."""
    x = [at + side * width / 2 for at in line.x for side in (-1, 1)]
    return replace(line, x=x, y=[value for value in line.y for _ in range(2)])


def strip_chart(rows: Sequence[StripRow], title: str, origin: float | None = None) -> str:
    """A point for each value, with quartiles as a box and the median as a line; a row for each set.

    Args:
        rows: from top to bottom.
        title: what the chart shows, for who cannot see it.
        origin: a value that is always on the axis and has a line of its own.
    """
    height = ROW * len(rows) + 26
    values = [value for row in rows for value in row.values]
    x = Scale.of([*values, *([] if origin is None else [origin])], LABELS, WIDTH - RIGHT, 0.03)
    parts = _value_axis(x, height - 26)
    if origin is not None:
        parts.append(f'<path class="origin" d="M{x(origin):.1f} 0V{height - 26}"/>')
    for number, row in enumerate(rows):
        parts += _strip(row, x, ROW * (number + 0.5))
    return _svg(WIDTH, height, title, parts)


def profile_chart(
    x: Sequence[float], y: Sequence[float], marked: Sequence[float], labels: tuple[str, str]
) -> str:
    """A flat line chart with marks at some x, such as a figure over the slices of a volume.

    Args:
        x: ascending.
        y: of the same length.
        marked: values of x.
        labels: names of the axes.
    """
    height = 132
    across, up = Scale.of(x, LEFT, WIDTH - RIGHT), Scale.of(y, height - BOTTOM, TOP, 0.05)
    parts = [*_axes(across, up, *labels), _polyline(Line(x, y), across, up)]
    at = dict(zip(x, y, strict=True))
    parts += [
        f'<circle class="mark" cx="{across(place):.1f}" cy="{up(at[place]):.1f}" r="4"/>'
        for place in marked
    ]
    return _svg(WIDTH, height, f"{labels[1]} over {labels[0]}", parts)


def _svg(width: int, height: float, title: str, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:g}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _scales(lines: Sequence[Line]) -> tuple[Scale, Scale]:
    x = Scale.of((v for line in lines for v in line.x), LEFT, WIDTH - RIGHT)
    return x, Scale.of((v for line in lines for v in line.y), HEIGHT - BOTTOM, TOP, 0.03)


def _axes(x: Scale, y: Scale, x_label: str, y_label: str) -> list[str]:
    """Grid, ticks and names of both axes."""
    bottom, middle = y.start, (y.start + y.end) / 2
    parts = [*_value_axis(x, bottom, y.end), _text((x.start + x.end) / 2, bottom + 32, x_label)]
    for value, text in _with_texts(y.ticks(4)):
        at = y(value)
        parts.append(f'<path class="grid" d="M{x.start:g} {at:.1f}H{x.end:g}"/>')
        parts.append(_text(x.start - 5, at + 3.5, text, "end"))
    return [*parts, _text(11, middle, y_label, turn=f"rotate(-90 11 {middle:g})")]


def _value_axis(x: Scale, bottom: float, top: float = 0) -> list[str]:
    """Lines and ticks of the values along x."""
    parts = []
    for value, text in _with_texts(x.ticks()):
        at = x(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {top:g}V{bottom:g}"/>')
        parts.append(_text(at, bottom + 15, text))
    return parts


def _with_texts(ticks: Sequence[float]) -> list[tuple[float, str]]:
    """Each tick with its text, of as many digits as it takes to have no two alike: 4 or more."""
    most = max(map(abs, ticks), default=0.0)
    least = max(4, len(str(int(most)))) if most < 1e6 else 4  # 12000 rather than 1.2e+04
    choices = ([f"{value:.{digits}g}" for value in ticks] for digits in range(least, 18))
    texts = next(texts for texts in choices if len(set(texts)) == len(texts))
    return list(zip(ticks, texts, strict=True))


def _text(x: float, y: float, text: str, anchor: str = "middle", turn: str = "") -> str:
    turned = f' transform="{turn}"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turned}>{escape(text)}</text>'


def _points(line: Line) -> Iterator[tuple[float, float]]:
    """The finite points of a line, thinned to what can be seen."""
    pairs = list(zip(line.x, line.y, strict=True))
    if len(pairs) > MOST_POINTS:
        kept = np.unique(np.linspace(0, len(pairs) - 1, MOST_POINTS).round().astype(int))
        pairs = [pairs[i] for i in kept]
    return ((x, y) for x, y in pairs if isfinite(x) and isfinite(y))


def _polyline(line: Line, x: Scale, y: Scale) -> str:
    """A line; nothing where no point is finite."""
    points = [f"{x(a):.1f} {y(b):.1f}" for a, b in _points(line)]
    if not points:
        return ""
    weight = "main" if line.is_main else "thin"
    name = f"<title>{escape(line.name)}</title>" if line.name else ""
    return f'<path class="line {weight} c{line.colour % 6}" d="M{"L".join(points)}">{name}</path>'


def _bar(at: float, top: float, width: float, x: Scale, y: Scale) -> str:
    left, right, height = x(at - width / 2), x(at + width / 2), y(0) - y(top)
    return (
        f'<rect class="bar" x="{left + 0.5:.1f}" y="{y(top):.1f}" '
        f'width="{max(right - left - 1, 0.5):.1f}" height="{max(height, 0):.1f}"/>'
    )


def _strip(row: StripRow, x: Scale, middle: float) -> list[str]:
    """The name, the box and the points of one row."""
    name = row.name if len(row.name) <= CHARACTERS else f"{row.name[: CHARACTERS - 1]}…"
    full = f"<title>{escape(row.name)}</title>" if name != row.name else ""
    label = _text(LABELS - 8, middle + 3.5, name, "end").replace("</text>", f"{full}</text>")
    known = [value for value in row.values if isfinite(value)]
    if not known:
        return [label]
    return [label, *_box(known, x, middle), *_dots(row, x, middle)]


def _box(values: Sequence[float], x: Scale, middle: float) -> list[str]:
    """From the first to the third quartile, and the median."""
    low, half, high = (x(float(v)) for v in np.quantile(values, (0.25, 0.5, 0.75)))
    return [
        f'<rect class="box" x="{low:.1f}" y="{middle - 8:g}" '
        f'width="{max(high - low, 1):.1f}" height="16"/>',
        f'<path class="median" d="M{half:.1f} {middle - 10:g}V{middle + 10:g}"/>',
    ]


def _dots(row: StripRow, x: Scale, middle: float) -> list[str]:
    """A point for each value; those that would hide each other lie above and below the middle."""
    places, seen = [], dict[int, int]()
    step = (x.end - x.start) / DOT_BINS
    for value in row.values:
        if not isfinite(value):
            places.append(None)
            continue
        place = int((x(value) - x.start) / step)
        count = seen[place] = seen.get(place, 0) + 1
        shift = (count // 2) * (1 if count % 2 else -1) * 3.2
        places.append((x(value), middle + max(-9.0, min(9.0, shift))))
    if not row.names:
        path = "".join(f"M{at[0]:.1f} {at[1]:.1f}h0" for at in places if at)
        return [f'<path class="dots" d="{path}"/>']
    return [
        f'<circle class="dot" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="2.4">'
        f"<title>{escape(name)}: {value:.4g}</title></circle>"
        for at, value, name in zip(places, row.values, row.names, strict=True)
        if at
    ]
