"""Where a step works: the arrays it reads, the blocks it goes through, and where it may write.

A step is a few passes over the blocks of a volume. A pass either measures (`measure`: each block
gives some arrays, recorded) or writes an array (`write`, `keep`: each block gives its voxels too), and
between passes something small is computed once of what was measured (`once`). All of it continues
after a kill where it was, and can be shared by processes and by the workers of a cluster.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vcmodels.blockwise import Crew, Measured, share_blocks
from vcmodels.blockwise.engines import Work
from vcmodels.errors import VcmodelsError
from vcmodels.geometry.boxes import Box, Shape, Spacing
from vcmodels.geometry.grid import blocks_of
from vcmodels.metrics.base import BlockPart
from vcmodels.volumes import (
    ChunkError,
    Volume,
    WritableArray,
    create_array,
    is_array,
    open_volume,
    place_at,
)
from vcmodels.volumes.backend import ArrayHandle
from vcmodels.volumes.location import is_remote
from vcmodels.volumes.locks import FileLock
from vcmodels.volumes.places import whole_folder
from vcmodels.volumes.reader import Pad

DecodeStored = Callable[[np.ndarray], np.ndarray]
Fill = Callable[[Box], tuple[np.ndarray, BlockPart]]
"""The voxels of a block, (Z, Y, X) or (S, Z, Y, X), and what is recorded of it; picklable, and the
same whenever and wherever it is called."""


class StoppedError(VcmodelsError):
    """The work was asked to stop; the same call continues it."""


def as_stored(values: np.ndarray) -> np.ndarray:
    """What ids and masks are decoded by: nothing changes."""
    return values


@dataclass(frozen=True)
class Source:
    """One array that a step reads."""

    name: str
    volume: Volume
    kind: str
    """Of a target (`binary`, `affinities`, ...), or `instances` for ids."""
    decode: DecodeStored = as_stored
    """(S, Z, Y, X) as stored -> (P, Z, Y, X): probabilities, distances, vectors (z, y, x), ids."""
    encoding: Mapping[str, Any] = field(default_factory=dict)
    """What is said next to the array, such as the `offsets` of affinities."""

    def read(self, box: Box, within: Box, pad: Pad = "edge") -> np.ndarray:
        """The values of a box.

        Args:
            box: in voxels, may reach out of `within`.
            within: what there is; beyond it values are padded.
            pad: with what.

        Returns:
            (P, Z, Y, X), float32 for what is decoded; masks, classes and ids as they are stored.
        """
        return self.decode(self.volume.read(box, within, pad))

    def is_empty(self, box: Box) -> bool:
        """Whether nothing of a box is stored, and what is not stored is 0."""
        volume = self.volume
        return volume.fill_value == 0 and not volume.is_stored(box.intersect(volume.box))


@dataclass(frozen=True)
class Tables:
    """Small arrays that were computed once, read where they are needed; cheap to pickle."""

    folder: Path

    def __getitem__(self, name: str) -> np.ndarray:
        """An array, mapped into memory and not read."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)


def computed_once(folder: Path, name: str, make: Callable[[], BlockPart]) -> Tables:
    """Arrays that one process computes and all read.

    Args:
        folder: that all processes see; it is made.
        name: of the arrays, once in the folder.
        make: computes them.
    """
    place = folder / f"{name}.tables"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock", waits=True)
    try:
        if not place.is_dir():
            with whole_folder(place) as partial:
                for key, array in make().items():
                    np.save(partial / f"{key}.npy", array, allow_pickle=False)
    finally:
        lock.close()
    return Tables(place)


@dataclass(frozen=True)
class _Written:
    """The work of a pass that writes."""

    fill: Fill
    array: WritableArray

    def __call__(self, box: Box) -> BlockPart:
        values, part = self.fill(box)
        write_once(self.array, box, values if values.ndim == 4 else values[None])
        return part


