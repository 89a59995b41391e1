"""The table of the objects of an array: where each lies, how large it is, and what it holds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from vcmodels.blockwise import Crew, share_blocks
from vcmodels.errors import RunError, VcmodelsError, VolumeError
from vcmodels.geometry.boxes import Box, Shape, Spacing, triple
from vcmodels.geometry.grid import blocks_of
from vcmodels.metrics.base import BlockPart
from vcmodels.objects.rows import STEPS, block_rows, joined_rows, majority, probability_codes
from vcmodels.postprocess.site import Source, as_stored
from vcmodels.volumes import Volume

LEAST_BLOCK = 128
"""Small chunks are read several at a time, in voxels along an axis."""
LOOKED_AT = 8
"""Of how many stored units fractions are looked at before the work."""
SYMBOLS = {
    "kilometer": "km", "meter": "m", "centimeter": "cm", "millimeter": "mm", "micrometer": "um",
    "nanometer": "nm", "picometer": "pm", "angstrom": "angstrom",
}  # fmt: skip
"""What units are called in names of columns."""


@dataclass(frozen=True)
class ObjectTable:
    """A row for each object, by id."""

    rows: Mapping[str, np.ndarray]
    """As from `joined_rows`."""
    box: Box
    """Of the volume."""
    spacing: Spacing
    offset: Spacing
    """Position of the centre of voxel 0."""
    unit: str | None
    value_step: float = 1.0
    """What a step of `codes` stands for."""

    @property
    def ids(self) -> np.ndarray:
        """(n,) uint64, ascending."""
        return self.rows["ids"]

    @property
    def voxels(self) -> np.ndarray:
        """(n,) int64: how many each object has."""
        return self.rows["voxels"]

    @property
    def symbol(self) -> str:
        """The end of the names of lengths, such as `_um`; empty where the unit is not known."""
        return f"_{SYMBOLS.get(self.unit, self.unit)}" if self.unit else ""

    def columns(self) -> dict[str, np.ndarray]:
        """What stands in a file, by name.

        Returns:
            `id`; `class` where classes were given; `voxels`; `volume`; `centroid_z`, `_y`, `_x`, the
            mean position of the voxels in the coordinates of the store; `z_start`, `z_end` and so on,
            the bounding box in voxels, the end not included; `mean_value` where values were given,
            NaN without a value; `touches_border`, whether a voxel is on a face of the volume.
            Volume and centroid end in the unit, as in `volume_um3` and `centroid_z_um`.
        """
        rows, voxels = self.rows, self.voxels
        power = f"{self.symbol}3" if self.symbol else ""
        found: dict[str, np.ndarray] = {"id": self.ids}
        if "class_ids" in rows:
            found["class"] = majority(rows)
        found |= {"voxels": voxels, f"volume{power}": voxels * prod(self.spacing)}
        centres = rows["moments"] / voxels[:, None] * self.spacing + self.offset
        found |= {f"centroid_{a}{self.symbol}": centres[:, n] for n, a in enumerate("zyx")}
        for n, axis in enumerate("zyx"):
            found |= {f"{axis}_start": rows["low"][:, n], f"{axis}_end": rows["high"][:, n]}
        if "codes" in rows:
            counted = np.where(rows["counted"], rows["counted"], np.nan)
            found["mean_value"] = rows["codes"] * self.value_step / counted
        return found | {"touches_border": self._touches_border()}

    def _touches_border(self) -> np.ndarray:
        touches = (self.rows["low"] == self.box.origin) | (self.rows["high"] == self.box.end)
        return touches.any(axis=1)


@dataclass(frozen=True)
class ObjectArrays:
    """What is looked at of objects."""

    ids: Volume
    values: Source | None = None
    classes: Volume | None = None

    def check(self) -> None:
        """Refuse arrays that no table can be made of, by metadata and a few voxels of fractions.

        Raises:
            VolumeError: one has several channels, another extent, or no whole numbers; or the values
                are neither whole numbers nor from 0 to 1.
            RunError: a chunk is damaged.
        """
        require_ids(self.ids)
        if self.classes is not None:
            _require_same("--classes", self.classes, self.ids)
            _require_whole(self.classes, "give an array of the value of a class at each voxel")
        if self.values is not None:
            _require_same("--values", self.values.volume, self.ids)
            if self.is_whole and self.values.volume.dtype.itemsize > 4:
                found = f"{self.values.volume.shown} holds {self.values.volume.dtype}"
                raise VolumeError("--values", found, "give values of at most 32 bits")
            if not self.is_whole and self.values.decode is as_stored:
                for box in _spread(self.values.volume):
                    self._codes(box, VolumeError)

    @property
    def is_whole(self) -> bool:
        """Whether the values are whole numbers, of which the mean is taken as they are."""
        assert self.values is not None
        return self.values.decode is as_stored and self.values.volume.dtype.kind in "uib"

    @property
    def value_step(self) -> float:
        """What a step of the codes stands for."""
        return 1.0 if self.values is None or self.is_whole else 1 / STEPS

    def identity(self) -> dict[str, Any]:
        """JSON values that determine the table."""
        arrays = {"ids": self.ids, "classes": self.classes}
        arrays["values"] = self.values.volume if self.values else None
        prints = {name: one.fingerprint() if one else "" for name, one in arrays.items()}
        encoding = dict(self.values.encoding) if self.values else {}
        return {**prints, "encoding": encoding, "step": self.value_step}

    def rows(self, ids: np.ndarray, box: Box) -> BlockPart:
        """The rows of a block, whose ids have been read.

        Raises:
            RunError: a value is no probability.
        """
        classes = self.classes.read(box)[0] if self.classes else None
        return block_rows(ids, box, self._codes(box) if self.values else None, classes)

    def _codes(self, box: Box, refused: type[VcmodelsError] = RunError) -> np.ndarray:
        assert self.values is not None
        values = self.values.read(box, self.ids.box)[0]
        if self.is_whole:
            return values.astype(np.int64)
        try:
            return probability_codes(values)
        except ValueError as error:
            found = f"{self.values.volume.shown} has {error}, which are no probabilities"
            remedy = "give values from 0 to 1, or whole numbers"
            raise refused("--values", found, remedy) from error

    def table(self, rows: Mapping[str, np.ndarray]) -> ObjectTable:
        """The table of joined rows."""
        ids = self.ids
        return ObjectTable(rows, ids.box, ids.spacing, ids.offset, ids.unit, self.value_step)


def measure_objects(
    arrays: ObjectArrays, folder: Path, crew: Crew, block: Shape | None = None
) -> ObjectTable | None:
    """Measure the objects of an array; None after a stop, which the same call continues.

    Memory holds a block for each worker, and at the end about 500 bytes for each object while the rows
    of blocks are joined.

    Args:
        arrays: what is looked at.
        folder: for what is recorded until the table is there; processes that share the work see it.
        crew: who works.
        block: what is read at a time; chosen by the chunks when None. The table is the same.

    Raises:
        VolumeError: the arrays do not go together.
        RunError: a chunk is damaged, or a value is no probability.
    """
    arrays.check()
    blocks = list(blocks_of(arrays.ids.box, block or reading_block(arrays.ids)))
    work, identity = _BlockRows(arrays), arrays.identity()
    found = share_blocks(work, blocks, folder, identity, crew, "objects")
    return None if found is None else arrays.table(joined_rows(p for _, p in found.parts()))


@dataclass(frozen=True)
class _BlockRows:
    arrays: ObjectArrays

    def __call__(self, box: Box) -> BlockPart:
        ids = self.arrays.ids
        if is_empty(ids, box):  # one voxel says so as well
            box = Box(box.origin, (1, 1, 1))
        return self.arrays.rows(ids.read(box)[0], box)


def _spread(volume: Volume) -> Iterator[Box]:
    """The middle of a few stored units of a volume, a chunk of each at most."""
    units = list(volume.stored_blocks())
    for at in np.linspace(0, max(0, len(units) - 1), min(len(units), LOOKED_AT)).astype(int):
        origin, shape = units[at].origin, units[at].shape
        inner = triple(min(pair) for pair in zip(shape, volume.chunks, strict=True))
        starts = (o + (n - i) // 2 for o, n, i in zip(origin, shape, inner, strict=True))
        yield Box(triple(starts), inner)


def is_empty(ids: Volume, box: Box) -> bool:
    """Whether nothing of a box is stored, so that there is no object."""
    return ids.fill_value <= 0 and not ids.is_stored(box)


def reading_block(volume: Volume) -> Shape:
    """Whole chunks of a volume that are about `LEAST_BLOCK` voxels long along each axis."""
    pairs = zip(volume.chunks, volume.extent, strict=True)
    return triple(min(chunk * max(1, LEAST_BLOCK // chunk), length) for chunk, length in pairs)


def require_ids(ids: Volume) -> None:
    """Refuse an array that holds no ids.

    Raises:
        VolumeError: it has several channels, or no whole numbers.
    """
    remedy = "give an array (z, y, x) of whole numbers"
    if ids.channels != 1:
        raise VolumeError(ids.key, f"{ids.shown} has {ids.channels} channels", remedy)
    _require_whole(ids, remedy)


def _require_whole(volume: Volume, remedy: str) -> None:
    if volume.dtype.kind not in "uib":
        raise VolumeError(volume.key, f"{volume.shown} holds {volume.dtype}", remedy)


def _require_same(key: str, volume: Volume, ids: Volume) -> None:
    if volume.extent != ids.extent or volume.channels != 1:
        found = f"{volume.shown} has {volume.channels} x {volume.extent}"
        raise VolumeError(key, found, f"give one channel of the voxels of the ids, {ids.extent}")
