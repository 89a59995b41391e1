"""An array on another grid: read as any volume, made where it is read, and kept in a cache once.

What is kept lies in `prepared` of the cache folder, an OME-Zarr image under a name that follows from
its source and from all that was done to it: two tasks that ask for the same share it, and a source
that changes gets another. Nothing is lost when the folder is deleted.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from vcmodels.blockwise import BlockRecord, map_blocks
from vcmodels.errors import FaultError, OutputError, RunError, VolumeError
from vcmodels.geometry.affine import Affine, offset_of
from vcmodels.geometry.boxes import Box, Shape, Spacing, triple
from vcmodels.geometry.grid import tiles
from vcmodels.geometry.gridmap import GridMap
from vcmodels.metrics.base import BlockPart
from vcmodels.prepare.contents import Content
from vcmodels.prepare.kernels import pick
from vcmodels.reporting import Reporter, Silent
from vcmodels.targets.stored import LabelError
from vcmodels.volumes import (
    Description,
    Grid,
    LocalPlace,
    Storage,
    Volume,
    WritableArray,
    create_array,
    is_array,
    open_volume,
    write_multiscale_group,
)
from vcmodels.volumes.backend import ArrayHandle
from vcmodels.volumes.listing import Listing
from vcmodels.volumes.location import Origin, expand_location
from vcmodels.volumes.locks import FileLock
from vcmodels.volumes.places import cache_folder, write_atomic
from vcmodels.volumes.world import OURS, derived_note, world_affine

CHUNK = 64
MOST_VOXELS = 1 << 25
"""Of a source, about, that one thread holds at a time."""
SCHEMA = 1
"""Of what is kept; another one makes all of it anew."""


@dataclass(frozen=True)
class DerivedVolume(Volume):
    """Another array on another grid; what is read is made then."""

    source: Volume = field(kw_only=True)
    grid: GridMap = field(kw_only=True)
    content: Content = field(kw_only=True)
    within: Volume | None = field(kw_only=True, default=None)
    """On the source's grid: where it is 0, `content.outside` stands."""

    @classmethod
    def of(
        cls, source: Volume, grid: GridMap, content: Content, within: Volume | None = None
    ) -> "DerivedVolume":
        """The array on another grid; nothing is read.

        Args:
            source: it may be one of these itself.
            grid: whose source is its extent.
            content: what its voxels are.
            within: a mask of the same extent.
        """
        assert grid.source == source.extent, "a map of another grid"
        given = {f.name: getattr(source, f.name) for f in fields(Volume)}
        return cls(
            **given
            | {
                "extent": grid.shape,
                "dtype": content.dtype(source.dtype, grid),
                "chunks": triple(min(CHUNK, n) for n in grid.shape),
                "shards": None,
                "spacing": grid.spacing(source.spacing),
                "offset": _offset(source, grid),
                "fill_value": 0.0,
            },
            source=source,
            grid=grid,
            content=content,
            within=within,
        )

    @property
    def affine(self) -> Affine | None:
        """Where the voxels lie, if the source says it."""
        found = affine_of(self.source)
        return None if found is None else self.grid.affine(found)

    @property
    def made_by(self) -> dict[str, Any]:
        """JSON: all that decides the voxels."""
        return {
            "source": self.source.fingerprint(),
            "grid": self.grid.to_json(),
            "rules": self.content.rules,
            "within": self.within and self.within.fingerprint(),
            "schema": SCHEMA,
        }

    @cached_property
    def listing(self) -> Listing | None:
        """None: there is no store to list."""
        return None

    def fingerprint(self) -> str:
        """A sha256 of the source and of what is done to it."""
        return hashlib.sha256(json.dumps(self.made_by, sort_keys=True).encode()).hexdigest()

    def is_empty(self, box: Box) -> bool:
        """Whether nothing that a box is made of is stored, so that it holds 0."""
        if not self.content.keeps_zero or self.source.fill_value != 0:
            return False
        low, high = [0, 0, 0], [0, 0, 0]
        for axis, (source, factor, _) in enumerate(self.grid.axes):
            ends = self.grid.centres(axis, box.origin[axis], box.shape[axis])[[0, -1]]
            far = 12 + 2 * abs(factor)  # no kernel reaches farther
            low[source], high[source] = int(min(ends) - far), int(max(ends) + far) + 1
        return not self.source.is_stored(Box.between(low, high))

    def _read_inside(self, box: Box) -> np.ndarray[Any, Any]:
        found = np.empty((self.channels, *box.shape), self.dtype)
        for part in tiles(box, self._piece()):
            found[(slice(None), *part.slices(box))] = self._made(part)
        return found

    def _piece(self) -> Shape:
        """What is made at once: where voxels get much larger, it comes from many."""
        shape, each = [*self.chunks], self.channels * prod(self.grid.factors)
        while prod(shape) * each > MOST_VOXELS and max(shape) > 1:
            axis = shape.index(max(shape))
            shape[axis] = -(-shape[axis] // 2)
        return triple(shape)

    def _made(self, box: Box) -> np.ndarray[Any, Any]:
        shown = self.source.shown
        try:
            found = self.content.make(self.source.read, self.grid, box)
        except FaultError as error:
            raise VolumeError(self.key, f"{shown} {error.found}", error.remedy) from error
        except LabelError as error:
            told = f"{shown} holds {error.value:g}, which is no value of this label"
            raise VolumeError(self.key, told, error.remedy) from error
        if self.within is not None:
            found[:, pick(self.within.read, self.grid, box)[0] == 0] = self.content.outside
        return found.astype(self.dtype, copy=False)


def affine_of(volume: Volume) -> Affine | None:
    """Where the voxels of an array lie, whether it is stored or derived; None if nothing says it."""
    return volume.affine if isinstance(volume, DerivedVolume) else world_affine(volume)


def _offset(source: Volume, grid: GridMap) -> Spacing:
    """The place of voxel 0 as a store without an affine says it; 0 where axes are turned."""
    affine = affine_of(source)
    if affine is not None:
        return offset_of(grid.affine(affine))
    if not grid.symmetry.is_identity:
        return 0.0, 0.0, 0.0
    shifts = (shift for _, _, shift in grid.axes)
    return triple(
        o + shift * s for o, s, shift in zip(source.offset, source.spacing, shifts, strict=True)
    )


def prepared_folder() -> Path:
    """Where prepared arrays are kept, and what was found out about volumes."""
    return Path(expand_location(cache_folder())) / "prepared"


def remembered(question: object, answer: Callable[[], object]) -> Any:  # noqa: ANN401 - JSON
    """What was found out before, or is now, and is kept.

    Args:
        question: JSON: all that decides the answer.
        answer: finds a JSON value.

    Raises:
        OutputError: the cache cannot be written.
    """
    text = json.dumps([SCHEMA, question], sort_keys=True)
    place = prepared_folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError):
        return json.loads(place.read_bytes())
    found = json.dumps(answer())
    try:
        write_atomic(place, found.encode())
    except OSError as error:
        raise _unwritable(place.parent, error) from error
    return json.loads(found)


