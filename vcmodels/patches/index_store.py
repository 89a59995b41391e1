"""The label index on disk: Zarr, one chunk for a brick, sealed against all that could be wrong.

A brick is sealed with a hash over what was read (the label's metadata, and name, size and time of
each of its stored units) and what was found. One comparison finds a brick that is out of date, torn
by a kill, of another label or changed by hand, and such a brick is made again.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from vcmodels.errors import VcmodelsError
from vcmodels.geometry.boxes import Box, Shape, triple
from vcmodels.patches.index import MOST_VALUES, UNCOUNTED, Cells, IndexPlan
from vcmodels.targets.census import WIDTH, ValueFigures
from vcmodels.volumes import ChunkError, Storage, Volume, WritableArray, create_array, open_volume
from vcmodels.volumes.backend import ArrayHandle
from vcmodels.volumes.remote import StoredFile

SCHEMA = 1
_CELLS, _VALUES, _SEALS, _FIGURES = "cells", "values", "seals", "figures"
_DIGEST_WORDS = 4
_CHANNELS = {
    _CELLS: 4,
    _VALUES: MOST_VALUES,
    _SEALS: _DIGEST_WORDS + 1 + MOST_VALUES,
    _FIGURES: WIDTH,
}

_CHUNK_CHANNELS = {_VALUES: 8}


class _UnusableIndexError(Exception):
    """Why the arrays cannot be used, in words for a person."""


class IndexStore:
    """The stored bricks of one label and plan. Nothing here is fatal: what fails is reported once.

    Four arrays: `cells` (plane sets along z, y, x, then labelled voxels), `values` (voxels of each
    value, for bricks that hold other than one labelled value), `seals` (hash and values) and
    `figures`, for bricks whose values are not counted one by one. An index of before had no figures:
    they are added, and such bricks made again.

    Args:
        folder: of all indexes; made when needed.
        volume: the label.
        plan: what is counted.
        say: called, once, with why the index is not kept.
    """

    def __init__(
        self, folder: Path, volume: Volume, plan: IndexPlan, say: Callable[[str], None]
    ) -> None:
        self.plan, self._say = plan, say
        identity = [SCHEMA, volume.identity, plan.region.origin, plan.region.end, plan.cell]
        rules = [plan.ignore, plan.unit, *([asdict(plan.foreground)] if plan.foreground else [])]
        if volume.read_rules:  # one prediction may be read in several ways
            rules.append(volume.read_rules.hex())
        self._identity = json.dumps([*identity, *rules]).encode()
        self._metadata = volume.node.raw + volume.read_rules
        name = PurePosixPath(volume.location).name.removesuffix(".zarr")
        digest = hashlib.blake2b(self._identity, digest_size=8).hexdigest()
        self.path = folder / f"{name}-{digest}.zarr"
        spans = plan.bricks(plan.region)
        self._first = [span.start for span in spans]
        self._bricks: Shape = triple(map(len, spans))
        self._tile = _largest_brick(plan)
        self._opened: dict[str, Volume] = {}
        self._handles: dict[str, ArrayHandle] = {}

    def load(self, brick: Shape, files: Sequence[StoredFile]) -> Cells | None:
        """A brick as it was saved; None when it is not there or not valid.

        Args:
            brick: which.
            files: its stored units, as they are now.
        """
        if not self._is_usable:
            return None
        try:
            seal = self._reader(_SEALS).read(self._seal_place(brick)).ravel()
            digest, count = seal[:_DIGEST_WORDS].tobytes(), int(seal[_DIGEST_WORDS])
            if not any(digest) or not 0 <= count <= MOST_VALUES:
                return None
            values = seal[_DIGEST_WORDS + 1 :][:count].tolist()
            place, box = self._place(brick)
            planes = self._reader(_CELLS).read(place)
            counts = planes[3:] if self._is_plain(values) else self._reader(_VALUES).read(place)
            figures = self._figures(brick)
        except ChunkError:
            return None
        except _UnusableIndexError as error:
            self._give_up(f"{error}; delete it")
            return None
        cells = Cells(box, planes[:3], dict(zip(values, counts, strict=False)), figures)
        if UNCOUNTED in values and figures is None:
            return None
        return cells if digest == self._digest(cells, files) else None

    def _figures(self, brick: Shape) -> ValueFigures | None:
        """The figures of a brick, if any are stored."""
        if not (self.path / _FIGURES).exists():
            return None
        return ValueFigures.from_array(self._reader(_FIGURES).read(self._seal_place(brick)).ravel())

    def save(self, brick: Shape, cells: Cells, files: Sequence[StoredFile]) -> None:
        """Keep a brick, so that a kill loses at most the one that is being made.

        Args:
            brick: which.
            cells: all cells that it touches.
            files: its stored units, as they were before they were read.
        """
        if not self._is_usable:
            return
        values = list(cells.counts)
        labelled = np.zeros(cells.box.shape, np.uint16)
        for value, counts in cells.counts.items():
            labelled += counts if self.plan.is_labelled(value) else np.uint16(0)
        seal = np.zeros(_CHANNELS[_SEALS], np.int64)
        seal[:_DIGEST_WORDS] = np.frombuffer(self._digest(cells, files), np.int64)
        seal[_DIGEST_WORDS] = len(values)
        seal[_DIGEST_WORDS + 1 :][: len(values)] = values
        try:
            if not self._is_plain(values):
                self._write(_VALUES, brick, list(cells.counts.values()))
            self._write(_CELLS, brick, [*cells.planes, labelled])
            if cells.figures is not None or (self.path / _FIGURES).exists():
                stored = np.zeros(WIDTH) if cells.figures is None else cells.figures.to_array()
                place = self._seal_place(brick)
                self._writer(_FIGURES).write(place, stored.reshape(-1, 1, 1, 1))
            self._writer(_SEALS).write(self._seal_place(brick), seal.reshape(-1, 1, 1, 1))
        except OSError as error:
            self._give_up(error.strerror or str(error))
        except _UnusableIndexError as error:
            self._give_up(f"{error}; delete it")

    def _write(self, name: str, brick: Shape, fields: Sequence[np.ndarray]) -> None:
        """Write a whole chunk: of a part, zarr would first read what is there, damaged or not."""
        place = Box(self._place(brick)[0].origin, self._tile)
        whole = np.zeros((_CHANNELS[name], *self._tile), np.uint16)
        for field, values in zip(whole, fields, strict=False):
            field[tuple(map(slice, values.shape))] = values
        self._writer(name).write(place, whole)

    def _is_plain(self, values: Sequence[int]) -> bool:
        """Whether all counts of a brick follow from its labelled voxels."""
        return not values or (len(values) == 1 and self.plan.is_labelled(values[0]))

    def _digest(self, cells: Cells, files: Sequence[StoredFile]) -> bytes:
        """The hash that seals a brick."""
        digest = hashlib.blake2b(self._identity, digest_size=8 * _DIGEST_WORDS)
        digest.update(self._metadata)
        for file in sorted(files):
            digest.update(f"\0{file.name}\0{file.size}\0{file.stamp}".encode())
        digest.update(repr((cells.box, list(cells.counts))).encode())
        for array in (cells.planes, *cells.counts.values()):
            digest.update(np.ascontiguousarray(array, "<u2").data)
        if cells.figures is not None:
            digest.update(cells.figures.to_array().astype("<f8").data)
        return digest.digest()

    def _place(self, brick: Shape) -> tuple[Box, Box]:
        """Where the cells of a brick are kept, and which cells they are."""
        box = self.plan.cells(self.plan.brick_box(brick))
        z, y, x = ((i - f) * t for i, f, t in zip(brick, self._first, self._tile, strict=True))
        return Box((z, y, x), box.shape), box

    def _seal_place(self, brick: Shape) -> Box:
        return Box(triple(i - f for i, f in zip(brick, self._first, strict=True)), (1, 1, 1))

    @cached_property
    def _is_usable(self) -> bool:
        """Whether the arrays are there as they should be; they are made when there are none."""
        try:
            if not self.path.exists():
                self._create()
        except OSError as error:
            self._give_up(error.strerror or str(error))
            return False
        return True

    def _reader(self, name: str) -> Volume:
        """An array to read from, opened at its first use.

        Raises:
            _UnusableIndexError: it is damaged, or something else than it should be.
        """
        if name not in self._opened:
            try:
                array = open_volume(f"{self.path}/{name}", key=name, channels=_CHANNELS[name])
            except VcmodelsError as error:
                raise _UnusableIndexError(str(error)) from error
            if (array.extent, array.chunks, array.dtype) != self._layout()[name]:
                raise _UnusableIndexError(f"{name} is of another index")
            self._opened[name] = array
        return self._opened[name]

    def _writer(self, name: str) -> WritableArray:
        """The same array, to write into; that of the figures is made where there is none."""
        if name == _FIGURES and not (self.path / name).exists():
            self._create([name])
        self._reader(name)
        handle = self._handles.setdefault(name, ArrayHandle(f"{self.path}/{name}", 3, "r+"))
        return WritableArray(handle)

    def _layout(self) -> dict[str, tuple[Shape, Shape, np.dtype]]:
        """Extent, chunk and dtype of each array."""
        z, y, x = (n * t for n, t in zip(self._bricks, self._tile, strict=True))
        counts = ((z, y, x), self._tile, np.dtype(np.uint16))
        seals = (self._bricks, (1, 1, 1), np.dtype(np.int64))
        figures = (self._bricks, (1, 1, 1), np.dtype(np.float64))
        return {_CELLS: counts, _VALUES: counts, _SEALS: seals, _FIGURES: figures}

    def _create(self, names: Sequence[str] = ()) -> None:
        """Make the arrays aside, then rename: nobody ever sees a part of them.

        Args:
            names: those to add to an index that is there; all but the figures, as a new one, if none.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".new-") as folder:
            made = Path(folder, "index")
            layout = self._layout()
            for name in names or (_CELLS, _VALUES, _SEALS):
                extent, chunk, dtype = layout[name]
                channels = _CHANNELS[name]
                create_array(
                    str(made), name, shape=(channels, *extent), dtype=dtype, storage=Storage(3),
                    chunks=(_CHUNK_CHANNELS.get(name, channels), *chunk),
                )  # fmt: skip
            moves = [(made / name, self.path / name) for name in names] or [(made, self.path)]
            for new, place in moves:
                with suppress(OSError):  # another process was first, which the next opening shows
                    new.rename(place)

    def _give_up(self, reason: str) -> None:
        """Tell why the index is not kept, and use it no more."""
        self._say(f"the label index is not kept: {self.path}: {reason}")
        self._is_usable = False


def _largest_brick(plan: IndexPlan) -> Shape:
    """The most cells that a brick touches along each axis: one more where they do not line up."""
    return triple(
        min(-(-n // c), -(-b * u // c) + (b * u % c != 0 or r % c != 0))
        for n, c, b, u, r in zip(
            plan.region.shape, plan.cell, plan.brick, plan.unit, plan.region.origin, strict=True
        )
    )