def write_once(array: WritableArray, box: Box, data: np.ndarray) -> None:
    """Write a box to the disk; where these voxels are stored already, they stay with their times.

    Of two processes that do a block the later one changes nothing, though others may have looked at
    the array since, and noted of what they make their own.

    Args:
        array: the output.
        box: of whole chunks.
        data: (S, *box.shape) as stored.
    """
    if not _holds(array, box, data):
        array.write(box, data)
        array.sync(box)  # only what is on the disk is recorded


def _holds(array: WritableArray, box: Box, data: np.ndarray) -> bool:
    if not is_remote(array.location) and not any(path.exists() for path in array.files(box)):
        return False
    stored = open_volume(array.location, key="output", channels="any")
    with suppress(ChunkError):  # a damaged chunk is written again
        return np.array_equal(stored.read(box), data)
    return False


@dataclass(frozen=True)
class Site:
    """What a step is given."""

    sources: Mapping[str, Source]
    """By the role that each has for the step."""
    box: Box
    """What there is of the volume; nothing is written outside of it."""
    block: Shape
    """Of a pass that writes: whole chunks (or shards) of the output."""
    spacing: Spacing
    unit: str | None
    """Of the spacing; None where the store says none."""
    output: WritableArray
    folder: Path
    """For what is needed until the step is done; all processes see it."""
    identity: Mapping[str, Any]
    """JSON values: all that determines the output."""
    crew: Crew

    def source(self, role: str) -> Source:
        """The array of a role."""
        return self.sources[role]

    @cached_property
    def blocks(self) -> Sequence[Box]:
        """The blocks of all passes, in order."""
        return tuple(blocks_of(self.box, self.block))

    def measure(self, name: str, work: Work) -> Measured:
        """Record something of each block.

        Args:
            name: of the pass, once in a step.
            work: what is recorded of a block.

        Raises:
            StoppedError: the crew was asked to stop.
        """
        identity = {**self.identity, "pass": name}
        found = share_blocks(work, self.blocks, self.folder / name, identity, self.crew, name)
        if found is None:
            raise StoppedError(str(self.folder), "stopped", "the same command continues")
        return found

    def write(self, name: str, fill: Fill) -> Measured:
        """Write the output, block by block, and record something of each; as `measure`."""
        return self.measure(name, _Written(fill, self.output))

    def keep(self, name: str, dtype: np.dtype, fill: Fill) -> tuple[Volume, Measured]:
        """Write an array that is needed until the step is done, over the same voxels as the output.

        Args:
            name: of the array and of the pass.
            dtype: of its voxels.
            fill: makes (Z, Y, X) of a block.
        """
        extent = self.sources[next(iter(self.sources))].volume.extent
        place = self.folder / "arrays"
        array = _scratch_array(place, f"{name}-{self._digest}", extent, self.block, dtype)
        measured = self.measure(name, _Written(fill, array))
        return open_volume(array.location, key=name), measured

    def once(self, name: str, make: Callable[[], BlockPart]) -> Tables:
        """Arrays that one process computes and all read.

        Args:
            name: of the arrays, once in a step.
            make: computes them.
        """
        return computed_once(self.folder, f"{name}-{self._digest}", make)

    @cached_property
    def _digest(self) -> str:
        """What an earlier way of making the output has left is not taken for this one's."""
        parts = [self.identity, self.block]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _scratch_array(
    folder: Path, name: str, extent: Shape, block: Shape, dtype: np.dtype
) -> WritableArray:
    """An array of whole blocks, opened if it is there."""
    place = place_at(str(folder / name))
    if is_array(place):
        return WritableArray(ArrayHandle(str(place), 2, "r+"))
    return create_array(str(folder), name, shape=extent, chunks=_chunks(block), dtype=dtype)


def _chunks(block: Shape) -> Shape:
    """The block, or a part that divides it and is not more than 128 long."""
    z, y, x = (next(n for n in range(min(b, 128), 0, -1) if b % n == 0) for b in block)
    return z, y, x
