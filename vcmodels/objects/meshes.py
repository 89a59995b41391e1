"""The surfaces of all objects of an array as meshes, in a folder.

Two passes, both shared and continued as all work over blocks is: blocks are cut into pieces, a file a
block; then the pieces of each object are read, joined and written. Memory holds a block for each
worker, a row of the table for each object and of the index for each piece, and the whole surface of an
object for each worker.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from vcmodels.blockwise import Crew, Measured, share_blocks
from vcmodels.errors import VolumeError
from vcmodels.extras import require_extra
from vcmodels.geometry.boxes import Box, Shape, Spacing
from vcmodels.geometry.grid import blocks_of
from vcmodels.metrics.base import BlockPart
from vcmodels.objects.folder import SCRATCH, is_done, note, remove_scratch, units
from vcmodels.objects.forms import FORMS, MeshForm
from vcmodels.objects.pieces import (
    LONGEST,
    LONGEST_SIMPLIFIED,
    around,
    as_bytes,
    byte_size,
    cut_surfaces,
    placed,
    read_piece,
    welded,
)
from vcmodels.objects.rows import block_rows, joined_rows
from vcmodels.objects.table import SYMBOLS, ObjectTable, is_empty, reading_block, require_ids
from vcmodels.postprocess.site import Tables, computed_once
from vcmodels.volumes import Volume
from vcmodels.volumes.places import refuse_in_store, write_atomic
from vcmodels.volumes.spacing import in_unit

MANIFEST = "meshes.json"
TOGETHER = 16
"""Objects that are written as one unit of work."""


@dataclass(frozen=True)
class MeshRequest:
    """Which objects are written, where and how."""

    ids: Volume
    folder: Path
    form: str = "ply"
    chosen: tuple[int, ...] = ()
    """Ids of the objects; all when empty."""
    min_size: int = 1
    """In voxels."""
    reduction: int = 1
    """By what the number of triangles is divided, as far as it goes within about a voxel."""

    def check(self) -> bool:
        """Refuse what cannot be done; whether it is done already. Nothing is written.

        Raises:
            VolumeError: the array holds no ids, or is too long.
            OutputError: the folder holds something else.
            RefusedError: a package is not installed.
        """
        require_ids(self.ids)
        longest, most = max(self.ids.extent), LONGEST if self.reduction == 1 else LONGEST_SIMPLIFIED
        if longest >= most:
            remedy = "leave --simplify out" if longest < LONGEST else "cut the volume"
            found = f"{self.ids.location} is {longest} voxels long, from {most} on"
            raise VolumeError(self.ids.key, f"{found} no mesh can be made", remedy)
        require_extra("zmesh", "fastremap", extra="objects", subject="mesh")
        refuse_in_store("-o", self.folder / MANIFEST)
        return is_done(self.folder / MANIFEST, self.identity)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """JSON values that determine what is written."""
        return {
            "ids": self.ids.fingerprint(),
            "form": self.form,
            "chosen": sorted(self.chosen),
            "min_size": self.min_size,
            "reduction": self.reduction,
            "spacing": [*self.ids.spacing, *self.ids.offset, self.ids.unit],
        }

    @property
    def unit(self) -> str | None:
        """Of the positions that are written."""
        return (FORMS[self.form].unit if self.ids.unit in SYMBOLS else None) or self.ids.unit


@dataclass(frozen=True)
class WrittenMeshes:
    """What was written."""

    table: ObjectTable | None
    """Of the objects that have a mesh; None where all was there already."""
    triangles: int = 0
    """Of all meshes that were written, together."""


def write_meshes(
    request: MeshRequest, crew: Crew, block: Shape | None = None
) -> WrittenMeshes | None:
    """Write the surface of each object as a closed mesh; None after a stop, which the same call continues.

    The surface lies half way between voxels that belong to the object and voxels that do not, what is
    outside of the volume included. Files are the same for any blocks. In a folder that is complete
    nothing is written.

    Args:
        request: which, where and how.
        crew: who works. Of several parts none removes the folder `unfinished` at the end.
        block: what is read at a time, by all parts the same; chosen by the chunks when None.

    Raises:
        RefusedError: as for `MeshRequest.check`, before anything is written.
        RunError: a chunk is damaged.
        OSError: a file cannot be written.
    """
    if request.check():
        remove_scratch(request.folder, crew)  # of a run that was killed after its last mesh
        return WrittenMeshes(None)
    folder, identity, block = request.folder, request.identity, block or reading_block(request.ids)
    # Pieces are named by where their blocks begin, which other blocks may do as well.
    scratch = folder / SCRATCH / "_".join(map(str, block))
    manifest = partial(note, folder / MANIFEST, request.ids, request.unit, identity)
    manifest(is_complete=False)
    blocks = list(blocks_of(request.ids.box, block))
    cut = _Cut(request.ids, frozenset(request.chosen), scratch)
    pieces = share_blocks(cut, blocks, scratch / "cut", identity, crew, "surfaces")
    if pieces is None:
        return None
    index = computed_once(scratch, "index", lambda: _index(pieces, request.min_size))
    join = _Join.of(request, scratch, index)
    work = units(len(index["objects"]), TOGETHER)
    written = share_blocks(join, work, scratch / "join", identity, crew, "meshes")
    if written is None:
        return None
    table = _table(pieces, request.ids, index["objects"])
    FORMS[request.form].finish(folder, table)
    manifest(is_complete=True)
    triangles = sum(int(part["triangles"].sum()) for _, part in written.parts())
    remove_scratch(folder, crew)
    return WrittenMeshes(table, triangles)


@dataclass(frozen=True)
class _Cut:
    """Cuts a block into the pieces of its objects, and measures these."""

    ids: Volume
    chosen: frozenset[int]
    folder: Path

    def __call__(self, box: Box) -> BlockPart:
        wide = around(box, self.ids.box)
        ids = self._read(box)
        rows = block_rows(ids[box.slices(within=wide)], box)
        found = dict(cut_surfaces(ids, wide.origin))
        write_atomic(_piece_file(self.folder, box.origin), as_bytes(list(found.values())))
        return {
            **rows,
            "piece_ids": np.array(list(found), np.uint64),
            "piece_vertices": np.array([len(one.vertices) for one in found.values()], np.int64),
            "piece_faces": np.array([len(one.faces) for one in found.values()], np.int64),
        }

    def _read(self, box: Box) -> np.ndarray:
        """The ids of the objects that are wanted, 0 elsewhere; of the box with what is around it."""
        import fastremap  # late: an extra

        wide = around(box, self.ids.box)
        if is_empty(self.ids, wide):
            return np.zeros(wide.shape, np.uint8)
        ids = self.ids.read(wide)[0]
        if ids.dtype.kind == "b":
            ids = ids.view(np.uint8)
        if ids.dtype.kind == "i":
            ids = np.maximum(ids, 0).view(ids.dtype.str.replace("i", "u"))
        if self.chosen:
            most = np.iinfo(ids.dtype).max
            wanted = [one for one in self.chosen if one <= most]
            ids = fastremap.mask_except(ids, wanted, in_place=True)
        return ids


def _piece_file(folder: Path, origin: Sequence[int]) -> Path:
    return folder / "pieces" / ("_".join(map(str, origin)) + ".bin")


def _index(measured: Measured, min_size: int) -> BlockPart:
    """Where the pieces of objects lie that are large enough, in the order of their ids.

    Returns:
        `objects` (n,) uint64, ascending; `first` (n + 1,) int64, where the pieces of each begin; of
        each piece `origin` (p, 3), that of its block, `offset`, `vertices` and `faces` (p,), int64.
    """
    rows = joined_rows({k: part[k] for k in ("ids", "voxels")} for _, part in measured.parts())
    objects = rows["ids"][rows["voxels"] >= min_size]
    columns = []
    for box, part in measured.parts("piece_"):
        sizes = byte_size(part["vertices"], part["faces"])
        offsets = np.cumsum(sizes) - sizes
        origins = np.tile(np.array(box.origin, np.int64), (len(sizes), 1))
        columns.append((part["ids"], origins, offsets, part["vertices"], part["faces"]))
    ids, *others = (np.concatenate(column) for column in zip(*columns, strict=True))
    kept = np.flatnonzero(np.isin(ids, objects))
    kept = kept[np.argsort(ids[kept], kind="stable")]
    first = np.append(np.searchsorted(ids[kept], objects), len(kept))
    names = ("origin", "offset", "vertices", "faces")
    return {
        "objects": objects,
        "first": first,
        **{name: values[kept] for name, values in zip(names, others, strict=True)},
    }


@dataclass(frozen=True)
class _Join:
    """Joins the pieces of some objects, and writes their meshes."""

    request: MeshRequest
    scratch: Path
    index: Tables
    form: MeshForm
    spacing: Spacing
    offset: Spacing

    @classmethod
    def of(cls, request: MeshRequest, scratch: Path, index: Tables) -> "_Join":
        form, ids = FORMS[request.form], request.ids
        lengths = (in_unit(one, ids.unit, request.unit) for one in (ids.spacing, ids.offset))
        return cls(request, scratch, index, form, *lengths)

    def __call__(self, box: Box) -> BlockPart:
        objects = range(box.origin[0], box.end[0])
        return {"triangles": np.array([self._write(number) for number in objects], np.int64)}

    def _write(self, number: int) -> int:
        """Write the mesh of an object, by its place in the index; how many triangles it has."""
        first, end = self.index["first"][number : number + 2].tolist()
        pieces = [
            read_piece(_piece_file(self.scratch, origin), offset, vertices, faces)
            for origin, offset, vertices, faces in zip(
                *(
                    self.index[n][first:end].tolist()
                    for n in ("origin", "offset", "vertices", "faces")
                ),
                strict=True,
            )
        ]
        mesh = placed(welded(pieces), self.spacing, self.offset, self.request.reduction)
        number = int(self.index["objects"][number])
        self.form.write(self.request.folder, number, mesh, self.request.unit)
        return len(mesh.faces)


def _table(measured: Measured, ids: Volume, objects: np.ndarray) -> ObjectTable:
    """The table of the objects that have a mesh."""
    rows = joined_rows(
        {k: v for k, v in part.items() if not k.startswith("piece_")}
        for _, part in measured.parts()
    )
    kept = np.isin(rows["ids"], objects)
    table = ObjectTable(rows, ids.box, ids.spacing, ids.offset, ids.unit)
    return replace(table, rows={name: values[kept] for name, values in rows.items()})