def _unwritable(folder: Path, error: OSError) -> OutputError:
    found = f"cannot be written ({error.strerror})"
    return OutputError(str(folder), found, "set XDG_CACHE_HOME to another folder")


def report_making(volumes: Sequence[DerivedVolume], reporter: Reporter) -> None:
    """Say in a line that arrays will be made and kept, unless they are there."""
    if any(not kept_at(volume).exists() for volume in volumes):
        shown = volumes[0].source.shown
        more = f" and {len(volumes) - 1} more" if len(volumes) > 1 else ""
        reporter.say(f"preparing {shown}{more} (once, to {prepared_folder()})")


def kept_at(volume: DerivedVolume) -> Path:
    """Where an array is kept, once it is."""
    return prepared_folder() / f"{volume.fingerprint()[:32]}.zarr"


def kept(
    volume: DerivedVolume, notes: Mapping[str, Any], reporter: Reporter | None = None
) -> Volume:
    """The array as an OME-Zarr image in the cache, which is made if it is not there.

    It is made block by block on all cores, and goes on after a kill; another process that wants the
    same waits.

    Args:
        volume: what is kept.
        notes: JSON, for the attribute `vcmodels` of the image.
        reporter: gets a bar.

    Raises:
        OutputError: the cache cannot be written.
        RunError: the source is damaged, or the disk is full.
    """
    place = kept_at(volume)
    folder, key = place.parent, place.stem
    partial = folder / f".{key}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{key}.lock", waits=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        if not place.exists():
            _make(volume, partial, notes, reporter or Silent())
            (partial / "image").rename(place)
    except OSError as error:
        found = f"cannot be written ({error.strerror or error})"
        remedy = "free some space, or set XDG_CACHE_HOME to a folder with room"
        raise RunError(str(folder), found, f"{remedy}; the same command continues") from error
    else:
        shutil.rmtree(partial, ignore_errors=True)
    finally:
        lock.close(delete=True)
    return _opened(volume, place)


def _opened(volume: DerivedVolume, place: Path) -> Volume:
    remedy = "delete it: it is made again"
    found = open_volume(str(place / "0"), key=volume.key, channels="any", on_damage=remedy)
    # As an imported file, it is known by what it is made of, whenever that is.
    origin = Origin(volume.source.shown, volume.fingerprint())
    own = {"spacing": volume.spacing, "unit": volume.unit, "has_spacing": volume.has_spacing}
    return replace(found, origin=origin, **own)


def _make(
    volume: DerivedVolume, partial: Path, notes: Mapping[str, Any], reporter: Reporter
) -> None:
    """Write all blocks, and then the metadata of the image."""
    image = str(partial / "image")
    lead = (volume.channels,) if volume.channels > 1 else ()
    axes = ("c", "z", "y", "x") if lead else ("z", "y", "x")
    grid = Grid(volume.spacing, volume.offset, volume.unit, axes)
    if not is_array(LocalPlace(partial / "image" / "0")):
        create_array(
            image, "0", shape=(*lead, *volume.extent), chunks=(*lead, *volume.chunks),
            dtype=volume.dtype, grid=grid, storage=Storage(3),
        )  # fmt: skip
    array = WritableArray(ArrayHandle(f"{image}/0", 3, "r+"))
    with BlockRecord(partial / "record", volume.made_by) as record:
        blocks = list(_blocks(volume))
        done = map_blocks(
            _Writing(volume, array), blocks, record, reporter=reporter, name="prepare"
        )
        assert done, "nothing stops it"
    geometry = derived_note(volume.affine, volume.grid)
    description = Description("prepared", {OURS: {**notes, "geometry": geometry}})
    write_multiscale_group(image, grid, description, zarr_format=3)


def _blocks(volume: DerivedVolume) -> Iterator[Box]:
    """Whole chunks of which something is made of what is stored."""
    for box in tiles(volume.box, volume.chunks):
        if not volume.is_empty(box):
            yield box


@dataclass(frozen=True)
class _Writing:
    """The work on a block."""

    volume: DerivedVolume
    array: WritableArray

    def __call__(self, box: Box) -> BlockPart:
        self.array.write(box, self.volume.read(box))
        self.array.sync(box)
        return {}
