"""Values of a derived grid from those of its source: nearest, linear, cubic, by votes.

A map between grids works on each axis by itself, so a block is three products with a small matrix,
whose rows are the weights of the source's voxels for each derived one. Where voxels get longer along
an axis, the kernel is stretched as they are, which averages what would else be aliased (Turkowski
1990, "Filters for common resampling tasks", Graphics Gems I).
"""

from collections.abc import Callable
from math import ceil, floor
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vcmodels.geometry.boxes import Box
from vcmodels.geometry.gridmap import GridMap

Order = Literal["nearest", "linear", "cubic", "between", "spline"]
Extend = Literal["line", "edge"]
"""What stands past the border of the source, for kernels that reach there: `line` goes on as the
voxels before it do (point reflection about the last one), so that a ramp stays one; `edge` repeats
the last, so that shares stay between 0 and 1."""
Orders = tuple[Order, Order, Order]
"""Along (z, y, x) of the derived grid."""
Floats = NDArray[np.float32]
Read = Callable[[Box], np.ndarray]
"""A box inside of the source -> its voxels, (C, Z, Y, X)."""

_POLE = 3**0.5 - 2
_SPLINE_REACH = 11
"""From here on the weights of the spline are below 2e-6."""
_DRAW = np.float32(1e-4)
"""Of a voxel's share: by so much the value of the nearest voxel goes before others."""
_NEAR = 1e-6
"""In voxels: so far a centre may be off by rounding."""


def outside(grid: GridMap, axis: int, start: int, length: int) -> NDArray[np.bool_]:
    """Which voxels along a derived axis lie outside of the source.

    Their centres are a whole voxel past the last one, or farther: where lengths do not divide, a
    derived grid ends up to half a voxel before or after its source, and nothing of that is lost.

    Returns:
        (length,) bool.
    """
    last = grid.source[grid.axes[axis][0]]
    centres = grid.centres(axis, start, length)
    return (centres <= _NEAR - 1) | (centres >= last - _NEAR)


def resample(
    read: Read, grid: GridMap, box: Box, order: Order | Orders, extend: Extend = "line"
) -> Floats:
    """The values of a box of the derived grid; those outside of the source are its border's.

    Args:
        read: voxels of the source.
        grid: where the box lies in it.
        box: inside of the derived grid.
        order: `nearest`; `linear`, between the two nearest where voxels do not get longer, else the
            mean of what they cover; `cubic`, the natural cubic spline through all voxels, or the
            stretched kernel of Keys (1981, IEEE TASSP 29(6), a = -1/2); `spline`, the spline wherever;
            `between`, between the two nearest wherever.
            One for all axes, or one for each of the derived grid.
        extend: what stands past the border.

    Returns:
        (C, *box.shape) float32.
    """
    around, weights = _plan(grid, box, order)
    values = _extended(read, around, grid, extend)
    for axis, matrix in weights.items():
        values = np.moveaxis(np.tensordot(matrix, values, (1, axis + 1)), 0, axis + 1)
    return np.ascontiguousarray(values.transpose(0, *(1 + s for s, _, _ in grid.axes)))


def pick(read: Read, grid: GridMap, box: Box) -> np.ndarray:
    """The nearest voxels, of the source's dtype: for an exact map, the voxels themselves."""
    places = [
        np.clip(
            np.floor(grid.centres(axis, o, n) + (0.5 + _NEAR)).astype(int), 0, grid.source[s] - 1
        )
        for axis, (o, n, (s, _, _)) in enumerate(zip(box.origin, box.shape, grid.axes, strict=True))
    ]
    by_source = dict(zip((s for s, _, _ in grid.axes), places, strict=True))
    low = [int(by_source[axis].min()) for axis in range(3)]
    high = [int(by_source[axis].max()) + 1 for axis in range(3)]
    values = read(Box.between(low, high))
    for axis in range(3):
        values = values.take(by_source[axis] - low[axis], axis=axis + 1)
    return np.ascontiguousarray(values.transpose(0, *(1 + s for s, _, _ in grid.axes)))


