"""How far the surface of a predicted region lies from that of the labelled one, in physical units.

Measured block by block and joined exactly: a part holds how much surface lies at which distance
from the other one, wherever in the volume that is. Figures are those of the whole volume to 1e-12 of
their value, or to 6e-8 where a surface has more than 4 million different distances.

The definitions, of which several are in use under the same names:

- A surface is made of elements that count 1 each (voxels) or their area (surfels), as `fields.surfaces`
  says. Out of the volume and where nothing is valid there is no region: a region that ends there
  has a surface there, predicted or labelled alike.
- `assd`: the mean distance of all elements of both surfaces to the other one (Heimann et al. 2009,
  IEEE TMI 28(8); as MONAI). medpy takes the mean of two means, which weighs the smaller surface more.
- `hd95`: the 95th percentile of the distances from each of the two to the other; the larger of both
  (as MONAI and `surface-distance`). medpy takes the percentile of all distances together.
- `hd`: the Hausdorff distance, the same with the largest.
- `surface_dice`: the share of both surfaces that is within a tolerance of the other one (Nikolov et
  al. 2018, arXiv 1809.04430).

With no surface in either there is nothing to measure: NaN. With one in one of them only, the surface
Dice is 0 and the distances, which have no worst value, are NaN.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import get_args

import numpy as np

from vcmodels.fields.surfaces import surfel_areas
from vcmodels.geometry.boxes import Box
from vcmodels.metrics.base import BlockMetric, BlockPart, Curve, FigureValues, Pair, Sense
from vcmodels.metrics.nearest import Elements, Floats, surface_distances
from vcmodels.metrics.overlap import ratio

_PERCENT = 95.0
_FEWEST_ROWS, _MOST_ROWS = 1 << 16, 1 << 20
"""Rows of tables that wait to be added up, 16 bytes each: as many as those they are added to, within
these bounds. So few wait where all are few, and where all are many they are seldom gone through."""
_TABLE_ROWS = 16
"""Rows that take as much as a table without any."""
_MOST_VALUES = 1 << 22
"""Different distances that are kept of a surface."""
_BITS, _COARSE_BITS = 40, 24
"""Of the mantissa of a distance: so that one length is one row, however it was rounded; and where
there are too many."""
_SLACK = 1e-7
"""Lengths that differ by less than this share are one length: 3 * 0.1 is within 0.3."""
_CURVE_POINTS = 100


@dataclass(frozen=True)
class Distances:
    """How much of a surface lies at which distance from another one."""

    values: Floats
    """Sorted, each once; infinity where there is no other one."""
    weights: Floats
    """How many elements, or their area."""

    @classmethod
    def of(cls, values: Floats, weights: Floats) -> "Distances":
        """Gather distances and what each counts, in any order."""
        unique, where = np.unique(_rounded(values, _BITS), return_inverse=True)
        if len(unique) > _MOST_VALUES:
            unique, where = np.unique(_rounded(values, _COARSE_BITS), return_inverse=True)
        return cls(unique, np.asarray(np.bincount(where, weights, len(unique)), np.float64))

    @classmethod
    def together(cls, tables: Sequence["Distances"]) -> "Distances":
        """Several, at least one, as one."""
        values, weights = ([getattr(t, name) for t in tables] for name in ("values", "weights"))
        return cls.of(np.concatenate(values), np.concatenate(weights))

    @property
    def total(self) -> float:
        """All weights together."""
        return float(self.weights.sum())

    @property
    def sum(self) -> float:
        """All distances together; infinity if one is."""
        return float(self.values @ self.weights)

    def within(self, tolerance: float) -> float:
        """The weight of the distances up to a tolerance."""
        end = np.searchsorted(self.values, tolerance * (1 + _SLACK), side="right")
        return float(self.weights[:end].sum())

    def percentile(self, percent: float, *, interpolate: bool) -> float:
        """The distance that a share of the weights does not exceed.

        Args:
            percent: in [0, 100].
            interpolate: of counts, as NumPy by default; otherwise the least distance up to which
                the share is reached, as `surface-distance` takes it.
        """
        ends = np.cumsum(self.weights)
        if not interpolate:
            index = np.searchsorted(ends / ends[-1], percent / 100)
            return float(self.values[min(index, len(ends) - 1)])
        rank = percent / 100 * (ends[-1] - 1)
        low, high = (
            float(self.values[np.searchsorted(ends, at, side="right")])
            for at in (np.floor(rank), np.ceil(rank))
        )
        return low + (high - low) * float(rank % 1) if high > low else low


def _rounded(lengths: Floats, bits: int) -> Floats:
    mantissa, exponent = np.frexp(lengths)
    return np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)


Pairwise = tuple[Distances, Distances]
"""From the predicted surface to the labelled one, and back."""


@dataclass(frozen=True, kw_only=True)
class SurfaceMetric(BlockMetric):
    """Distances between predicted and labelled surfaces: `assd`, `hd95`, `hd` and `surface_dice`.

    The module says how each is defined.

    Raises:
        ValueError: a tolerance is negative or no number, or `elements` no word of `Elements`.
    """

    tolerances: tuple[float, ...] = ()
    """Of the surface Dice, in the unit of the spacing; with several there is `surface_dice_at_2` for
    each. None given: the longest edge of a voxel, so that a surface which is one voxel off, along
    whichever axis, is still right."""
    elements: Elements = "voxels"
    """What surfaces are made of."""

    def __post_init__(self) -> None:
        """Refuse options that mean nothing."""
        super().__post_init__()
        if not all(isfinite(t) and t >= 0 for t in self.tolerances):
            raise ValueError(f"tolerances must be 0 or more, got {self.tolerances}")
        if self.elements not in get_args(Elements):
            known = ", ".join(get_args(Elements))
            raise ValueError(f'surfaces are not made of "{self.elements}"; choose from {known}')

    @property
    def better(self) -> Mapping[str, Sense]:
        """Less distance, more surface that is right."""
        dices = self._dice_names
        return {n: "max" if n in dices else "min" for n in ("assd", "hd95", "hd", *dices)}

    @property
    def _dice_names(self) -> tuple[str, ...]:
        if len(self.tolerances) < 2:
            return ("surface_dice",)
        return tuple(f"surface_dice_at_{tolerance:.12g}" for tolerance in self.tolerances)

    def measure(self, pair: Pair, block: Box) -> BlockPart:
        """The distances of the elements of a block, from `nearest.surface_distances`.

        Returns:
            `values` and `weights` of the tables of all surfaces, one after another; `rows` of each;
            `edge`, the longest of a voxel.
        """
        surfels = self.elements == "surfels"
        areas = surfel_areas(pair.spacing) if surfels else np.ones(2)
        found = surface_distances(pair, block, self.elements)
        tables = [Distances.of(values, areas[elements]) for elements, values in found]
        axes = zip(pair.spacing, pair.box.shape, strict=True)
        return _part(tables, max((length for length, n in axes if n > 1), default=nan))

    def join(self, parts: Iterable[tuple[Box, BlockPart]]) -> BlockPart:
        """The distances of all blocks, as of one."""
        waiting, rows, added, edge = list[list[Distances]](), 0, 0, nan
        for _, part in parts:
            waiting.append(_tables(part))
            edge = float(part["edge"])
            rows += len(part["values"]) + _TABLE_ROWS * len(part["rows"])
            if rows > min(max(added, _FEWEST_ROWS), _MOST_ROWS):
                waiting, rows = [_added(waiting)], 0
                added = sum(len(table.values) for table in waiting[0])
        return _part(_added(waiting), edge)

    def figures(self, joined: BlockPart) -> Mapping[str, FigureValues]:
        """One of each name for each mask or class, in the unit of the spacing but for the Dice."""
        pairs = _pairs(joined)
        tolerances = self.tolerances or (float(joined["edge"]),)
        distances = {
            "assd": [mean_distance(pair) for pair in pairs],
            "hd95": [_larger(pair, self._percentile) for pair in pairs],
            "hd": [_larger(pair, lambda one: float(one.values[-1])) for pair in pairs],
        }
        dices = zip(self._dice_names, tolerances, strict=True)
        return distances | {n: [surface_dice(pair, t) for pair in pairs] for n, t in dices}

    def _percentile(self, distances: Distances) -> float:
        return distances.percentile(_PERCENT, interpolate=self.elements == "voxels")

    def curves(self, joined: BlockPart) -> Mapping[str, Curve]:
        """The surface Dice over the tolerance, for each mask or class that both have."""
        pairs = _pairs(joined)
        return {
            "surface Dice" + f", {number}" * (len(pairs) > 1): _dice_curve(pair)
            for number, pair in enumerate(pairs, 1)
            if all(one.total for one in pair)
        }


def mean_distance(pair: Pairwise) -> float:
    """The mean distance of all elements of both surfaces; NaN where one has none."""
    if not all(one.total for one in pair):
        return nan
    return sum(one.sum for one in pair) / sum(one.total for one in pair)


def surface_dice(pair: Pairwise, tolerance: float) -> float:
    """The share of both surfaces within a tolerance; 0 where one has no element, NaN where both."""
    return ratio(sum(one.within(tolerance) for one in pair), sum(one.total for one in pair))


def _larger(pair: Pairwise, figure: Callable[[Distances], float]) -> float:
    """The larger of the figures of both directions; NaN where a surface has no element."""
    return max(map(figure, pair)) if all(one.total for one in pair) else nan


def _dice_curve(pair: Pairwise) -> Curve:
    """At distances between which as much surface lies, and so that both ends are there."""
    both = Distances.together(pair)
    ends = np.cumsum(both.weights) / both.total
    shown = np.searchsorted(ends, np.linspace(0, 1, _CURVE_POINTS))
    shown = np.unique(np.minimum(shown, len(ends) - 1))
    x, y = (tuple(column[shown].tolist()) for column in (both.values, ends))
    return Curve(x, y, "tolerance", "surface Dice")


def _pairs(part: BlockPart) -> list[Pairwise]:
    tables = _tables(part)
    return list(zip(tables[::2], tables[1::2], strict=True))


def _tables(part: BlockPart) -> list[Distances]:
    ends = np.cumsum(part["rows"])
    rows = [slice(end - count, end) for end, count in zip(ends, part["rows"], strict=True)]
    return [Distances(part["values"][where], part["weights"][where]) for where in rows]


def _part(tables: Sequence[Distances], edge: float) -> BlockPart:
    """The inverse of `_tables`."""
    none = np.zeros(0)
    return {
        "values": np.concatenate([none, *(table.values for table in tables)]),
        "weights": np.concatenate([none, *(table.weights for table in tables)]),
        "rows": np.array([len(table.values) for table in tables], np.int64),
        "edge": np.array(edge),
    }


def _added(waiting: Sequence[Sequence[Distances]]) -> list[Distances]:
    """The tables of several blocks as those of one."""
    return [Distances.together(tables) for tables in zip(*waiting, strict=True)]
