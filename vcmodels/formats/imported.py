"""Files become OME-Zarr once, in a folder of the user: whoever opens a location gets what stands for it.

The folder is `imported` in the cache folder of vcmodels. A file is known there by its content, so
that one that was moved or copied is not imported again.
"""

import errno
import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from vcmodels.errors import OutputError, VolumeError
from vcmodels.formats import file_stem, format_of
from vcmodels.formats.aligning import ahead, aligned, chunk_shape
from vcmodels.formats.base import ForeignImage, Format, Header, Piece
from vcmodels.formats.known import VERSION, Known, content_of, remember, remembered, stamps_of
from vcmodels.reporting import Advance, Reporter, Silent
from vcmodels.volumes import (
    Blocks,
    ChannelAxis,
    Description,
    Pyramid,
    Reading,
    Storage,
    Volume,
    open_volume,
    whole_folder,
)
from vcmodels.volumes.axes import AS_STORED, Channels
from vcmodels.volumes.backend import PLAIN
from vcmodels.volumes.location import Origin, expand_location, is_remote, split_inside
from vcmodels.volumes.locks import FileLock
from vcmodels.volumes.multiscale import write_image
from vcmodels.volumes.nodes import read_node
from vcmodels.volumes.places import cache_folder, is_node, obstacle, refuse_in_store
from vcmodels.volumes.world import GEOMETRY, HEADER, OURS, SOURCE, geometry_note

AS_MANY = Pyramid()
"""Coarser levels until one chunk holds a level."""
FAST = Storage(zstd_level=1)
"""Of the cache: one thread unpacks gzip, and compressing at level 3 takes more than twice its time."""


def open_located(
    location: str,
    *,
    key: str | None = None,
    level: int = 0,
    channels: Channels = None,
    channel_axis: ChannelAxis | None = None,
    reading: Reading = AS_STORED,
    reporter: Reporter | None = None,
) -> Volume:
    """Open what is at a location that a person gave: Zarr as it is, a file by its import.

    Args:
        location: expanded.
        key: as for `open_volume`, and the next ones.
        level: which level of an OME-Zarr group; the import of a file has none but 0.
        channels: how many are expected.
        channel_axis: where they are, when the store does not say.
        reading: what else is said of the axes.
        reporter: told when a file is imported.

    Raises:
        VolumeError: as from `open_volume`; a file is damaged, or its library is not installed.
        OutputError: the cache folder cannot be written to, or is full.
    """
    place, origin = imported(location, key or location, reporter or Silent())
    return open_volume(
        place,
        key=key or location,
        level=level,
        channels=channels,
        channel_axis=channel_axis,
        reading=reading,
        origin=origin,
    )


def imported(location: str, key: str, reporter: Reporter) -> tuple[str, Origin | None]:
    """The Zarr that stands for a location, and the file that it comes from, which is imported first.

    Raises:
        VolumeError, OutputError: as for `open_located`.
    """
    if is_remote(location) and file_stem(location):
        text = f"{location} is a file of a format that is read from disks only"
        raise VolumeError(key, text, "download it, and give its path")
    found = format_of(location)
    if found is None:
        return location, None
    folder = Path(expand_location(cache_folder())) / "imported"
    known = remembered(folder, location)
    if known is None or not is_node(folder / f"{known.digest}.zarr"):
        image = found.open(location, key)
        known = examined(found, image, location, key, reporter)
        _import_once(found, image, location, folder / f"{known.digest}.zarr", known, reporter)
        with suppress(OSError):  # only costs time: a full disk, or the folder is not ours
            remember(folder, location, known)
    return str(folder / f"{known.digest}.zarr"), Origin(location, known.digest)