def vote(read: Read, grid: GridMap, box: Box) -> np.ndarray:
    """The value with the largest share of each voxel, by linear weights; of equal ones the nearest.

    That is the linear interpolation of the one-hot form, then its largest entry: no value comes out
    that is not there.

    Returns:
        (C, *box.shape) of the source's dtype, whole numbers.
    """
    inner = window(grid, box, "linear").intersect(_whole(grid))
    stored, nearest = read(inner), pick(read, grid, box)
    voted = [_voted(c, n, inner, grid, box) for c, n in zip(stored, nearest, strict=True)]
    return np.stack(voted)


def _voted(
    channel: np.ndarray, nearest: np.ndarray, inner: Box, grid: GridMap, box: Box
) -> np.ndarray:
    # Late: slow to import.
    from scipy.ndimage import find_objects

    best, most = nearest.copy(), np.zeros(box.shape, np.float32)
    values, numbers = np.unique(channel, return_inverse=True)
    if len(values) == 1:
        return best
    for value, found in zip(values, find_objects(numbers.reshape(inner.shape) + 1), strict=True):
        ends = [(s.start + o, s.stop + o) for s, o in zip(found, inner.origin, strict=True)]
        part = _touched(Box.between(*zip(*ends, strict=True)), grid, box)
        if not part.voxels:
            continue

        def read(around: Box, value: np.generic = value) -> np.ndarray:
            return (channel[around.slices(inner)] == value)[None]

        at = part.slices(box)
        share = resample(read, grid, part, "linear", "edge")[0] + _DRAW * (nearest[at] == value)
        wins = share > most[at]
        best[at][wins] = value
        most[at] = np.maximum(most[at], share)
    return best


def _touched(held: Box, grid: GridMap, box: Box) -> Box:
    """The part of a box of the derived grid in which those of the source may have a linear weight."""
    low, high = [0, 0, 0], [0, 0, 0]
    for axis, (source, factor, _) in enumerate(grid.axes):
        centres = _inside(grid, axis, box.origin[axis], box.shape[axis])
        far = reach("linear", abs(factor))
        is_near = (centres >= held.origin[source] - far) & (centres < held.end[source] + far)
        places = np.flatnonzero(is_near) + box.origin[axis]
        if len(places):
            low[axis], high[axis] = int(places[0]), int(places[-1]) + 1
    return Box.between(low, high)


def reach(order: Order, stretch: float) -> float:
    """How many voxels of the source away one still counts, along an axis."""
    if order == "nearest":
        return 0.5
    if order == "between":
        return 1.0
    if order == "linear":
        return (max(stretch, 1.0) + 1) / 2
    return 2 * stretch if order == "cubic" and stretch > 1 + _NEAR else _SPLINE_REACH


def _whole(grid: GridMap) -> Box:
    return Box((0, 0, 0), grid.source)


def window(grid: GridMap, box: Box, order: Order | Orders) -> Box:
    """The voxels of the source that have a say in a box; they may reach past its end."""
    low, high = [0, 0, 0], [0, 0, 0]
    for axis, (source, factor, _) in enumerate(grid.axes):
        start, last = box.origin[axis], box.end[axis] - 1
        here = _order_along(grid, axis, order)
        ends = [_inside(grid, axis, at, 1, here)[0] for at in (start, last)]
        far = reach(here, abs(factor))
        low[source], high[source] = floor(min(ends) - far), ceil(max(ends) + far) + 1
    return Box.between(low, high)


def _inside(
    grid: GridMap, axis: int, start: int, length: int, order: Order = "linear"
) -> NDArray[np.float64]:
    """The centres of voxels, moved to the border where they are outside; a spline goes on to the edge."""
    last, edge = grid.source[grid.axes[axis][0]] - 1, 0.5 if order == "spline" else 0.0
    return np.clip(grid.centres(axis, start, length), -edge, last + edge)


