"""The basins of a landscape that is seen block by block, and the graph of those that touch.

Four passes: the heights of all voxels; the pieces of basins in each block; which piece goes on in
which piece of the next block; and the least edges between basins. Basins are numbered by their first
voxels, so that from there on nothing depends on the blocks.
"""

from dataclasses import dataclass

import numpy as np

from vcmodels.blockwise import Measured
from vcmodels.errors import RunError
from vcmodels.fields.forest import RegionEdges
from vcmodels.fields.watershed import NOTHING, BlockBasins
from vcmodels.geometry.boxes import Box, Shape, divide, triple
from vcmodels.geometry.grid import tiles
from vcmodels.machine import machine_bytes
from vcmodels.metrics.base import BlockPart
from vcmodels.postprocess.landscape import Landscape
from vcmodels.postprocess.numbering import NOWHERE, first_voxels, numbered
from vcmodels.postprocess.site import Site, Tables
from vcmodels.volumes import Volume

_RING = (1, 1, 1)
BYTES_PER_BASIN = 1000
"""What joining basins holds for each: measured, with seven neighbours each."""
MANY = 100_000
"""From so many on their number is said: one process joins them, a few seconds for each as many."""


@dataclass(frozen=True)
class KeptHeights:
    """The heights of a landscape, from the array that holds them."""

    array: Volume
    """`NOTHING` minus each height, so that what was never written is nothing."""
    within: Box

    def read(self, box: Box) -> np.ndarray:
        """(Z, Y, X) int32 of a box, which may reach out of the volume."""
        return NOTHING - self.array.read(box, self.within, "zero")[0]


@dataclass(frozen=True)
class KeptPieces:
    """The pieces of basins, from the array that holds their numbers in each block."""

    array: Volume
    within: Box
    block: Shape
    tables: Tables
    """`offsets`: what is to be added to the numbers of each block, in the order of blocks."""

    def read(self, box: Box) -> np.ndarray:
        """(Z, Y, X) int64 of a box, which may reach out of the volume; 0 is none."""
        numbers = self.array.read(box, self.within, "zero")[0].astype(np.int64)
        first = divide(self.within.origin, self.block)
        last = divide(triple(end - 1 for end in self.within.end), self.block)
        counts = triple(b - a + 1 for a, b in zip(first, last, strict=True))
        offsets = self.tables["offsets"].reshape(counts)
        for part in tiles(box.intersect(self.within), self.block):
            at = triple(i - f for i, f in zip(divide(part.origin, self.block), first, strict=True))
            inside = numbers[part.slices(box)]
            inside[inside > 0] += int(offsets[at])
        return numbers


@dataclass(frozen=True)
class Basins:
    """The basins of a landscape."""

    heights: KeptHeights
    pieces: KeptPieces
    tables: Tables
    """`basins` (pieces + 1,): of each piece; `lowest`, `voxels`, `firsts` (basins + 1,): of each
    basin the height of its minimum, its size, and the number of its first voxel."""

    def regions(self, box: Box, of_basin: np.ndarray | None = None) -> np.ndarray:
        """(Z, Y, X) int64: the basins of a box, or what a table says of them."""
        found = self.tables["basins"][self.pieces.read(box)]
        return np.asarray(found if of_basin is None else of_basin[found])


def find_basins(site: Site, landscape: Landscape) -> Basins:
    """The basins of a landscape over the blocks of a site.

    Raises:
        StoppedError: the crew was asked to stop.
        RunError: the machine has too little memory to join so many basins.
    """
    array, _ = site.keep("heights", np.dtype(np.int32), _Heights(landscape))
    heights = KeptHeights(array, site.box)
    array, measured = site.keep("pieces", np.dtype(np.uint32), _BasinPieces(heights))
    tables = site.once("pieces", lambda: _numbered_pieces(measured))
    pieces = KeptPieces(array, site.box, site.block, tables)
    rows = {box: row for row, box in enumerate(site.blocks)}
    links = site.measure("links", _Links(pieces, rows))
    basins = Basins(heights, pieces, site.once("basins", lambda: _joined(tables, links)))
    require_memory(
        site, "basins", len(basins.tables["lowest"]) - 1, BYTES_PER_BASIN,
        'give a larger "smooth", a mask, a smaller bbox, or use a machine with more memory',
    )  # fmt: skip
    return basins


def require_memory(site: Site, what: str, count: int, each: int, remedy: str) -> None:
    """Say how much there is to join, where it is much, and refuse what cannot be held.

    Args:
        site: it reports.
        what: is joined, in the plural.
        count: of them.
        each: bytes that one takes.
        remedy: against too many.

    Raises:
        RunError: all memory of the machine is less.
    """
    needed, there = count * each, machine_bytes()
    found = f"joining {count:,} {what} takes about {needed / 2**30:,.1f} GiB of memory"
    if needed > there:
        held = f"{found}, the machine has {there / 2**30:,.1f} GiB"
        raise RunError(site.output.location, held, remedy)
    if count >= MANY:
        site.crew.reporter.say(f"{found}; it is done in one go")


