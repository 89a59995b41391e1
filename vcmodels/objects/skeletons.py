"""The centre lines of all objects of an array, in a folder.

Two passes, both shared and continued as all work over blocks is: blocks are measured for the table,
which has the box of each object; then each object is read in its box, on the finest level of the
pyramid whose box is small enough, traced and written. Memory holds a block or the box of an object for
each worker, and a row of the table for each object.
"""

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from vcmodels.blockwise import Crew, share_blocks
from vcmodels.extras import require_extra
from vcmodels.geometry.boxes import Box, Shape, Spacing, triple
from vcmodels.metrics.base import BlockPart
from vcmodels.objects.centrelines import traced
from vcmodels.objects.folder import SCRATCH, is_done, note, remove_scratch, units
from vcmodels.objects.line_forms import LINE_FORMS
from vcmodels.objects.table import (
    SYMBOLS,
    ObjectArrays,
    ObjectTable,
    measure_objects,
    reading_block,
    require_ids,
)
from vcmodels.postprocess.site import Tables, computed_once
from vcmodels.volumes import Volume
from vcmodels.volumes.levels import StoredLevel
from vcmodels.volumes.places import refuse_in_store
from vcmodels.volumes.spacing import in_unit

MANIFEST = "skeletons.json"
MOST_VOXELS = 1 << 24
"""Of the box of an object: it takes about 50 bytes a voxel."""
TOGETHER = 4
"""Objects that are written as one unit of work."""


@dataclass(frozen=True)
class SkeletonRequest:
    """Which objects are written, where and how."""

    levels: tuple[StoredLevel, ...]
    """Of the ids, the finest first."""
    folder: Path
    form: str = "swc"
    chosen: tuple[int, ...] = ()
    """Ids of the objects; all when empty."""
    min_size: int = 1
    """In voxels."""
    most_voxels: int = MOST_VOXELS
    """Of the box in which an object is traced."""

    @property
    def ids(self) -> Volume:
        """The finest level."""
        return self.levels[0].volume

    def check(self) -> bool:
        """Refuse what cannot be done; whether it is done already. Nothing is written.

        Raises:
            VolumeError: the array holds no ids.
            OutputError: the folder holds something else.
            RefusedError: a package is not installed.
        """
        require_ids(self.ids)
        require_extra("kimimaro", extra="skeletons", subject="skeleton")
        refuse_in_store("-o", self.folder / MANIFEST)
        return is_done(self.folder / MANIFEST, self.identity)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """JSON values that determine what is written."""
        return {
            "ids": [level.volume.fingerprint() for level in self.levels],
            "form": self.form,
            "chosen": sorted(self.chosen),
            "min_size": self.min_size,
            "most_voxels": self.most_voxels,
            "spacing": [*self.ids.spacing, *self.ids.offset, self.ids.unit],
        }

    @property
    def unit(self) -> str | None:
        """Of the positions that are written."""
        return (LINE_FORMS[self.form].unit if self.ids.unit in SYMBOLS else None) or self.ids.unit


@dataclass(frozen=True)
class WrittenSkeletons:
    """What was written."""

    table: ObjectTable | None
    """Of the objects that have a skeleton; None where all was there already."""
    points: int = 0
    """Of all skeletons together."""
    coarse: tuple[tuple[int, int], ...] = ()
    """Numbers of coarser levels, and how many objects were traced on each."""
    left_out: tuple[int, ...] = ()
    """Ids of objects that fit on no level, or of which a coarse level has nothing."""


