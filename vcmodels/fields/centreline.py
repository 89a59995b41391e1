"""The centreline of a long object: the middle of each slice, smoothed, with its gaps closed.

Positions are (z, y, x) in physical units: the index of a voxel's centre times the voxel size. Slices
are those across one axis, the long one of the object, so that the object may be oblique to it but
must not turn back. What is found is given voxel by voxel, and no array of the volume is made: a cord
fills a thousandth of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np

from vcmodels.fields.distance import Lengths

Positions = np.ndarray
"""(n, 3): along (z, y, x), in physical units."""

MOST_PARTS = 64
"""Pieces of the object, the heaviest first, that are looked at: more are specks."""
_WIDTHS = 1.5
"""The line is smooth over this many widths of the object; shorter waves come from its voxels."""


@dataclass(frozen=True)
class Centreline:
    """A smooth line that has one point in each slice."""

    axis: int
    """The axis across which the slices lie: 0 z, 1 y, 2 x."""
    points: Positions
    """Ascending along the axis; two or more."""

    @property
    def length(self) -> float:
        """Along the line, in physical units."""
        return float(np.linalg.norm(np.diff(self.points, axis=0), axis=1).sum())

    def extended(self, margins: tuple[float, float]) -> "Centreline":
        """The line that goes straight on beyond its low and its high end, so far along its axis."""
        first = _beyond(self.points, self.axis, margins[0])
        last = _beyond(self.points[::-1], self.axis, margins[1])
        return Centreline(self.axis, np.concatenate([first, self.points, last]))


def _beyond(points: Positions, axis: int, margin: float) -> Positions:
    """A point before the first one; in the mean direction of as long a piece of the line."""
    if margin <= 0:
        return points[:0]
    away = np.abs(points[:, axis] - points[0, axis])
    until = min(int(np.searchsorted(away, margin)), len(points) - 1)
    return (points[0] + (points[0] - points[until]) * (margin / away[until]))[None]


@dataclass(frozen=True)
class Trace:
    """A centreline, and how good what it follows is."""

    line: Centreline
    share: float
    """Of all that was found, the part that the line follows; the rest lies elsewhere."""
    strays: float
    """Share of the slices whose middle is more than a width of the object away from the line."""
    low: Lengths
    high: Lengths
    """The outermost voxels of what it follows, their centres."""

    @classmethod
    def given(cls, line: Centreline) -> "Trace":
        """Of a line that somebody gave."""
        low, high = (_place(end(line.points, axis=0)) for end in (np.min, np.max))
        return cls(line, share=1.0, strays=0.0, low=low, high=high)

    def moved(self, shift: Lengths) -> "Trace":
        """The same, elsewhere."""
        line = Centreline(self.line.axis, self.line.points + shift)
        low, high = (_place(np.add(place, shift)) for place in (self.low, self.high))
        return replace(self, line=line, low=low, high=high)

    def defect(self, least_length: float, least_share: float, unit: str) -> str | None:
        """Why it is no line to rely on; None if it is.

        Args:
            least_length: of the line, in physical units.
            least_share: of what was found, that lies on one line; and of the slices.
            unit: for the words.
        """
        if self.line.length < least_length:
            return f"its line is {self.line.length:.3g} {unit} long, less than {least_length:g}"
        if self.share < least_share:
            return f"only {self.share:.0%} of what was found lies on one line"
        if self.strays > 1 - least_share:
            return f"its middle jumps: {self.strays:.0%} of the slices are off any smooth line"
        return None


def line_through(points: Positions, axis: int | None = None) -> Centreline:
    """The line through given points, smooth where there are four or more.

    Args:
        points: two or more, in any order.
        axis: along which they are ordered; that of their largest extent when None.

    Raises:
        ValueError: there are fewer than two places along the axis.
    """
    # Late: slow to import.
    from scipy.interpolate import make_interp_spline

    axis = _long_axis(points) if axis is None else axis
    places, first = np.unique(points[:, axis], return_index=True)
    if len(places) < 2:
        raise ValueError(f"{len(points)} points have {len(places)} place along the axis")
    degree = 3 if len(places) > 3 else 1
    curve = make_interp_spline(places, points[first], k=degree)
    knots = np.union1d(places, np.linspace(places[0], places[-1], 16 * len(places)))
    line = curve(knots)
    line[:, axis] = knots
    return Centreline(axis, line)


def trace(
    index: np.ndarray,
    weights: np.ndarray,
    spacing: Lengths,
    *,
    axis: int | None = None,
    most_gap: float,
) -> Trace | None:
    """The centreline of the heaviest object among voxels; None where there are none.

    Pieces of a broken object are joined where they follow each other: less than `most_gap` apart,
    and not further aside than along. Others are left out. The middle of a slice is the mean of its
    voxels by their weights; a cubic smoothing spline goes through the middles (Reinsch 1967,
    Numerische Mathematik 10), which closes the gaps.

    Args:
        index: (n, 3) of voxels of the object, each once.
        weights: (n,) positive: 1, or how probable each voxel is.
        spacing: length of a voxel along (z, y, x).
        axis: of the slices; that along which the object is longest when None.
        most_gap: in physical units.
    """
    if not len(index):
        return None
    spots = index * np.asarray(spacing)
    parts = _parts(index)
    masses = np.bincount(parts, weights)
    main = spots[parts == masses.argmax()]
    axis = _long_axis(main) if axis is None else axis
    slices = index[:, axis]
    width = _width(index[parts == masses.argmax()], axis, spacing)
    kept = np.isin(parts, _following(spots, slices, weights, parts, masses, width, most_gap, axis))
    at, middles, mass = _middles(spots[kept], slices[kept], weights[kept])
    step = spacing[axis]
    every = np.arange(at[0], at[-1] + 1)
    points = _smoothed(at, middles, mass, every, _WIDTHS * max(width, step) / step)
    points[:, axis] = every * step
    line = Centreline(axis, points if len(points) > 1 else _straight(points, axis, step))
    off = np.linalg.norm(points[at - at[0]] - middles, axis=1) > max(width, step)
    return Trace(
        line,
        share=float(mass.sum() / masses.sum()),
        strays=float(off.mean()),
        low=_place(spots[kept].min(axis=0)),
        high=_place(spots[kept].max(axis=0)),
    )


def _place(position: np.ndarray) -> Lengths:
    z, y, x = position.tolist()
    return z, y, x


def _long_axis(spots: Positions) -> int:
    return int(np.ptp(spots, axis=0).argmax())


def _straight(points: Positions, axis: int, step: float) -> Positions:
    """Both faces of the only slice."""
    half = np.zeros(3)
    half[axis] = step / 2
    return np.concatenate([points - half, points + half])


def _parts(index: np.ndarray) -> np.ndarray:
    """The connected piece of each voxel, by faces, edges and corners; (n,), from 0 on."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # With a layer around, no neighbour lies across the border on the other side.
    size = np.ptp(index, axis=0).astype(np.int64) + 3
    stride = np.array([size[1] * size[2], size[2], 1])
    keys = (index - index.min(axis=0)) @ stride
    order = np.argsort(keys)
    keys = keys[order]
    count, joined = len(keys), np.arange(len(keys), dtype=np.int32)
    for step in _half_neighbours(stride):  # one by one: all pairs at once take 600 bytes a voxel
        here, there = joined[_pairs(keys, step)]
        apart = here != there
        links = coo_array((apart[apart], (here[apart], there[apart])), (count, count))
        count, parts = connected_components(links, directed=False)
        joined = parts[joined]
    parts = np.empty_like(joined)
    parts[order] = joined
    return parts


