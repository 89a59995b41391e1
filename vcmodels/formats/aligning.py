"""Pieces of an image in any order, put together to slabs of whole chunks, one ahead of the writer."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from vcmodels.formats.base import Piece
from vcmodels.geometry.boxes import Box, Shape

ROOM_BYTES = 1 << 29
"""Slabs that wait for voxels are in memory up to here, and further ones in a file that the system
keeps in memory as far as there is any."""
_CHUNK_BYTES = 1 << 26
_MANY_VOXELS = 1 << 31


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> Shape:
    """Chunks along (z, y, x): cubes, of which many channels make smaller ones."""
    edge, voxels = 64 if prod(shape) < _MANY_VOXELS else 128, prod(shape[:-3]) * itemsize
    while edge > 8 and voxels * edge**3 > _CHUNK_BYTES:
        edge //= 2
    depth, height, width = shape[-3:]
    return min(edge, depth), min(edge, height), min(edge, width)


@dataclass
class _Slab:
    box: Box
    voxels: np.ndarray[Any, Any]
    missing: int
    """Voxels that have not come yet."""


def aligned(
    pieces: Iterable[Piece], shape: tuple[int, ...], dtype: np.dtype[Any], depth: int, folder: Path
) -> Iterator[Piece]:
    """The same voxels in slabs of `depth` planes, each as soon as it is whole.

    Args:
        pieces: each voxel once.
        shape: (Z, Y, X) or (C, Z, Y, X) of all of them.
        dtype: of them.
        depth: of a slab; the last one may have less.
        folder: for files of slabs that wait, which are gone when they are.
    """
    waiting: dict[int, _Slab] = {}
    for box, voxels in pieces:
        for number in range(box.origin[0] // depth, -(-box.end[0] // depth)):
            if number not in waiting:
                taken = sum(slab.voxels.nbytes for slab in waiting.values())
                waiting[number] = _begun(number, shape, dtype, depth, folder, taken)
            slab = waiting[number]
            part = box.intersect(slab.box)
            slab.voxels[(slice(None), *part.slices(slab.box))] = voxels[
                (slice(None), *part.slices(box))
            ]
            slab.missing -= part.voxels
            if not slab.missing:
                del waiting[number]
                yield slab.box, slab.voxels
    assert not waiting, "pieces leave out voxels"


def _begun(
    number: int, shape: tuple[int, ...], dtype: np.dtype[Any], depth: int, folder: Path, taken: int
) -> _Slab:
    height, width = shape[-2:]
    end = min((number + 1) * depth, shape[-3])
    box = Box.between((number * depth, 0, 0), (end, height, width))
    size = (prod(shape[:-3]), *box.shape)
    if taken + prod(size) * dtype.itemsize <= ROOM_BYTES:
        return _Slab(box, np.empty(size, dtype), box.voxels)
    with TemporaryFile(dir=folder) as file:  # has no name; it goes with the last view of it
        return _Slab(box, np.memmap(file, dtype, "w+", shape=size), box.voxels)


def ahead(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same, of which the next is read on another thread while one is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="vcmodels-import") as pool:
        coming = pool.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = pool.submit(next, pieces, None)
            yield piece
