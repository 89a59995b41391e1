"""The nearest element of a surface that may lie anywhere in a volume too large to hold.

A surface is first looked for in the box at hand and a little around it. What may be nearer
elsewhere is then looked for in the cells of a coarse lattice, in the order of their distance, until
no cell that is left can hold anything nearer: the distances are those of the whole volume. Which
cells hold no surface is remembered, so that a far or an empty surface is searched for only once.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil
from typing import Literal

import numpy as np
import numpy.typing as npt

from vcmodels.fields.surfaces import corner_codes, surface_voxels
from vcmodels.geometry.boxes import Box, Shape, Spacing, triple
from vcmodels.metrics.base import Pair

Elements = Literal["voxels", "surfels"]
Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
"""(n, 3): (z, y, x) of elements in the volume."""
Offsets = npt.NDArray[np.uint8]
"""(n, 3): the same from the start of a cell; an eighth of the memory."""
SurfaceArray = npt.NDArray[np.uint8]
"""(Z, Y, X): 0 where no element is; a voxel is 1, a corner the code of `corner_codes`. (0, 0, 0) where
there is no region at all, as in most of a large volume: nothing is made, and nothing looked at."""

CELL = 64
"""Side of a cell, in voxels, at most 256: what is read at once, and remembered as empty."""
HALO = 8
"""How far around a block its nearest elements are looked for first, in voxels. Where a prediction is
any good, few elements are left then."""
_STEPS = 2
"""Up to how many voxels away an element is looked up and not searched for."""
_MOST_CELLS = 16
"""Cells that are searched together: at most 16 * 64^3 places, of 24 bytes each."""
_KEPT_BYTES = 1 << 23
"""Offsets in cells that are kept for the next block: of 2.8 million elements."""
_ARRAY_BYTES = 128
"""What an array takes that holds nothing."""


@dataclass(frozen=True)
class ElementGrid:
    """Where the elements of the surfaces of a volume may lie."""

    volume: Box
    spacing: Spacing
    elements: Elements

    @property
    def axes(self) -> tuple[int, ...]:
        """Those along which the volume is longer than a voxel."""
        return tuple(axis for axis in range(3) if self.volume.shape[axis] > 1)

    @property
    def box(self) -> Box:
        """All of them: voxels, or the corners before the voxels and that after the last."""
        return self.owned(self.volume)

    def owned(self, block: Box) -> Box:
        """The elements of a block of voxels; of blocks that do not overlap, neither do these."""
        if self.elements == "voxels":
            return block
        ends = [
            end + (axis in self.axes and end == last)
            for axis, (end, last) in enumerate(zip(block.end, self.volume.end, strict=True))
        ]
        return Box.between(block.origin, ends)

    def around(self, box: Box, margin: int) -> Box:
        """A box of elements with a margin along the axes."""
        return box.grow([margin * (axis in self.axes) for axis in range(3)])

    def surfaces(self, pair: Pair, box: Box) -> Iterator[tuple[SurfaceArray, SurfaceArray]]:
        """The predicted and the labelled surface of each mask or class, as far as a box shows."""
        wide = self.around(box, 1)
        end = wide.end if self.elements == "voxels" else box.end
        for both in zip(*pair.regions(Box.between(wide.origin, end)), strict=True):
            predicted, labelled = (self._surface(region, box.shape) for region in both)
            yield predicted, labelled

    def _surface(self, region: npt.NDArray[np.bool_], shape: Shape) -> SurfaceArray:
        if not region.any():
            return np.zeros((0, 0, 0), np.uint8)
        if self.elements == "voxels":
            return surface_voxels(region, self.axes).view(np.uint8)
        codes = corner_codes(np.ascontiguousarray(region), self.axes)
        return np.where(codes == 255, np.uint8(0), codes)

    def bound(self, places: Places, seen: Box) -> Floats:
        """How near an element out of the box `seen` may be to each of some places in it."""
        bound = np.full(len(places), np.inf)
        for axis in self.axes:
            along, length = places[:, axis], self.spacing[axis]
            if seen.origin[axis] > self.box.origin[axis]:
                np.minimum(bound, (along - seen.origin[axis] + 1) * length, out=bound)
            if seen.end[axis] < self.box.end[axis]:
                np.minimum(bound, (seen.end[axis] - along) * length, out=bound)
        return bound


def surface_distances(
    pair: Pair, block: Box, elements: Elements
) -> Iterator[tuple[SurfaceArray, Floats]]:
    """How far each element of a block is from the nearest one of the other surface.

    Args:
        pair: of a prediction and its label.
        block: of voxels.
        elements: what surfaces are made of.

    Yields:
        For each mask or class the predicted surface, then the labelled one: (n,) uint8, what the
        elements are; (n,) float64, their distances in the unit of the spacing, infinity where the
        whole volume holds no other surface.
    """
    lattice = ElementGrid(pair.box, pair.spacing, elements)
    owned = lattice.owned(block)
    seen = lattice.around(owned, HALO)
    search = far_search(pair, lattice)
    for number, surfaces in enumerate(lattice.surfaces(pair, seen)):
        search.note(seen, number, surfaces)
        for side, surface in enumerate(surfaces):
            own = surface[owned.slices(seen)]
            places = np.argwhere(own) + np.asarray(owned.origin)
            found = nearby_distances(surfaces[1 - side], seen, places, lattice)
            far = np.flatnonzero(found > lattice.bound(places, seen))
            if far.size:
                wanted = SearchRequest(number, 1 - side, places[far], seen)
                found[far] = search.lower(pair, wanted, found[far])
            yield own[own != 0], found
    search.close(seen)


def nearby_distances(
    surface: SurfaceArray, seen: Box, places: Places, lattice: ElementGrid
) -> Floats:
    """The distance from each place to the nearest element that a box shows.

    Args:
        surface: in the box `seen`.
        seen: a box with a margin of `HALO` around all places.
        places: (n, 3).
        lattice: says along which axes there is more than one.

    Returns:
        (n,): infinity where the box holds no element.
    """
    found = np.full(len(places), np.inf)
    if not places.size or not surface.size:
        return found
    strides = np.array([surface.shape[1] * surface.shape[2], surface.shape[2], 1])
    flat, local = surface.ravel(), places - np.asarray(seen.origin)
    where, left = local @ strides, np.arange(len(places))
    for offset, distance in _close_offsets(lattice.axes, lattice.spacing):
        hit = flat[where[left] + offset @ strides] != 0
        found[left[hit]] = distance
        left = left[~hit]
    if left.size:
        found[left] = distances(local[left], np.argwhere(surface), lattice.spacing)
    return found


@lru_cache(maxsize=8)
def _close_offsets(
    axes: tuple[int, ...], spacing: Spacing
) -> tuple[tuple[npt.NDArray[np.int64], float], ...]:
    """The steps to all places that are nearer than any more than `_STEPS` voxels away.

    In the order of their length: the first that hits is the nearest.
    """
    steps = [range(-_STEPS, _STEPS + 1) if axis in axes else range(1) for axis in range(3)]
    reach = _STEPS * min((spacing[axis] for axis in axes), default=0.0)
    offsets = np.array(list(product(*steps)))
    lengths = _lengths(offsets, spacing)
    order = np.argsort(lengths, kind="stable")
    return tuple((offsets[i], float(lengths[i])) for i in order if lengths[i] <= reach)


def distances(places: Places, others: Places, spacing: Spacing) -> Floats:
    """The distance from each place to the nearest of the others; infinity if there are none."""
    # Late: slow to import, and most runs measure no surface.
    from scipy.spatial import KDTree

    if not len(places) or not len(others):
        return np.full(len(places), np.inf)
    # Median splits cost more than they save: a tree is asked about once for each of its places.
    tree = KDTree(others * spacing, leafsize=32, compact_nodes=False, balanced_tree=False)
    nearest = tree.query(places * spacing)[1]
    return _lengths(places - others[nearest], spacing)


def _lengths(offsets: np.ndarray, spacing: Spacing) -> Floats:
    """Lengths of (n, 3) voxel offsets: from whole numbers, so that they are the same everywhere."""
    return np.sqrt(((offsets * spacing) ** 2).sum(axis=1))


@dataclass(frozen=True)
class SearchRequest:
    """What is searched for."""

    number: int
    """Of the mask or class."""
    side: int
    """0: the predicted surface, 1: the labelled one."""
    places: Places
    """From where; not none."""
    seen: Box
    """A box whose elements are known already."""


class FarSearch:
    """Looks for the nearest elements of a pair's surfaces in all of its volume.

    Shared by the threads that measure a pair. What two of them find at once is found twice.
    """

    def __init__(self, lattice: ElementGrid) -> None:
        """With nothing known."""
        self._lattice = lattice
        self._grid: Shape = triple(ceil(n / CELL) for n in lattice.box.shape)
        self._is_known = np.zeros(self._grid, np.bool_)
        self._holding: dict[tuple[int, int], npt.NDArray[np.bool_]] = {}
        self._kept: OrderedDict[Shape, list[tuple[Offsets, Offsets]]] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def note(self, seen: Box, number: int, surfaces: Sequence[SurfaceArray]) -> None:
        """Remember in which of the cells of a box the surfaces of one mask or class are."""
        for side, surface in enumerate(surfaces):
            if surface.any():
                holds = self._holds(number, side)
                for cell in self._cells_in(seen):
                    holds[cell] = surface[self._cell(cell).slices(seen)].any()

    def close(self, seen: Box) -> None:
        """Remember that all surfaces in the cells of a box were noted."""
        for cell in self._cells_in(seen):
            self._is_known[cell] = True

    def lower(self, pair: Pair, wanted: SearchRequest, found: Floats) -> Floats:
        """The distances to the nearest elements anywhere.

        Args:
            pair: whose lattice it is.
            wanted: says from where, and of which surface.
            found: (n,): the distances to the nearest elements that were seen; infinity for none.

        Returns:
            (n,): infinity where there is no element in all of the volume.
        """
        found = found.copy()
        cells, away = self._to_visit(wanted)
        at, count = 0, 1
        while at < len(cells):
            left = np.flatnonzero(found > away[at])
            if not left.size:
                break
            near = [self._places(pair, cell, wanted) for cell in cells[at : at + count]]
            others = np.concatenate(near)
            nearer = distances(wanted.places[left], others, self._lattice.spacing)
            found[left] = np.minimum(found[left], nearer)
            # More and more at once: one search in many places takes less than many in few.
            at, count = at + count, min(2 * count, _MOST_CELLS)
        return found

    def _to_visit(self, wanted: SearchRequest) -> tuple[list[Shape], Floats]:
        """The cells that may hold elements, and how near they are at least, the nearest first."""
        may_hold = ~self._is_known | self._holds(wanted.number, wanted.side)
        for cell in self._cells_in(wanted.seen):
            may_hold[cell] = False
        cells = np.argwhere(may_hold)
        start = cells * CELL + np.asarray(self._lattice.box.origin)
        low, high = wanted.places.min(axis=0), wanted.places.max(axis=0)
        gap = np.maximum(np.maximum(start - high, low - (start + CELL - 1)), 0)
        away = _lengths(gap, self._lattice.spacing)
        order = np.argsort(away, kind="stable")
        return [triple(cell) for cell in cells[order].tolist()], away[order]

    def _holds(self, number: int, side: int) -> npt.NDArray[np.bool_]:
        """Which cells are known to hold a surface."""
        key = number, side
        if key not in self._holding:
            with self._lock:
                self._holding.setdefault(key, np.zeros(self._grid, np.bool_))
        return self._holding[key]

    def _places(self, pair: Pair, cell: Shape, wanted: SearchRequest) -> Places:
        """Where the elements of the surface that is searched for are in a cell."""
        offsets = self._offsets(pair, cell)[wanted.number][wanted.side]
        return offsets.astype(np.int64) + np.asarray(self._cell(cell).origin)

    def _offsets(self, pair: Pair, cell: Shape) -> list[tuple[Offsets, Offsets]]:
        """The elements in a cell: of each mask or class the predicted ones and the labelled ones."""
        with self._lock:
            if cell in self._kept:
                self._kept.move_to_end(cell)
                return self._kept[cell]
        box, found = self._cell(cell), list[tuple[Offsets, Offsets]]()
        for number, surfaces in enumerate(self._lattice.surfaces(pair, box)):
            self.note(box, number, surfaces)
            predicted, labelled = (np.argwhere(s).astype(np.uint8) for s in surfaces)
            found.append((predicted, labelled))
        self.close(box)
        self._keep(cell, found)
        return found

    def _keep(self, cell: Shape, found: list[tuple[Offsets, Offsets]]) -> None:
        with self._lock:
            if cell not in self._kept:
                self._kept[cell] = found
                self._kept_bytes += _bytes_of(found)
            while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._kept_bytes -= _bytes_of(dropped)

    def _cells_in(self, box: Box) -> Iterator[Shape]:
        """The cells of which all elements lie in a box."""
        whole, ranges = self._lattice.box, list[range]()
        for axis, count in enumerate(self._grid):
            start, end = (v[axis] - whole.origin[axis] for v in (box.origin, box.end))
            last = count if end >= whole.shape[axis] else max(end, 0) // CELL
            ranges.append(range(max(ceil(start / CELL), 0), last))
        return ((z, y, x) for z, y, x in product(*ranges))

    def _cell(self, cell: Shape) -> Box:
        origin = (o + i * CELL for o, i in zip(self._lattice.box.origin, cell, strict=True))
        return Box(triple(origin), (CELL, CELL, CELL)).intersect(self._lattice.box)


def _bytes_of(found: list[tuple[Offsets, Offsets]]) -> int:
    return sum(offsets.nbytes + _ARRAY_BYTES for both in found for offsets in both)


_SEARCHES: dict[tuple[int, Elements], FarSearch] = {}
_SEARCHES_LOCK = threading.Lock()


def far_search(pair: Pair, lattice: ElementGrid) -> FarSearch:
    """The search of a pair, which is kept as long as that object lives.

    By identity: an equal pair may stand for a store that has changed since.
    """
    key = id(pair), lattice.elements
    with _SEARCHES_LOCK:
        if key not in _SEARCHES:
            _SEARCHES[key] = FarSearch(lattice)
            weakref.finalize(pair, _SEARCHES.pop, key, None).atexit = False
        return _SEARCHES[key]