def examined(
    kind: Format, image: ForeignImage, location: str, key: str, reporter: Reporter
) -> Known:
    """What the files of an image are; all their bytes are read.

    Raises:
        VolumeError: one cannot be read.
    """
    place, inside = split_inside(location)
    try:
        stamps = stamps_of(
            dict.fromkeys([place, *_folders(place, image.files), *map(str, image.files)])
        )
        total = sum(path.stat().st_size for path in image.files)
        with reporter.bar(f"reading {Path(place).name}", total) as advance:
            shown = _without_names(advance) if kind.is_private else advance
            sha256 = content_of(image.files, image.places, shown)
    except OSError as error:
        named = place if kind.is_private else error.filename or place
        found = f"{named} cannot be read ({error.strerror})"
        raise VolumeError(key, found, "check the file, and who may read it") from error
    meaning = f"{VERSION} {kind.name} {inside} {sha256}"
    return Known(stamps, sha256, hashlib.sha256(meaning.encode()).hexdigest()[:40])


def _folders(place: str, files: Iterable[Path]) -> list[str]:
    """Those from a location down to its files; none where it is a file.

    The time of a folder changes with the names in it: a file, or a folder, more is seen, too.
    """
    root = Path(place)
    if not root.is_dir():
        return []
    above = {*root.parents}
    return sorted({str(folder) for path in files for folder in path.parents if folder not in above})


def _without_names(advance: Advance) -> Advance:
    return lambda amount, _: advance(amount, "")


def _import_once(
    kind: Format, image: ForeignImage, location: str, place: Path, known: Known, reporter: Reporter
) -> None:
    """Import into the cache, unless another process has done so while this one waited for it."""
    folder = place.parent
    if found := obstacle(folder):
        raise OutputError(str(folder), found, "set XDG_CACHE_HOME to a folder of yours")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{place.name}.import", waits=True)
    try:
        if is_node(place):
            return
        _sweep(folder)
        file, _ = split_inside(location)
        reporter.say(f"importing {Path(file).name}{location[len(file) :]} (once, to {folder})")
        for note in image.header.notes:
            reporter.say(f"note: {location}: {note}")
        source = source_note(kind, image, location, known)
        # No coarser levels: whether they are means or majorities depends on what the values are.
        with _room_told(folder, "set XDG_CACHE_HOME to a folder with room"):
            write_import(image, place, source, reporter, pyramid=Pyramid(0), storage=FAST)
    finally:
        lock.close(delete=True)


def import_file(
    location: str,
    place: Path,
    reporter: Reporter,
    *,
    pyramid: Pyramid = AS_MANY,
    overwrite: bool = False,
    keep_header: bool = False,
) -> Header:
    """Write a file as OME-Zarr where it is wanted.

    Args:
        location: expanded, of a format that is known.
        place: the group.
        reporter: shows progress, and what one should know of how the file is read.
        pyramid: its coarser levels; majorities also of a file that says itself that it is a label.
        overwrite: replace an import that is there.
        keep_header: keep all that the file says in the attribute `source`, names of patients too.

    Raises:
        VolumeError: the file is damaged, or of no format that is known.
        OutputError: something else is there, or the disk is full.
    """
    kind = format_of(location)
    if kind is None:
        raise VolumeError(location, "is of no format that can be imported", "see docs/formats.md")
    require_free(place, overwrite=overwrite)
    image = kind.open(location, location)
    known = examined(kind, image, location, location, reporter)
    for note in image.header.notes:
        reporter.say(f"note: {location}: {note}")
    source = source_note(kind, image, location, known)
    if keep_header:
        source[HEADER] = dict(image.full_header())
    if image.header.is_label:
        pyramid = replace(pyramid, values="mode")
    with _room_told(place.parent, "write elsewhere"):
        write_import(image, place, source, reporter, pyramid=pyramid, overwrite=overwrite)
    return image.header


def require_free(place: Path, *, overwrite: bool) -> None:
    """Refuse a place that is taken, but by an import that may be replaced, or lies in a store.

    Raises:
        OutputError: naming it.
    """
    refuse_in_store(str(place), place)
    if (place.exists() or place.is_symlink()) and not (overwrite and is_import(place)):
        is_ours = not overwrite and is_import(place)
        remedy = "--overwrite replaces it" if is_ours else "choose another path or remove it"
        raise OutputError(str(place), "exists already", remedy)


