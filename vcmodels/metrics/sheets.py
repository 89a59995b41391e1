"""Whether neighbouring sheets are kept apart, by how far apart they lie.

The label gives each sheet, or each wrap of a rolled one, an id of its own. Around each labelled voxel a
plane is fitted to the voxels of the same id: its normal is the axis of their least variance, and their
mean lies on the middle of the sheet, to a fraction of a voxel. From the voxels that hold the middle a
line follows the normal, both ways, to the next id; the spacing of the two sheets is the distance of
their middles along it. At this place the pair is

- *resolved* when the prediction is foreground in both middles and background somewhere between, or
  holds two ids;
- not resolved when it is foreground throughout (a merger), or lacks one of the two.

Places do not count where the label is not known between the two or within 4 voxels of either, for a
plane through half a ball would be tilted. Where the labelled sheets touch, a mask cannot keep them
apart, so that the label itself, taken as a prediction, reaches less than 1.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, inf
from typing import NamedTuple

import numpy as np

from vcmodels.geometry.boxes import Box, Shape, Spacing, triple
from vcmodels.metrics.base import BlockMetric, BlockPart, Curve, FigureValues, Pair, Sense
from vcmodels.metrics.overlap import ratio

PLANE_RADIUS = 4.0
"""Of the ball in which a plane is fitted, in voxels of the finest axis."""
WIDEST = 32.0
"""Spacing that can be asked for, in voxels of the finest axis: lines and the margin of blocks grow with
it."""
_LEAST_VOXELS = 5
_FLATNESS = 1.2
"""The least and the middle variance of a plane differ by this factor, or it has no normal."""
_STEP = 0.5
_ROWS = 4096
"""Voxels whose surroundings are looked at together: 1 MB of comparisons."""


@dataclass(frozen=True)
class SheetPairs(BlockMetric):
    """The share of neighbouring pairs of sheets that a prediction resolves, by their spacing.

    Raises:
        ValueError: `spacings` are not two or more rising numbers from 0 to `WIDEST`.
    """

    spacings: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0)
    """Limits of the ranges, in voxels of the finest axis; each holds its lower limit."""

    def __post_init__(self) -> None:
        """Refuse limits that mean nothing."""
        super().__post_init__()
        steps = np.diff(self.spacings)
        is_within = all(0 <= limit <= WIDEST for limit in self.spacings)
        if not (len(steps) and is_within and (steps > 0).all()):
            found = f"got {self.spacings}"
            raise ValueError(
                f"spacings must be two or more, rise and lie in [0, {WIDEST:g}], {found}"
            )

    @property
    def better(self) -> Mapping[str, Sense]:
        return dict.fromkeys(("resolved", *self._ranges), "max")

    @property
    def _ranges(self) -> tuple[str, ...]:
        limits = zip(self.spacings[:-1], self.spacings[1:], strict=True)
        return tuple(f"resolved_{low:g}_{high:g}" for low, high in limits)

    def measure(self, pair: Pair, block: Box) -> BlockPart:
        """`pairs` and `resolved`, (ranges,) int64: places, seen from either sheet, by spacing."""
        none = np.zeros(len(self.spacings) - 1, np.int64)
        if not pair.ids(block).any():
            return {"pairs": none, "resolved": none}
        scale = np.array(pair.spacing) / min(pair.spacing)
        # Through the other sheet, which is no thicker than its spacing.
        reach = 1.5 * self.spacings[-1] + float(np.linalg.norm(scale))
        margin = triple(ceil(m) + 1 for m in (reach + PLANE_RADIUS) / scale)
        scene = SheetScene.read(pair, block.grow(margin), scale)
        crossings = scene.crossings(scene.labelled(margin), reach)
        bins = np.searchsorted(self.spacings, crossings.spacing, side="right") - 1
        inside = (bins >= 0) & (bins < len(none))
        return {
            "pairs": np.bincount(bins[inside], minlength=len(none)),
            "resolved": np.bincount(bins[inside & crossings.resolved], minlength=len(none)),
        }

    def join(self, parts: Iterable[tuple[Box, BlockPart]]) -> BlockPart:
        total = np.zeros((2, len(self.spacings) - 1), np.int64)
        for _, part in parts:
            total += np.stack([part["pairs"], part["resolved"]])
        return {"pairs": total[0], "resolved": total[1]}

    def figures(self, joined: BlockPart) -> Mapping[str, FigureValues]:
        pairs, resolved = joined["pairs"], joined["resolved"]
        shares = map(ratio, resolved, pairs)
        return {
            "resolved": ratio(resolved.sum(), pairs.sum()),
            **dict(zip(self._ranges, shares, strict=True)),
        }

    def curves(self, joined: BlockPart) -> Mapping[str, Curve]:
        seen = np.flatnonzero(joined["pairs"])
        middles = (np.array(self.spacings[:-1]) + self.spacings[1:]) / 2
        shares = joined["resolved"][seen] / joined["pairs"][seen]
        x, y = tuple(middles[seen].tolist()), tuple(shares.tolist())
        labels = "spacing of two sheets, voxels", "resolved"
        return {"Resolved pairs of sheets": Curve(x, y, *labels, style="bars")}


class Planes(NamedTuple):
    """What is fitted around n voxels, in voxels of the finest axis."""

    normal: np.ndarray
    """(n, 3) unit vectors, of any sign."""
    middle: np.ndarray
    """(n, 3): from the voxel to the nearest point in the middle of its sheet."""
    is_flat: np.ndarray
    """(n,) bool: whether there is a normal: all around is known, and flat."""


class Crossings(NamedTuple):
    """Places at which a line along a normal meets another sheet."""

    spacing: np.ndarray
    """(n,) in voxels of the finest axis."""
    resolved: np.ndarray
    """(n,) bool."""


@dataclass(frozen=True)
class SheetScene:
    """A part of a volume in memory, flat, for looking up."""

    shape: Shape
    ids: np.ndarray
    """(voxels,) ids of the sheets, 0 elsewhere."""
    predicted: np.ndarray
    """(voxels,) bool, or predicted ids."""
    valid: np.ndarray
    """(voxels,) bool."""
    scale: np.ndarray
    """(3,): length of a voxel along (z, y, x), of the finest axis 1."""

    @classmethod
    def read(cls, pair: Pair, box: Box, scale: np.ndarray) -> "SheetScene":
        """All that a pair holds in a box."""
        prediction, _, valid = pair.read(box)
        predicted = prediction if pair.form == "instances" else pair.regions(box)[0]
        ids, seen, known = (a[0].reshape(-1) for a in (pair.ids(box), predicted, valid))
        return cls(box.shape, ids, seen, known, scale)

    def labelled(self, margin: Shape) -> np.ndarray:
        """(n, 3) places of the voxels with an id, those nearer to the border than `margin` left out."""
        inner = tuple(slice(m, n - m) for m, n in zip(margin, self.shape, strict=True))
        return np.argwhere(self.ids.reshape(self.shape)[inner]) + margin

    def crossings(self, places: np.ndarray, reach: float) -> Crossings:
        """The pairs of sheets that are met from the middles among some places."""
        planes = self.planes(places)
        half = np.linalg.norm(planes.normal * self.scale, axis=1) / 2
        is_middle = planes.is_flat & (np.linalg.norm(planes.middle, axis=1) <= half)
        found = [Crossings(np.zeros(0), np.zeros(0, bool))]
        rows = np.flatnonzero(is_middle)
        for start in range(0, len(rows), _ROWS):
            here = rows[start : start + _ROWS]
            for sign in (1, -1):
                ways = sign * planes.normal[here], planes.middle[here]
                found.append(self._follow(places[here], *ways, reach))
        return Crossings(*map(np.concatenate, zip(*found, strict=True)))

    def planes(self, places: np.ndarray) -> Planes:
        """Planes through voxels that are `PLANE_RADIUS` or more away from the border."""
        offsets = _ball(self.scale)
        steps = self._flat(offsets)
        pairs = [(a, b) for a in range(3) for b in range(a, 3)]
        terms = np.stack(
            [np.ones(len(offsets)), *offsets.T, *(offsets[:, a] * offsets[:, b] for a, b in pairs)]
        )
        at, sums = self._flat(places), np.empty((len(places), len(terms)))
        is_known = np.empty(len(places), bool)
        for start in range(0, len(at), _ROWS):
            rows = at[start : start + _ROWS]
            is_known[start : start + _ROWS] = self.valid[rows[:, None] + steps].all(axis=1)
            same = self.ids[rows[:, None] + steps] == self.ids[rows][:, None]
            # Whole numbers, and exact in this dtype: the sums do not depend on the rows.
            sums[start : start + _ROWS] = same.astype(np.float32) @ terms.T.astype(np.float32)
        count = sums[:, 0]
        mean = sums[:, 1:4] / count[:, None] * self.scale
        spread = np.empty((len(places), 3, 3))
        for n, (a, b) in enumerate(pairs):
            square = sums[:, 4 + n] / count * self.scale[a] * self.scale[b]
            spread[:, a, b] = spread[:, b, a] = square - mean[:, a] * mean[:, b]
        variance, axes = np.linalg.eigh(spread)
        normal = axes[:, :, 0]
        middle = normal * np.sum(normal * mean, axis=1, keepdims=True)
        # A sheet of one voxel has no variance across, but for rounding.
        is_flat = (
            is_known
            & (count >= _LEAST_VOXELS)
            & (variance[:, 1] > _FLATNESS * variance[:, 0] + 1e-6)
        )
        return Planes(normal, middle, is_flat)

    def _follow(
        self, places: np.ndarray, direction: np.ndarray, middle: np.ndarray, reach: float
    ) -> Crossings:
        """Go from places on the middle of a sheet along unit vectors (n, 3) to the next sheet."""
        steps = np.arange(0, reach, _STEP)
        rays = direction[:, None] / self.scale * steps[:, None]
        # The offsets are rounded, not the places: to the even one of two would depend on the block.
        line = self._flat(places[:, None] + np.rint(rays).astype(np.int64))
        ids, own = self.ids[line], self.ids[line[:, :1]]
        is_other = (ids != 0) & (ids != own)
        met, first = is_other.any(axis=1), is_other.argmax(axis=1)
        met &= _before(~self.valid[line], first) == 0
        line, ids, first = line[met], ids[met], first[met]
        places, direction, middle = places[met], direction[met], middle[met]

        row = np.arange(len(line))
        is_there = ids == ids[row, first][:, None]
        # A ball about the face of a thick sheet holds more of this side: fit in the middle.
        run = is_there & (np.cumsum(~is_there, axis=1) == first[:, None])
        centre = line[row, first + (run.sum(axis=1) - 1) // 2]
        there = np.stack(np.unravel_index(centre, self.shape), axis=1)
        planes = self.planes(there)
        start = np.sum(middle * direction, axis=1)
        end = np.sum(((there - places) * self.scale + planes.middle) * direction, axis=1)
        # The voxel of the other sheet that is nearest to its middle, along the line.
        away = np.where(is_there, np.abs(steps - end[:, None]), inf)
        last = away.argmin(axis=1)
        seen = self.predicted[line]
        ends = seen[:, 0], seen[row, last]
        apart = (_before(seen == 0, last) > 0) | (ends[0] != ends[1])
        resolved = (ends[0] != 0) & (ends[1] != 0) & apart
        return Crossings((end - start)[planes.is_flat], resolved[planes.is_flat])

    def _flat(self, places: np.ndarray) -> np.ndarray:
        """Of (..., 3) places or offsets the flat ones."""
        return places @ np.array([self.shape[1] * self.shape[2], self.shape[2], 1])


def _before(flags: np.ndarray, column: np.ndarray) -> np.ndarray:
    """How many of each row (n, k) are true before a column (n,)."""
    return np.sum(flags & (np.arange(flags.shape[1]) < column[:, None]), axis=1)


def _ball(scale: Spacing | np.ndarray) -> np.ndarray:
    """(k, 3) int64 offsets within `PLANE_RADIUS`, that of the voxel itself included."""
    sides = [np.arange(-int(PLANE_RADIUS / s), int(PLANE_RADIUS / s) + 1) for s in scale]
    offsets = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 3)
    return offsets[np.linalg.norm(offsets * np.asarray(scale), axis=1) <= PLANE_RADIUS]
