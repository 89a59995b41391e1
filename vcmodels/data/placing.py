"""Labels that lie elsewhere than their image, by the affines of both: placed in whole voxels, or refused.

A label may be stored along other axes than its image, mirrored, or cut out of it, as a NIfTI label of
a DICOM series often is. Its voxels then are copied to the image's grid once, into the cache.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from vcmodels.errors import OutputError, VolumeError
from vcmodels.geometry.alignment import Alignment, align
from vcmodels.geometry.boxes import Box, Shape, triple
from vcmodels.geometry.grid import tiles
from vcmodels.geometry.gridmap import GridMap
from vcmodels.reporting import Reporter
from vcmodels.volumes import (
    Blocks,
    Description,
    Grid,
    Pyramid,
    Volume,
    expand_location,
    open_volume,
    write_volume,
)
from vcmodels.volumes.location import Origin
from vcmodels.volumes.locks import FileLock
from vcmodels.volumes.places import cache_folder, obstacle
from vcmodels.volumes.world import GEOMETRY, OURS, geometry_note, world_affine

TOLERANCE = 0.1
"""Voxels that a label, or another input, may lie off at a corner: headers are rounded."""
_CHUNK: Shape = (64, 64, 64)


def placed_label(label: Volume, image: Volume, reporter: Reporter) -> Volume:
    """The label on the grid of its image; itself where it lies there, or where one has no affine.

    What of the image the label does not cover is 0.

    Raises:
        VolumeError: it lies between the voxels of the image, shares none with it, or holds vectors
            and its axes are others.
        OutputError: the cache folder cannot be written to.
    """
    found = _alignment(image, label)
    if found is None:
        return label
    _require_aligned(found, label, image)
    grid_map = found.grid_map
    if grid_map.is_identity:
        return label
    _require_placeable(label, grid_map)
    text = _told(label, image, grid_map)
    reporter.say(f"note: {label.shown} {text}: it is placed there")
    return _copied(label, image, grid_map)


def require_one_place(volumes: Sequence[Volume]) -> None:
    """Refuse inputs of which affines say that their voxels are not those of the first.

    Raises:
        VolumeError: naming the first that lies elsewhere, and how far.
    """
    first = volumes[0]
    for volume in volumes[1:]:
        found = _alignment(first, volume)
        if found is None:
            continue
        _require_aligned(found, volume, first)
        if not found.grid_map.is_identity:
            text = _told(volume, first, found.grid_map)
            remedy = "write it on the grid of the first, or leave it out"
            raise VolumeError(volume.key, f"{volume.shown} {text}", remedy)


def _alignment(image: Volume, other: Volume) -> Alignment | None:
    """How the voxels of an image lie among those of another volume; None where one says no place."""
    here, there = world_affine(image), world_affine(other)
    if here is None or there is None:
        return None
    return align(here, image.extent, there, other.extent)


def _require_aligned(found: Alignment, volume: Volume, image: Volume) -> None:
    remedy = "correct its header, or resample it to the grid of the image"
    if found.voxels > TOLERANCE:
        text = (
            f"{volume.shown} lies up to {found.voxels:.3g} voxels ({found.millimeters:.3g} mm) off the "
            f"voxels of {image.shown}"
        )
        raise VolumeError(volume.key, text, remedy)
    if not found.touches:
        raise VolumeError(volume.key, f"{volume.shown} lies outside of {image.shown}", remedy)


def _require_placeable(label: Volume, grid_map: GridMap) -> None:
    if type(label) is not Volume:
        found = f"{label.shown} is a prediction on another grid"
        raise VolumeError(label.key, found, "predict this image")
    if label.channels > 1 and not grid_map.symmetry.is_identity:
        found = f"{label.shown} has {label.channels} channels along other axes than its image"
        raise VolumeError(label.key, found, "write it along the axes of the image")


def _told(volume: Volume, image: Volume, grid_map: GridMap) -> str:
    turn = grid_map.symmetry
    turned = "" if turn.is_identity else f"has its axes otherwise than {image.shown} ({turn})"
    if prod(grid_map.shape) == prod(volume.extent) and turned:
        return turned
    covered = f"has {volume.extent} voxels, {image.shown} has {grid_map.shape}, 0 where it has none"
    return f"{turned} and {covered}" if turned else covered


def _copied(label: Volume, image: Volume, grid_map: GridMap) -> Volume:
    """The label on the image's grid, as it is in the cache or is written there now."""
    meaning = f"{label.fingerprint()} {label.channels} {json.dumps(grid_map.to_json())}"
    digest = hashlib.sha256(meaning.encode()).hexdigest()[:40]
    place = Path(expand_location(cache_folder())) / "placed" / f"{digest}.zarr"
    if found := obstacle(place.parent):
        raise OutputError(str(place.parent), found, "set XDG_CACHE_HOME to a folder of yours")
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_suffix(".place"), waits=True)
    try:
        if not place.exists():
            _write(label, image, grid_map, place)
    finally:
        lock.close(delete=True)
    channels = label.channels if label.has_channel_axis else None
    origin = Origin(label.shown, digest)
    return open_volume(str(place), key=label.key, channels=channels, origin=origin)


def _write(label: Volume, image: Volume, grid_map: GridMap, place: Path) -> None:
    lead = (label.channels,) if label.has_channel_axis else ()
    affine = world_affine(image)
    assert affine is not None
    write_volume(
        str(place),
        Blocks((*lead, *grid_map.shape), label.dtype, _blocks(label, grid_map)),
        grid=Grid(image.spacing, image.offset, image.unit, is_known=image.has_spacing),
        chunks=triple(min(pair) for pair in zip(_CHUNK, grid_map.shape, strict=True)),
        pyramid=Pyramid(0),
        description=Description("label", {OURS: {GEOMETRY: geometry_note(affine)}}),
    )


def _blocks(label: Volume, grid_map: GridMap) -> Iterator[tuple[Box, np.ndarray[Any, Any]]]:
    """The voxels of the image's grid, block by block."""
    turn = grid_map.symmetry
    for box in tiles(Box((0, 0, 0), grid_map.shape), _CHUNK):
        low, high = [0, 0, 0], [0, 0, 0]
        for axis, (source, _, _) in enumerate(grid_map.axes):
            at = grid_map.centres(axis, box.origin[axis], box.shape[axis])
            low[source], high[source] = round(at.min()), round(at.max()) + 1
        yield box, np.ascontiguousarray(turn(label.read(Box.between(low, high))))