def basin_edges(site: Site, basins: Basins) -> Measured:
    """The least edges between basins, by block, for `merged_edges`."""
    return site.measure("edges", _Edges(basins, site.box))


def merged_edges(measured: Measured) -> RegionEdges:
    """The least edge of each pair of basins."""
    return RegionEdges.merged(RegionEdges(**part) for _, part in measured.parts())


@dataclass(frozen=True)
class _Heights:
    landscape: Landscape

    def __call__(self, box: Box) -> tuple[np.ndarray, BlockPart]:
        return NOTHING - self.landscape.heights(box), {}


@dataclass(frozen=True)
class _BasinPieces:
    heights: KeptHeights

    def __call__(self, box: Box) -> tuple[np.ndarray, BlockPart]:
        found = BlockBasins.of(self.heights.read(box.grow(_RING)))
        count = len(found.lowest)
        voxels = np.bincount(found.pieces.reshape(-1), minlength=count + 1)[1:]
        return found.pieces, {
            "lowest": found.lowest,
            "voxels": voxels,
            "firsts": first_voxels(found.pieces, count, box, self.heights.within),
            "exits": found.exits,
            "ends": found.ends,
        }


def _numbered_pieces(measured: Measured) -> BlockPart:
    """The pieces of all blocks in one row, and where those of each block begin."""
    parts = [part for _, part in measured.parts()]
    offsets = _starts([len(part["lowest"]) for part in parts])
    columns = {
        name: np.concatenate([part[name] for part in parts])
        for name in ("lowest", "voxels", "firsts", "ends")
    }
    exits = [part["exits"] + offset for part, offset in zip(parts, offsets, strict=False)]
    starts = _starts([len(part["exits"]) for part in parts])
    return {
        **columns,
        "exits": np.concatenate(exits),
        "exit_starts": starts,
        "offsets": offsets[:-1],
    }


def _starts(counts: list[int]) -> np.ndarray:
    """(n + 1,) int64: where each of several stretches begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


@dataclass(frozen=True)
class _Links:
    """Of the pieces that end out of their block, the pieces that hold those ends."""

    pieces: KeptPieces
    rows: dict[Box, int]

    def __call__(self, box: Box) -> BlockPart:
        tables, row = self.pieces.tables, self.rows[box]
        start, end = tables["exit_starts"][row : row + 2]
        if start == end:
            return {"to": np.empty(0, np.int64)}
        around = self.pieces.read(box.grow(_RING))
        return {"to": around.reshape(-1)[tables["ends"][start:end]]}


def _joined(tables: Tables, links: Measured) -> BlockPart:
    """Basins from pieces."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(tables["lowest"]) + 1
    to = np.concatenate([part["to"] for _, part in links.parts()])
    graph = coo_array((np.ones(len(to), np.int8), (tables["exits"], to)), (count, count))
    objects = connected_components(graph, directed=False)[1].astype(np.int64)
    firsts = np.concatenate([[NOWHERE], tables["firsts"]])
    basins = numbered(objects, firsts).astype(np.int64)
    size = int(basins.max(initial=0)) + 1
    lowest = np.full(size, NOTHING, np.int32)
    np.minimum.at(lowest, basins[1:], tables["lowest"])
    voxels, first = np.zeros(size, np.int64), np.full(size, NOWHERE, np.int64)
    np.add.at(voxels, basins[1:], tables["voxels"])
    np.minimum.at(first, basins[1:], tables["firsts"])
    return {"basins": basins, "lowest": lowest, "voxels": voxels, "firsts": first}


@dataclass(frozen=True)
class _Edges:
    basins: Basins
    within: Box

    def __call__(self, box: Box) -> BlockPart:
        layered = box.with_layer()
        places = voxel_numbers(box, self.within)
        regions, heights = self.basins.regions(layered), self.basins.heights.read(layered)
        return vars(RegionEdges.between(regions, heights, places))


def voxel_numbers(box: Box, within: Box) -> np.ndarray:
    """(Z, Y, X) int64: the numbers of voxels in a volume, x fastest and z slowest."""
    _, height, width = within.shape
    z, y, x = (
        np.arange(o - w, o - w + n, dtype=np.int64)
        for o, w, n in zip(box.origin, within.origin, box.shape, strict=True)
    )
    return (z[:, None, None] * height + y[:, None]) * width + x