def _half_neighbours(stride: np.ndarray) -> Iterator[int]:
    """How far the 13 later neighbours of a voxel are in the order of keys."""
    for shift in product((-1, 0, 1), repeat=3):
        if shift > (0, 0, 0):
            yield int(np.dot(shift, stride))


def _pairs(keys: np.ndarray, step: int) -> np.ndarray:
    """(2, m): the places of keys that are `step` apart."""
    at = np.minimum(np.searchsorted(keys, keys + step), len(keys) - 1)
    here = np.flatnonzero(keys[at] == keys + step)
    return np.stack([here, at[here]])


def _width(index: np.ndarray, axis: int, spacing: Lengths) -> float:
    """The diameter of a circle as large as the median slice."""
    counts = np.bincount(index[:, axis] - index[:, axis].min())
    area = float(np.median(counts[counts > 0])) * np.prod(spacing) / spacing[axis]
    return 2 * float(np.sqrt(area / np.pi))


def _following(
    spots: Positions,
    slices: np.ndarray,
    weights: np.ndarray,
    parts: np.ndarray,
    masses: np.ndarray,
    width: float,
    most_gap: float,
    axis: int,
) -> list[int]:
    """The heaviest piece, and those that follow it or one another, from the nearest on."""
    heaviest = np.argsort(-masses, kind="stable")[:MOST_PARTS].tolist()
    lines = {
        n: _middles(spots[parts == n], slices[parts == n], weights[parts == n])[1] for n in heaviest
    }
    kept, waiting = [heaviest[0]], heaviest[1:]
    while waiting:
        gap, side, part = min((*_apart(lines, kept, n, axis), n) for n in waiting)
        waiting.remove(part)
        if gap <= most_gap and side <= gap + width:
            kept.append(part)
    return kept


