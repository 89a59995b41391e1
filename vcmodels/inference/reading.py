"""Patches of the input in the order of the grid, each stored chunk decoded about once.

The input of a unit is cut into tiles of whole chunks, as wide as the unit. A tile is read when the
first patch needs it and dropped when the last patch that needs it has been handed out; patches are
copied from the tiles that are held.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

import numpy as np

from vcmodels.data.statistics import check_finite
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.volumes import Volume
from vcmodels.volumes.padding import source_indices

LEAST_TILE = 32
"""Chunks smaller than this along z or y are read several at a time: a read has a fixed cost."""

Normalize = Callable[[np.ndarray], np.ndarray]
"""(C, Z, Y, X) as stored -> float32."""


class RollingInput:
    """The tiles of one array that the patches in flight need.

    Args:
        volume: the array.
        hull: the part of it that any patch of the unit reads, inside the volume.
    """

    def __init__(self, volume: Volume, hull: Box) -> None:
        self.volume, self.hull = volume, hull
        self.tile = tile_shape(volume)
        self._lock = Lock()
        self._tiles: dict[tuple[int, int], Future[np.ndarray]] = {}

    def patch(self, box: Box) -> np.ndarray:
        """(C, *box.shape) of the stored dtype; what lies past the volume's end is reflected."""
        inside = box.intersect(self.hull)
        out = np.empty((self.volume.channels, *inside.shape), self.volume.dtype)
        for tile in self._touched(inside):
            part = self._box(tile).intersect(inside)
            held = self._load(tile)
            out[(slice(None), *part.slices(inside))] = held[
                (slice(None), *part.slices(self._box(tile)))
            ]
        return out if inside == box else _reflected(out, inside, box)

    def drop_before(self, z: int) -> None:
        """Forget the tiles that end at plane `z` or before it."""
        with self._lock:
            for tile in [t for t in self._tiles if (t[0] + 1) * self.tile[0] <= z]:
                del self._tiles[tile]

    def _touched(self, box: Box) -> list[tuple[int, int]]:
        rows, lines = (
            range(box.origin[axis] // self.tile[axis], -(-box.end[axis] // self.tile[axis]))
            for axis in (0, 1)
        )
        return [(row, line) for row in rows for line in lines]

    def _box(self, tile: tuple[int, int]) -> Box:
        (z, y), (depth, height) = tile, self.tile
        start = (z * depth, y * height, self.hull.origin[2])
        end = ((z + 1) * depth, (y + 1) * height, self.hull.end[2])
        return Box.between(start, end).intersect(self.hull)

    def _load(self, tile: tuple[int, int]) -> np.ndarray:
        """The tile's voxels; the first of several threads that ask reads them, the others wait."""
        with self._lock:
            is_first = tile not in self._tiles
            future = self._tiles.setdefault(tile, Future())
        if is_first:
            try:
                future.set_result(self._read(self._box(tile)))
            except BaseException as error:  # for those that wait, whatever it is
                future.set_exception(error)
                raise
        return future.result()

    def _read(self, box: Box) -> np.ndarray:
        voxels = self.volume.read(box)
        check_finite(voxels, box, self.volume.location)
        return voxels


def tile_shape(volume: Volume) -> tuple[int, int]:
    """Length of a tile along z and y: whole chunks, at least `LEAST_TILE` voxels."""
    z, y = (chunk * -(-LEAST_TILE // chunk) for chunk in volume.chunks[:2])
    return z, y


def _reflected(voxels: np.ndarray, inside: Box, box: Box) -> np.ndarray:
    """Extend a patch that a short volume does not fill, as `numpy.pad` with mode "reflect"."""
    for axis in range(3):
        where = source_indices(
            box.origin[axis], box.shape[axis], inside.origin[axis], inside.end[axis], "reflect"
        )
        voxels = voxels.take(where - inside.origin[axis], axis=axis + 1)
    return voxels


class PatchReader:
    """Reads and normalises the patches of one unit ahead of their use, on threads.

    Args:
        inputs: the arrays that are stacked as channels.
        hull: the part of the volume that the patches read.
        patch: shape of a patch.
        normalize: what turns stored values into the network's input.
        pool: the threads; None reads in the calling thread.
        ahead: how many patches are kept ready.
    """

    def __init__(
        self,
        inputs: Sequence[Volume],
        hull: Box,
        patch: Shape,
        normalize: Normalize,
        pool: ThreadPoolExecutor | None,
        ahead: int,
    ) -> None:
        self.inputs = [RollingInput(volume, hull) for volume in inputs]
        self.patch, self.normalize, self.pool, self.ahead = patch, normalize, pool, ahead

    def read(self, origins: Iterable[Shape]) -> Iterator[np.ndarray]:
        """(C, *patch) float32 for each origin, in their order, which must ascend along z."""
        if self.pool is None:
            for origin in origins:
                self._drop_before(origin[0])
                yield self._patch(origin)
            return
        waiting: deque[tuple[int, Future[np.ndarray]]] = deque()
        try:
            for origin in origins:
                waiting.append((origin[0], self.pool.submit(self._patch, origin)))
                if len(waiting) > self.ahead:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)
        finally:
            for _, future in waiting:
                future.cancel()

    def _next(self, waiting: "deque[tuple[int, Future[np.ndarray]]]") -> np.ndarray:
        z, future = waiting.popleft()
        patch = future.result()
        self._drop_before(z)  # all that is still waiting begins here or later
        return patch

    def _patch(self, origin: Shape) -> np.ndarray:
        box = Box(origin, self.patch)
        parts = [rolling.patch(box) for rolling in self.inputs]
        return self.normalize(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def _drop_before(self, z: int) -> None:
        for rolling in self.inputs:
            rolling.drop_before(z)
