"""The label index on disk: Zarr, one chunk for a brick, sealed against all that could be wrong.

A brick is sealed with a hash over what was read (the label's metadata, and name, size and time of
each of its stored units) and what was found. One comparison tells a brick that is out of date, torn
by a kill, of another label or changed by hand, and such a brick is made anew.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from vcmodels.data.label_cells import MOST_VALUES, Cells
from vcmodels.data.label_index import IndexPlan
from vcmodels.errors import VcmodelsError
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.volumes import Volume, WritableArray, create_array, open_volume
from vcmodels.volumes.backend import ArrayHandle
from vcmodels.volumes.storage import StoredFile

SCHEMA = 1
_CELLS, _VALUES, _SEALS = "cells", "values", "seals"
_DIGEST_WORDS = 4
_CHANNELS = {_CELLS: 4, _VALUES: MOST_VALUES, _SEALS: _DIGEST_WORDS + 1 + MOST_VALUES}

_CHUNK_CHANNELS = {_VALUES: 8}


class IndexStore:
    """The stored bricks of one label and plan. Nothing here is fatal: what fails is told once.

    Three arrays: `cells` (plane sets along z, y, x, then labelled voxels), `values` (voxels of each
    value, for bricks that hold other than one labelled value) and `seals` (hash and values).

    Args:
        folder: of all indexes; made when needed.
        volume: the label.
        plan: what is counted.
        say: told, once, why the index is not kept.
    """

    def __init__(
        self, folder: Path, volume: Volume, plan: IndexPlan, say: Callable[[str], None]
    ) -> None:
        self.plan, self._say = plan, say
        identity = [SCHEMA, volume.location, plan.region.origin, plan.region.end, plan.cell]
        self._identity = json.dumps([*identity, plan.ignore, plan.unit]).encode()
        self._metadata = volume.node.raw
        name = PurePosixPath(volume.location).name.removesuffix(".zarr")
        digest = hashlib.blake2b(self._identity, digest_size=8).hexdigest()
        self.path = folder / f"{name}-{digest}.zarr"
        spans = plan.bricks(plan.region)
        self._first = [span.start for span in spans]
        self._bricks: Shape = (len(spans[0]), len(spans[1]), len(spans[2]))
        self._tile = _largest_brick(plan)

    def load(self, brick: Shape, files: Sequence[StoredFile]) -> Cells | None:
        """A brick as it was saved; None when it is not there or not valid.

        Args:
            brick: which.
            files: its stored units, as they are now.
        """
        if self._arrays is None:
            return None
        try:
            seal = self._arrays[_SEALS].read(self._seal_place(brick)).ravel()
            digest, count = seal[:_DIGEST_WORDS].tobytes(), int(seal[_DIGEST_WORDS])
            if not any(digest) or not 0 <= count <= MOST_VALUES:
                return None
            values = seal[_DIGEST_WORDS + 1 :][:count].tolist()
            place, box = self._place(brick)
            planes = self._arrays[_CELLS].read(place)
            counts = planes[3:]
            if not self._is_plain(values):
                counts = self._arrays[_VALUES].read(place)
        except VcmodelsError:
            return None
        cells = Cells(box, planes[:3], dict(zip(values, counts, strict=False)))
        return cells if digest == self._digest(cells, files) else None

    def save(self, brick: Shape, cells: Cells, files: Sequence[StoredFile]) -> None:
        """Keep a brick, so that a kill loses at most the one that is being made.

        Args:
            brick: which.
            cells: all cells that it touches.
            files: its stored units, as they were before they were read.
        """
        if self._arrays is None:
            return
        place, _ = self._place(brick)
        values = list(cells.counts)
        labelled = np.zeros(cells.box.shape, np.uint16)
        for value, counts in cells.counts.items():
            labelled += counts if value not in self.plan.ignore else np.uint16(0)
        seal = np.zeros(_CHANNELS[_SEALS], np.int64)
        seal[:_DIGEST_WORDS] = np.frombuffer(self._digest(cells, files), np.int64)
        seal[_DIGEST_WORDS] = len(values)
        seal[_DIGEST_WORDS + 1 :][: len(values)] = values
        try:
            if not self._is_plain(values):
                every = np.zeros((MOST_VALUES, *cells.box.shape), np.uint16)
                every[: len(values)] = list(cells.counts.values())
                self._writable(_VALUES).write(place, every)
            self._writable(_CELLS).write(place, np.concatenate([cells.planes, labelled[None]]))
            self._writable(_SEALS).write(self._seal_place(brick), seal.reshape(-1, 1, 1, 1))
        except OSError as error:
            self._give_up(f"{error.strerror or error}")

    def _is_plain(self, values: Sequence[int]) -> bool:
        """Whether the labelled voxels of a brick tell all its counts."""
        return not values or (len(values) == 1 and values[0] not in self.plan.ignore)

    def _digest(self, cells: Cells, files: Sequence[StoredFile]) -> bytes:
        """The hash that seals a brick."""
        digest = hashlib.blake2b(self._identity, digest_size=8 * _DIGEST_WORDS)
        digest.update(self._metadata)
        for file in sorted(files):
            digest.update(f"\0{file.name}\0{file.size}\0{file.stamp}".encode())
        digest.update(repr((cells.box, list(cells.counts))).encode())
        for array in (cells.planes, *cells.counts.values()):
            digest.update(np.ascontiguousarray(array, "<u2").data)
        return digest.digest()

    def _place(self, brick: Shape) -> tuple[Box, Box]:
        """Where the cells of a brick are kept, and which cells they are."""
        box = self.plan.cells(self.plan.brick_box(brick))
        z, y, x = ((i - f) * t for i, f, t in zip(brick, self._first, self._tile, strict=True))
        return Box((z, y, x), box.shape), box

    def _seal_place(self, brick: Shape) -> Box:
        z, y, x = (i - f for i, f in zip(brick, self._first, strict=True))
        return Box((z, y, x), (1, 1, 1))

    def _writable(self, name: str) -> WritableArray:
        return WritableArray(ArrayHandle(f"{self.path}/{name}", 3, "r+"))

    @cached_property
    def _arrays(self) -> dict[str, Volume] | None:
        """The three arrays, made when they are not there; None when they cannot be used."""
        try:
            if not self.path.exists():
                self._create()
            found = {
                name: open_volume(f"{self.path}/{name}", key="the label index", channels=channels)
                for name, channels in _CHANNELS.items()
            }
        except OSError as error:
            return self._give_up(error.strerror or str(error))
        except VcmodelsError as error:
            return self._give_up(f"{error}; delete it")
        shapes = {name: (array.extent, array.chunks, array.dtype) for name, array in found.items()}
        return found if shapes == self._layout() else self._give_up("is another index; delete it")

    def _layout(self) -> dict[str, tuple[Shape, Shape, np.dtype]]:
        """Extent, chunk and dtype of each array."""
        z, y, x = (n * t for n, t in zip(self._bricks, self._tile, strict=True))
        counts = ((z, y, x), self._tile, np.dtype(np.uint16))
        seals = (self._bricks, (1, 1, 1), np.dtype(np.int64))
        return {_CELLS: counts, _VALUES: counts, _SEALS: seals}

    def _create(self) -> None:
        """Make the arrays aside, then rename: nobody ever sees a part of them."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".new-") as folder:
            made = Path(folder, "index")
            for name, (extent, chunk, dtype) in self._layout().items():
                channels = _CHANNELS[name]
                create_array(
                    str(made), name, shape=(channels, *extent), dtype=dtype, zarr_format=3,
                    chunks=(_CHUNK_CHANNELS.get(name, channels), *chunk),
                )  # fmt: skip
            with suppress(FileExistsError):  # another process was first
                made.rename(self.path)

    def _give_up(self, reason: str) -> None:
        """Tell why the index is not kept, and use it no more."""
        self._say(f"the label index is not kept: {self.path}: {reason}")
        self.__dict__["_arrays"] = None


def _largest_brick(plan: IndexPlan) -> Shape:
    """The most cells that a brick touches along each axis: one more where they do not line up."""
    z, y, x = (
        min(-(-n // c), -(-b * u // c) + (b * u % c != 0 or r % c != 0))
        for n, c, b, u, r in zip(
            plan.region.shape, plan.cell, plan.brick, plan.unit, plan.region.origin, strict=True
        )
    )
    return z, y, x