def write_skeletons(
    request: SkeletonRequest, crew: Crew, block: Shape | None = None
) -> WrittenSkeletons | None:
    """Write the centre line of each object; None after a stop, which the same call continues.

    Files are the same for any blocks. In a folder that is complete nothing is written.

    Args:
        request: which, where and how.
        crew: who works. Of several parts none removes the folder `unfinished` at the end.
        block: what is read at a time for the table, by all parts the same; chosen by the chunks when
            None.

    Raises:
        RefusedError: as for `SkeletonRequest.check`, before anything is written.
        RunError: a chunk is damaged.
        OSError: a file cannot be written.
    """
    if request.check():
        remove_scratch(request.folder, crew)  # of a run that was killed after its last file
        return WrittenSkeletons(None)
    folder, identity, block = request.folder, request.identity, block or reading_block(request.ids)
    scratch = folder / SCRATCH / "_".join(map(str, block))
    manifest = partial(note, folder / MANIFEST, request.ids, request.unit, identity)
    manifest(is_complete=False)
    table = measure_objects(ObjectArrays(request.ids), scratch / "table", crew, block)
    if table is None:
        return None
    table = _wanted(table, request)
    index = computed_once(scratch, "index", lambda: _index(table, request))
    work = units(len(table.ids), TOGETHER)
    trace = _Trace(request, index)
    done = share_blocks(trace, work, scratch / "trace", identity, crew, "skeletons")
    if done is None:
        return None
    points = np.concatenate([np.empty(0, np.int64), *(part["points"] for _, part in done.parts())])
    written = _kept(table, points > 0)
    LINE_FORMS[request.form].finish(folder, written)
    manifest(is_complete=True)
    levels = Counter(np.asarray(index["level"])[points > 0].tolist())
    remove_scratch(folder, crew)
    coarse = tuple((level, levels[level]) for level in sorted(levels) if level)
    left_out = tuple(table.ids[points == 0].tolist())
    return WrittenSkeletons(written, int(points.sum()), coarse, left_out)


def _wanted(table: ObjectTable, request: SkeletonRequest) -> ObjectTable:
    wanted = table.voxels >= request.min_size
    if request.chosen:
        wanted &= np.isin(table.ids, np.array(request.chosen, np.uint64))
    return _kept(table, wanted)


def _kept(table: ObjectTable, mask: np.ndarray) -> ObjectTable:
    return replace(table, rows={name: values[mask] for name, values in table.rows.items()})


def _index(table: ObjectTable, request: SkeletonRequest) -> BlockPart:
    """Of each object its id, its box, and the level on which it is traced; -1: on none."""
    rows = table.rows
    level = np.full(len(rows["ids"]), -1, np.int64)
    for number, stored in reversed([*enumerate(request.levels)]):
        low, high = _on_level(rows["low"], rows["high"], stored)
        fits = np.prod(high - low + 2, axis=1, dtype=np.float64) <= request.most_voxels
        level[fits] = number
    return {"ids": rows["ids"], "low": rows["low"], "high": rows["high"], "level": level}


def _on_level(
    low: np.ndarray, high: np.ndarray, level: StoredLevel
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of the finest level, as voxels of a level: all that they reach into."""
    # In voxels of the finest level, voxel n reaches from n - 0.5 to n + 0.5.
    edges = [(edge - 0.5 - np.array(level.shift)) / level.factor + 0.5 for edge in (low, high)]
    first, end = np.floor(edges[0] + 1e-6), np.ceil(edges[1] - 1e-6)
    extent = level.volume.extent
    return np.clip(first, 0, extent).astype(np.int64), np.clip(end, 0, extent).astype(np.int64)


@dataclass(frozen=True)
class _Trace:
    """Traces some objects, and writes their centre lines."""

    request: SkeletonRequest
    index: Tables

    def __call__(self, box: Box) -> BlockPart:
        objects = range(box.origin[0], box.end[0])
        return {"points": np.array([self._write(number) for number in objects], np.int64)}

    def _write(self, number: int) -> int:
        """Write the centre line of an object, by its place in the index; how many points it has."""
        request, level = self.request, int(self.index["level"][number])
        if level < 0:
            return 0
        stored, one = request.levels[level], int(self.index["ids"][number])
        low, high = _on_level(self.index["low"][number], self.index["high"][number], stored)
        mask = stored.volume.read(Box.between(low.tolist(), high.tolist()))[0] == one
        spacing, offset = self._frame(stored, triple(low.tolist()))
        line = traced(mask, spacing, offset)
        if len(line.points):
            LINE_FORMS[request.form].write(request.folder, one, line, request.unit)
        return len(line.points)

    def _frame(self, level: StoredLevel, low: Shape) -> tuple[Spacing, Spacing]:
        """Length of the voxels of a level, and where the centre of one lies, in the unit written."""
        ids, unit = self.request.ids, self.request.unit
        fine, start = (in_unit(one, ids.unit, unit) for one in (ids.spacing, ids.offset))
        spacing = triple(s * f for s, f in zip(fine, level.factor, strict=True))
        parts = zip(start, fine, level.shift, spacing, low, strict=True)
        return spacing, triple(o + s * shift + step * n for o, s, shift, step, n in parts)
