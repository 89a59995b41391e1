"""Whole volumes as OME-Zarr images: their coarser levels, and the one function that writes them."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import (
    Box,
    Shape,
    coarse_box,
    coarse_extent,
    divide,
    fine_box,
    level_factors,
    triple,
)
from vcmodels.geometry.grid import slabs, tiles
from vcmodels.volumes.backend import PLAIN, Storage
from vcmodels.volumes.location import is_remote
from vcmodels.volumes.places import whole_folder
from vcmodels.volumes.reader import Volume, open_volume
from vcmodels.volumes.spacing import Grid
from vcmodels.volumes.writer import (
    Description,
    WritableArray,
    coarse_grid,
    create_array,
    write_multiscale_group,
)

Halve = Callable[[np.ndarray, Shape], np.ndarray]
"""(S, Z, Y, X), and 1 or 2 along (z, y, x) -> the coarser voxels, of the same dtype."""
THREADS = 4
"""How many blocks of a coarser level are computed at once."""
PLANES = 32
"""Of a coarser level, computed at once: bounds what a mean in a wider type takes."""


@dataclass(frozen=True)
class Blocks:
    """A volume that comes in pieces."""

    shape: tuple[int, ...]
    """(Z, Y, X), or (C, Z, Y, X)."""
    dtype: np.dtype[Any]
    pieces: Iterable[tuple[Box, np.ndarray]]
    """Boxes and their voxels, (C, Z, Y, X) of `dtype`, with C = 1 for (Z, Y, X). Pieces of whole
    chunks (or shards) are written once each; of others, a chunk is read and written again."""

    @classmethod
    def of(cls, array: np.ndarray, piece: Shape) -> "Blocks":
        """Cut an array, such as a memory map, which then is never read at once."""
        channels_first = array if array.ndim == 4 else array[None]
        native = array.dtype.newbyteorder("=")
        whole = Box((0, 0, 0), _extent(array.shape))

        def pieces() -> Iterator[tuple[Box, np.ndarray]]:
            for box in tiles(whole, piece):
                yield box, channels_first[(slice(None), *box.slices())].astype(native)

        return cls(array.shape, native, pieces())


@dataclass(frozen=True)
class Pyramid:
    """The coarser levels of an image."""

    levels: int | None = None
    """How many, 0 for none; until one chunk holds a level when None."""
    values: Literal["mean", "mode"] = "mean"
    """What a coarser voxel has of the finer ones: the mean, or for labels the most frequent."""


_VOXELS = Grid()


def write_volume(
    location: str,
    source: np.ndarray | Blocks,
    *,
    grid: Grid = _VOXELS,
    chunks: Shape = (128, 128, 128),
    storage: Storage = PLAIN,
    pyramid: Pyramid = Pyramid(),
    description: Description | None = None,
) -> Path:
    """Write a whole volume as an OME-Zarr image that nobody sees before it is complete.

    A process that is killed leaves nothing at the location, and the next call there removes what it
    left next to it. No more than some blocks are in memory at once.

    Args:
        location: a local folder that does not exist.
        source: (Z, Y, X) or (C, Z, Y, X), or pieces of it.
        grid: voxel size, offset and unit of level 0.
        chunks: along (z, y, x); channels are stored together.
        storage: the rest of how it is stored; shards along (z, y, x).
        pyramid: which coarser levels there are.
        description: name, attributes, display; the folder's name when left out.

    Returns:
        Where it is.

    Raises:
        OutputError: a URL, something that exists, a folder that cannot be written to.
        ValueError: `source` has other axes; a piece does not fit it.
    """
    if is_remote(location):
        raise OutputError(location, "is a URL", "give a local path")
    place = Path(location)
    with whole_folder(place) as folder:
        write_image(
            folder,
            source,
            grid=grid,
            chunks=chunks,
            storage=storage,
            pyramid=pyramid,
            description=description or Description(place.name.split(".")[0]),
        )
    return place


def write_image(
    folder: Path,
    source: np.ndarray | Blocks,
    *,
    grid: Grid,
    chunks: Shape,
    storage: Storage,
    pyramid: Pyramid,
    description: Description,
) -> None:
    """Write the levels of an image and then its metadata into a folder, as `write_volume`."""
    unit = storage.shards or chunks
    volume = source if isinstance(source, Blocks) else Blocks.of(source, triple(unit))
    extent, lead = _extent(volume.shape), volume.shape[:-3]
    grid = replace(grid, axes=("c", "z", "y", "x") if lead else ("z", "y", "x"))
    if storage.shards:
        storage = replace(storage, shards=(*lead, *storage.shards))
    factors = level_factors(extent, grid.spacing, chunks, pyramid.levels)
    array = None
    for level, factor in enumerate(factors):
        finer = array
        spacing, offset = coarse_grid(grid.spacing, grid.offset, factor)
        array = create_array(
            str(folder),
            str(level),
            shape=(*lead, *coarse_extent(extent, factor)),
            chunks=(*lead, *chunks),
            dtype=volume.dtype,
            grid=replace(grid, spacing=spacing, offset=offset),
            storage=storage,
        )
        if finer is None:
            for box, block in volume.pieces:
                array.write(box, block)
        else:
            step = divide(factor, factors[level - 1])
            _write_level(array, finer, step, HALVES[pyramid.values])
    write_multiscale_group(
        str(folder),
        grid,
        description,
        levels={str(level): factor for level, factor in enumerate(factors)},
        zarr_format=storage.zarr_format,
    )


def _write_level(array: WritableArray, finer: WritableArray, step: Shape, halve: Halve) -> None:
    """Compute a level from the one before, a block at a time on each thread."""
    fine, coarse = (
        open_volume(each.location, key="output", channels="any") for each in (finer, array)
    )
    level = CoarserLevel(fine, coarse, step, halve)

    def work(block: Box) -> None:
        array.write(block, level.values(block))

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(work, level.blocks()):
            pass


@dataclass(frozen=True)
class CoarserLevel:
    """One level of a pyramid, and the level that it comes from."""

    fine: Volume
    coarse: Volume
    step: Shape
    """Voxels of the finer level in one of this, 1 or 2 along (z, y, x)."""
    halve: Halve
    planes: int = PLANES

    def blocks(self) -> list[Box]:
        """Its blocks (shards, or chunks) under which anything is stored, in order."""
        found = {
            block.intersect(self.coarse.box)
            for stored in self.fine.stored_blocks()
            for block in tiles(coarse_box(stored, self.step), self.coarse.storage_unit, whole=True)
        }
        return sorted(found)

    def values(self, block: Box) -> np.ndarray:
        """The voxels of a block, (S, Z, Y, X), computed chunk by chunk, few planes at a time."""
        channels = self.fine.channels
        found = np.full((channels, *block.shape), self.fine.fill_value, self.fine.dtype)
        for piece in tiles(block, self.coarse.chunks):
            source = fine_box(piece, self.step).intersect(self.fine.box)
            if self.fine.is_stored(source):
                values = self.fine.read(source)
                for part in slabs(piece, self.planes):
                    start = (part.origin[0] - piece.origin[0]) * self.step[0]
                    under = values[:, start : start + part.shape[0] * self.step[0]]
                    found[(slice(None), *part.slices(block))] = self.halve(under, self.step)
        return found


def evened(stored: np.ndarray, factor: Shape) -> np.ndarray:
    """(S, Z, Y, X) with the last voxel of an axis twice where `factor` does not divide its length.

    A voxel that stands for itself twice changes neither a mean nor a majority.
    """
    odd = [(0, -n % f) for n, f in zip(stored.shape[1:], factor, strict=True)]
    return np.pad(stored, [(0, 0), *odd], mode="edge") if any(map(any, odd)) else stored


def mean_of(stored: np.ndarray, factor: Shape) -> np.ndarray:
    """Means of `factor` voxels, as `Halve`; integers are rounded half to even."""
    even, kind, size = evened(stored, factor), stored.dtype.kind, stored.dtype.itemsize
    if kind == "b":
        return most_frequent(even, factor)
    if kind in "ui" and size < 8:
        return mean_code(even, factor)
    values = even.astype(np.float64 if size == 8 else np.float32, copy=False)
    for axis, f in enumerate(factor, start=1):
        if f == 2:
            first, second = (values.take(range(n, values.shape[axis], 2), axis) for n in (0, 1))
            values = (first + second) * 0.5
    return (np.rint(values) if kind in "ui" else values).astype(stored.dtype)


def mean_code(stored: np.ndarray, factor: Shape) -> np.ndarray:
    """Means of integers below 8 bytes, rounded half to even, exactly; `factor` divides the lengths."""
    channels, depth, height, width = stored.shape
    fz, fy, fx = factor
    rows = stored.reshape(channels, depth // fz, fz, height // fy, fy, width)
    wide = np.dtype(f"{stored.dtype.kind}{2 * stored.itemsize}")
    total = np.zeros((channels, depth // fz, height // fy, width), wide)
    for z, y in np.ndindex(fz, fy):
        total += rows[:, :, z, :, y]
    if fx == 2:
        total = total[..., ::2] + total[..., 1::2]
    count = fz * fy * fx
    is_odd = total // count & 1
    return ((total + is_odd + (count // 2 - 1)) // count).astype(stored.dtype)


def most_frequent(stored: np.ndarray, factor: Shape) -> np.ndarray:
    """The most frequent of `factor` voxels, of equally frequent ones the lowest, as `Halve`."""
    even = evened(stored, factor)
    fz, fy, fx = factor
    corners = [
        even[:, z::fz, y::fy, x::fx] for z in range(fz) for y in range(fy) for x in range(fx)
    ]
    best, most = corners[0], np.zeros(corners[0].shape, np.uint8)
    for value in corners:
        count = np.zeros_like(most)
        for other in corners:
            count += value == other
        wins = (count > most) | ((count == most) & (value < best))
        best, most = np.where(wins, value, best), np.maximum(most, count)
    return best


HALVES: dict[str, Halve] = {"mean": mean_of, "mode": most_frequent}


def _extent(shape: tuple[int, ...]) -> Shape:
    if len(shape) not in (3, 4):
        raise ValueError(f"expected axes (Z, Y, X) or (C, Z, Y, X), got shape {shape}")
    return triple(shape[-3:])
