"""Decoded chunks that are kept for the next patch, within a budget of bytes."""

from collections import OrderedDict
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any

import numpy as np

from vcmodels.geometry.boxes import Box, unit_box, units_touching
from vcmodels.volumes.reader import Volume

Key = tuple[str, tuple[int, int, int]]


class ChunkCache:
    """The chunks that were read last, of any number of volumes; each process has its own.

    Args:
        budget: bytes; a chunk that is larger by itself is not kept.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.bytes = budget, 0
        self._blocks: OrderedDict[Key, np.ndarray[Any, Any]] = OrderedDict()

    def get(self, key: Key) -> np.ndarray[Any, Any] | None:
        """A chunk that is kept, which is now the one that was used last."""
        block = self._blocks.get(key)
        if block is not None:
            self._blocks.move_to_end(key)
        return block

    def put(self, key: Key, block: np.ndarray[Any, Any]) -> None:
        """Keep a chunk, and let go of those that were not used for longest."""
        if key in self._blocks or block.nbytes > self.budget:
            return
        self._blocks[key] = block
        self.bytes += block.nbytes
        while self.bytes > self.budget:
            self.bytes -= self._blocks.popitem(last=False)[1].nbytes

    def __reduce__(self) -> tuple[type, tuple[int]]:
        """Pickle the budget: what is kept stays in its process."""
        return type(self), (self.budget,)


@dataclass(frozen=True)
class CachedVolume(Volume):
    """A volume whose decoded chunks are kept."""

    cache: ChunkCache = field(kw_only=True, repr=False, compare=False)

    @classmethod
    def of(cls, volume: Volume, cache: ChunkCache) -> "CachedVolume":
        """The same volume, read through a cache."""
        return cls(**{f.name: getattr(volume, f.name) for f in fields(volume)}, cache=cache)

    def _read_inside(self, box: Box) -> np.ndarray[Any, Any]:
        indices = product(*units_touching(box, self.chunks))
        chunks = {index: unit_box(index, self.chunks).intersect(self.box) for index in indices}
        voxels = sum(chunk.voxels for chunk in chunks.values())
        if voxels * self.channels * self.dtype.itemsize > self.cache.budget:
            return super()._read_inside(box)  # keeping some would let go of others that it needs
        kept = {index: self.cache.get((self.identity, index)) for index in chunks}
        if all(block is None for block in kept.values()):
            return self._read_all(box, chunks)
        out = np.empty((self.channels, *box.shape), self.dtype)
        for index, chunk in chunks.items():
            block = kept[index]
            if block is None:
                block = super()._read_inside(chunk)
                self.cache.put((self.identity, index), block)
            part = chunk.intersect(box)
            out[:, *part.slices(within=box)] = block[:, *part.slices(within=chunk)]
        return out

    def _read_all(self, box: Box, chunks: dict[tuple[int, int, int], Box]) -> np.ndarray[Any, Any]:
        """Read whole chunks at once, keep them, and return the part that was asked for."""
        boxes = list(chunks.values())
        hull = Box.between(boxes[0].origin, boxes[-1].end)
        block = super()._read_inside(hull)
        for index, chunk in chunks.items():
            part = block[:, *chunk.slices(within=hull)]
            # Not a view: it would keep all of the hull alive, which the budget does not count.
            self.cache.put((self.identity, index), part.copy())
        return np.ascontiguousarray(block[:, *box.slices(within=hull)])