def _sweep(folder: Path) -> None:
    """Remove what imports have left that were killed."""
    for path in (*folder.glob(".*.lock"), *folder.glob("*.import")):
        with suppress(BlockingIOError):  # one that goes on
            lock = FileLock(path)
            shutil.rmtree(path.with_suffix(".partial"), ignore_errors=True)
            lock.close(delete=True)


def source_note(kind: Format, image: ForeignImage, location: str, known: Known) -> dict[str, Any]:
    """The attribute `source` of an import: what a person, or an export, may ask of the file."""
    place, inside = split_inside(location)
    return {
        "format": kind.name,
        "name": kind.name if kind.is_private else Path(place).name,
        **({"inside": inside} if inside else {}),
        "sha256": known.sha256,
        **({"channels": list(image.header.channels)} if image.header.channels else {}),
        "original": dict(image.header.original),
    }


def write_import(
    image: ForeignImage,
    place: Path,
    source: Mapping[str, Any],
    reporter: Reporter,
    *,
    pyramid: Pyramid,
    storage: Storage = PLAIN,
    overwrite: bool = False,
) -> None:
    """Write an image as OME-Zarr that nobody sees before it is whole; some slabs are in memory.

    Args:
        image: opened.
        place: the group; its name is that of the image.
        source: from `source_note`.
        reporter: shows progress.
        pyramid: its coarser levels.
        storage: how it is stored.
        overwrite: replace an import that is there.

    Raises:
        VolumeError: the file is cut or damaged.
        OutputError: something is there.
        OSError: the disk is full.
    """
    header = image.header
    chunks = chunk_shape(header.shape, header.dtype.itemsize)
    name, total = str(source["name"]), prod(header.shape[-3:])
    notes = {SOURCE: dict(source)}
    if header.affine is not None:
        notes[GEOMETRY] = geometry_note(header.affine)
    with (
        whole_folder(place, replaces=is_import if overwrite else lambda _: False) as folder,
        reporter.bar(f"importing {name}", total) as advance,
    ):
        pieces = _counted(image.pieces(), header.dtype, advance)
        slabs = aligned(pieces, header.shape, header.dtype, chunks[0], folder)
        write_image(
            folder,
            Blocks(header.shape, header.dtype, ahead(slabs)),
            grid=header.grid,
            chunks=chunks,
            storage=storage,
            pyramid=pyramid,
            description=Description(file_stem(name) or name, {OURS: notes}, _display(header)),
        )


def _display(header: Header) -> dict[str, Any]:
    """What viewers ask for: that it is a label, or the names of channels (`omero` of NGFF)."""
    if header.is_label:
        return {"image-label": {"version": "0.4"}}
    if not header.channels:
        return {}
    shown: dict[str, Any] = {"color": "FFFFFF", "active": True}
    if header.dtype.kind in "ui":
        low, high = int(np.iinfo(header.dtype).min), int(np.iinfo(header.dtype).max)
        shown["window"] = {"min": low, "max": high, "start": low, "end": high}
    return {"omero": {"channels": [{"label": name, **shown} for name in header.channels]}}


def _counted(pieces: Iterator[Piece], dtype: np.dtype[Any], advance: Advance) -> Iterator[Piece]:
    for box, voxels in pieces:
        assert voxels.dtype == dtype, f"pieces of {voxels.dtype} in an image of {dtype}"
        advance(box.voxels, "")
        yield box, voxels


@contextmanager
def _room_told(folder: Path, remedy: str) -> Iterator[None]:
    """Say in one line that a disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutputError(
            str(folder), f"has no room ({error.strerror})", f"free some, or {remedy}"
        ) from error


def is_import(place: Path) -> bool:
    """Whether a folder is what an import has written, so that another may replace it.

    Predictions say where their input comes from, too, and more.
    """
    node = read_node(str(place), str(place))
    ours = node.attributes.get(OURS) if node else None
    return isinstance(ours, dict) and SOURCE in ours and {*ours} <= {GEOMETRY, SOURCE}