def _order_along(grid: GridMap, axis: int, order: Order | Orders) -> Order:
    """Nearest along an axis on which voxels lie on voxels: then only one of them counts."""
    _, factor, shift = grid.axes[axis]
    is_exact = abs(abs(factor) - 1) <= _NEAR and abs(shift - round(shift)) <= _NEAR
    if is_exact:
        return "nearest"
    return order if isinstance(order, str) else order[axis]


def _plan(grid: GridMap, box: Box, order: Order | Orders) -> tuple[Box, dict[int, Floats]]:
    """The window of a box, and the weights of its voxels along each of the source's axes."""
    around = window(grid, box, order)
    weights: dict[int, Floats] = {}
    for axis, (source, factor, _) in enumerate(grid.axes):
        here = _order_along(grid, axis, order)
        centres = _inside(grid, axis, box.origin[axis], box.shape[axis], here)
        places = np.arange(around.origin[source], around.end[source])
        weights[source] = _weights(centres, places, here, abs(factor))
    return around, weights


def _weights(
    centres: NDArray[np.float64], places: NDArray[np.int64], order: Order, stretch: float
) -> Floats:
    """(centres, places) float32: rows sum to 1 and have their centre as the mean of their places."""
    away = places - centres[:, None]
    if order == "nearest":
        found = (np.floor(centres + (0.5 + _NEAR))[:, None] == places).astype(np.float64)
    elif stretch <= 1 + _NEAR or order in ("between", "spline"):
        found = _overlap(away, 1.0) if order in ("between", "linear") else _spline(away)
    else:
        found = _overlap(away, stretch) if order == "linear" else _keys(away / stretch)
        found /= found.sum(1, keepdims=True)
        # A stretched kernel meets other places at each centre: what its mean is off is taken back.
        far = reach(order, stretch)
        near = np.where(np.abs(away) <= far, 1 - np.abs(away) / (far + 1), 0)
        lever = near * (away - (near * away).sum(1, keepdims=True) / near.sum(1, keepdims=True))
        off = (found * away).sum(1, keepdims=True)
        found -= off * lever / (lever * away).sum(1, keepdims=True)
    return (found / found.sum(1, keepdims=True)).astype(np.float32)


def _overlap(away: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    """How much of a voxel this far away lies in an interval of this length: for 1, a triangle."""
    return np.clip((length + 1) / 2 - np.abs(away), 0, 1)


def _keys(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cubic of Keys with a = -1/2."""
    a = np.abs(t)
    inner = 1 + a * a * (1.5 * a - 2.5)
    outer = 2 - a * (4 - a * (2.5 - 0.5 * a))
    return np.where(a < 1, inner, np.where(a < 2, outer, 0))


def _spline(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cubic spline that is 1 at 0 and 0 at all other whole numbers.

    A sum of B-splines whose coefficients fall by sqrt(3) - 2 from each to the next (Unser 1999, IEEE
    Signal Processing Magazine 16(6)).
    """
    found = np.zeros_like(t)
    for k in range(-_SPLINE_REACH - 2, _SPLINE_REACH + 3):
        a = np.abs(t - k)
        spline = np.where(a < 1, 2 / 3 - a * a * (1 - a / 2), np.maximum(2 - a, 0) ** 3 / 6)
        found += -6 * _POLE / (1 - _POLE * _POLE) * _POLE ** abs(k) * spline
    return found


def _extended(read: Read, around: Box, grid: GridMap, extend: Extend) -> Floats:
    """(C, *around.shape) float32: the source, and what stands past its border."""
    inner = around.intersect(_whole(grid))
    values = np.asarray(read(inner), np.float32)
    pads = [
        (i - w, w_end - i_end)
        for w, i, w_end, i_end in zip(
            around.origin, inner.origin, around.end, inner.end, strict=True
        )
    ]
    if not any(map(any, pads)):
        return values
    if extend == "edge":
        return np.pad(values, [(0, 0), *pads], mode="edge")
    return np.pad(values, [(0, 0), *pads], mode="reflect", reflect_type="odd")
