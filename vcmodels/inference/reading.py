"""Patches of the input in the order of the grid, each stored chunk decoded about once.

The input of a unit is cut into tiles of whole chunks, as wide as the unit. A tile is read when the
first patch needs it and dropped when the last patch that needs it has been handed out; patches are
copied from the tiles that are held. A tile that cannot be read is read once more chunk by chunk, and
only patches that touch a chunk that fails again fail with it.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock

import numpy as np

from vcmodels.config.slices import SliceStack, depth_of, reach_of
from vcmodels.data.normalization import NotFiniteError, check_finite
from vcmodels.errors import RunError
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.geometry.coordinates import with_coordinates
from vcmodels.geometry.grid import BoxSet, Index, PatchGrid, aligned, tiles
from vcmodels.inference.units import Unit, tile_shape
from vcmodels.inference.writing import PlaceError, ValuesError
from vcmodels.volumes import Volume
from vcmodels.volumes.reader import source_indices
from vcmodels.volumes.remote import RemoteError

Normalize = Callable[[np.ndarray], np.ndarray]
"""(C, Z, Y, X) as stored -> float32."""
Seen = Callable[[np.ndarray, Box], None]
"""Given each tile, (C, Z, Y, X) as stored, and where it lies."""


class RollingInput:
    """The tiles of one array that the patches in flight need.

    Args:
        volume: the array.
        hull: the part of it that any patch of the unit reads, inside the volume.
        seen: called with every tile after it is read.
    """

    def __init__(self, volume: Volume, hull: Box, seen: Seen) -> None:
        self.volume, self.hull, self.seen = volume, hull, seen
        self.tile = tile_shape(volume)
        self._lock = Lock()
        self._tiles: dict[tuple[int, int], Future[np.ndarray]] = {}
        self._damaged: dict[Box, RunError] = {}

    def patch(self, box: Box) -> np.ndarray:
        """(C, *box.shape) of the stored dtype; what lies past the volume's end is reflected.

        Raises:
            PlaceError: a chunk is damaged, or a value in it is not finite.
            RunError: a server does not answer.
        """
        inside = box.intersect(self.volume.box)
        out = np.empty((self.volume.channels, *inside.shape), self.volume.dtype)
        for tile in self._touched(inside):
            held, whole = self._load(tile), self._box(tile)
            part = whole.intersect(inside)
            out[(slice(None), *part.slices(inside))] = held[(slice(None), *part.slices(whole))]
        for chunk, error in list(self._damaged.items()):
            if chunk.intersect(inside).voxels:
                kind = ValuesError if isinstance(error, NotFiniteError) else PlaceError
                raise kind(error.subject, error.found, error.remedy) from error
        return out if inside == box else _reflected(out, inside, box)

    def drop_before(self, z: int, y: int, following: int) -> None:
        """Forget the tiles that no patch needs from a row of patches on.

        Args:
            z: origin of the row.
            y: origin of the row.
            following: where the next layer of patches begins.
        """
        with self._lock:
            for tile in list(self._tiles):
                end_z, end_y = ((n + 1) * length for n, length in zip(tile, self.tile, strict=True))
                if end_z <= z or (end_z <= following and end_y <= y):
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
        """The voxels of a tile, with zeros in chunks that fail twice: those are noted."""
        try:
            return self._read_whole(box)
        except RunError as error:
            self._require_answer(error)
        out = np.zeros((self.volume.channels, *box.shape), self.volume.dtype)
        for chunk in tiles(box, self.volume.chunks):
            try:
                out[(slice(None), *chunk.slices(box))] = self._read_whole(chunk)
            except RunError as error:
                self._require_answer(error)
                self._damaged[chunk] = error
        return out

    def _require_answer(self, error: RunError) -> None:
        """Raise what is no matter of a single chunk: a server that several tries did not reach."""
        if isinstance(error, RemoteError):
            raise error

    def _read_whole(self, box: Box) -> np.ndarray:
        volume, voxels = self.volume, self.volume.read(box)
        check_finite(voxels, box, volume.shown, is_nan_void=volume.is_nan_void)
        self.seen(voxels, box)
        return voxels


def _reflected(voxels: np.ndarray, inside: Box, box: Box) -> np.ndarray:
    """Extend a patch that a short volume does not fill, as `numpy.pad` with mode "reflect"."""
    for axis in range(3):
        where = source_indices(
            box.origin[axis], box.shape[axis], inside.origin[axis], inside.end[axis], "reflect"
        )
        voxels = voxels.take(where - inside.origin[axis], axis=axis + 1)
    return voxels


class BackgroundMap:
    """Which chunks of an array hold only background, as far as they have been read."""

    def __init__(self, chunk: Shape, below: float) -> None:
        self.chunk, self.below = chunk, below
        self._dark: set[Box] = set()

    def see(self, voxels: np.ndarray, box: Box) -> None:
        """Look at voxels, (C, *box.shape), that were read: whole chunks of the array."""
        for tile in tiles(box, self.chunk, whole=True):
            part = voxels[(slice(None), *tile.intersect(box).slices(box))]
            if not (part >= self.below).any():  # where NaN is, there is nothing
                self._dark.add(tile)

    def without(self, boxes: BoxSet) -> BoxSet:
        """What of some boxes is not background; all of it must have been seen."""
        return BoxSet.of(
            tile.intersect(box)
            for box in boxes
            for tile in tiles(box, self.chunk, whole=True)
            if tile not in self._dark
        )


class UnitInput:
    """What one unit reads.

    Args:
        inputs: the arrays that are stacked as channels.
        grid: the global grid.
        unit: the part of the volume.
        normalize: what turns stored values into the network's input.
        below: chunks of the first array that are below this are background; None: none is.
        stack: slices that are channels of the network.
        has_coordinates: the positions of voxels in the volume are channels, too.
    """

    def __init__(
        self,
        inputs: Sequence[Volume],
        grid: PatchGrid,
        unit: Unit,
        normalize: Normalize,
        below: float | None,
        stack: SliceStack | None = None,
        *,
        has_coordinates: bool = False,
    ) -> None:
        self.grid, self.unit, self.normalize = grid, unit, normalize
        self.stack, self.extent = stack, inputs[0].box
        self.has_coordinates = has_coordinates
        self.background = None if below is None else BackgroundMap(inputs[0].chunks, below)
        self.arrays = [
            RollingInput(volume, self._hull(volume), self._seen(number == 0))
            for number, volume in enumerate(inputs)
        ]

    def _hull(self, volume: Volume) -> Box:
        """Whole chunks where they are judged: what is background may not depend on the unit."""
        hull = reach_of(self.stack, self.grid.hull(self.unit.core), volume.box)
        return hull if self.background is None else aligned(hull, volume.chunks, volume.extent)

    def _seen(self, is_first: bool) -> Seen:
        return self.background.see if is_first and self.background else lambda _voxels, _box: None

    def patch(self, index: Index) -> np.ndarray | None:
        """(C, *patch) float32; None if no voxel of it is wanted.

        The patches must be asked for in order, or a few of them at once.

        Raises:
            PlaceError: a chunk is damaged, or a value is not finite.
            RunError: a server does not answer.
        """
        box, stack = Box(self.grid.origin(index), self.grid.patch), self.stack
        read = box if stack is None else stack.needed(box, self.extent)
        parts = [array.patch(read) for array in self.arrays]
        if self.background and not len(self.wanted(box)):
            return None
        image = self.normalize(parts[0] if len(parts) == 1 else np.concatenate(parts))
        if stack is not None:
            image = stack.stacked(image, box, self.extent)
        if not self.has_coordinates:
            return image
        channels = sum(map(len, parts)) * depth_of(stack)
        return with_coordinates(image, channels, box, self.extent.shape)

    def wanted(self, box: Box) -> BoxSet:
        """The parts of a box that get a prediction; all patches that touch it have been read."""
        wanted = self.unit.wanted.within(box)
        return wanted if self.background is None else self.background.without(wanted)

    def drop_before(self, index: Index) -> None:
        """Forget what no patch needs from this one on."""
        z, y, _ = self.grid.origin(index)
        layers = self.grid.origins[0]
        following = bisect_right(layers, z)
        after = layers[following] if following < len(layers) else self.grid.extent[0]
        before_z, before_y, _ = self.stack.lowest if self.stack else (0, 0, 0)
        for array in self.arrays:
            array.drop_before(z + before_z, y + before_y, after + before_z)