def _apart(
    lines: dict[int, Positions], kept: list[int], part: int, axis: int
) -> tuple[float, float]:
    """How far a piece is from the nearest one that is kept: along the axis, and aside of it."""
    return min(_between(lines[other], lines[part], axis) for other in kept)


def _between(a: Positions, b: Positions, axis: int) -> tuple[float, float]:
    """From the end of one piece to that of another; where they share slices, in the middle one."""
    start, end = max(a[0, axis], b[0, axis]), min(a[-1, axis], b[-1, axis])
    places = (start + end) / 2 if start <= end else np.array([start, end])
    here, there = (
        np.atleast_2d(line[np.abs(line[:, axis][:, None] - places).argmin(axis=0)])
        for line in (a, b)
    )
    pairs = [(p, q) for p in here for q in there]
    near = min(pairs, key=lambda pair: abs(pair[0][axis] - pair[1][axis]))
    step = near[0] - near[1]
    gap = abs(float(step[axis]))
    return gap, float(np.sqrt(max(step @ step - gap**2, 0)))


def _middles(
    spots: Positions, slices: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, Positions, np.ndarray]:
    """The slices that hold something, ascending, the middle of each, and its weight."""
    at, number = np.unique(slices, return_inverse=True)
    mass = np.bincount(number, weights)
    sums = [np.bincount(number, weights * spots[:, a]) for a in range(3)]
    return at, np.stack(sums, axis=1) / mass[:, None], mass


def _smoothed(
    at: np.ndarray,
    middles: Positions,
    mass: np.ndarray,
    every: np.ndarray,
    smooth: float,
) -> Positions:
    """A smooth line through the middles, at all slices.

    Args:
        at: slices of the middles.
        middles: (n, 3).
        mass: weight of each.
        every: the slices that are asked for.
        smooth: waves of this length, in slices, are halved.
    """
    from scipy.interpolate import make_smoothing_spline

    if len(at) < 5:  # the least that the spline takes: a straight line
        fit = np.polynomial.polynomial.polyfit(at, middles, min(len(at) - 1, 1), w=np.sqrt(mass))
        return np.polynomial.polynomial.polyval(every, fit).T
    # A smoothing spline divides a wave of frequency w by 1 + lam w^4, and is straight at its ends.
    # Twicing (Tukey 1977), a second one for what the first leaves, takes most of that bias away.
    places, lam = at.astype(np.float64), (smooth / (2 * np.pi)) ** 4
    fit = partial(make_smoothing_spline, places, w=mass / np.median(mass), lam=lam)
    first = fit(middles)
    second = fit(middles - first(places))
    return first(every.astype(np.float64)) + second(every.astype(np.float64))
