"""Finding the region of a volume: one source after another, until one finds what can be relied on."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcmodels.errors import OutputError, VolumeError
from vcmodels.fields.centreline import Trace, line_through, trace
from vcmodels.formats.imported import open_located
from vcmodels.geometry.alignment import TOLERANCE, align
from vcmodels.geometry.boxes import Box, Spacing
from vcmodels.regions.base import Region, trace_from_json, trace_to_json
from vcmodels.regions.heuristics import guess
from vcmodels.regions.points import read_points
from vcmodels.regions.section import NAME, RegionConfig, RegionSource
from vcmodels.reporting import Reporter
from vcmodels.volumes import Volume, expand_location, is_remote
from vcmodels.volumes.locks import FileLock
from vcmodels.volumes.places import read_json, write_json
from vcmodels.volumes.spacing import in_unit
from vcmodels.volumes.world import world_affine

KEY = "dataset_config.region"
VERSION = 1
"""Of how lines are found: another one finds them again."""
MOST_VOXELS = 1 << 23
"""Of an object: what is more is no thing to crop around. So many take about 1 GB."""

Probabilities = Iterable[tuple[Box, NDArray[Any]]]
"""Boxes and their (Z, Y, X) probabilities, or 0 and 1."""


@dataclass(frozen=True)
class SearchedVolume:
    """A volume in which a region is looked for."""

    name: str
    key: str
    """For messages."""
    inputs: tuple[Volume, ...]
    labels: Mapping[str, Volume]

    @property
    def spacing(self) -> Spacing:
        """Length of a voxel in mm; in its own unit if that is no length.

        Raises:
            VolumeError: it is not known.
        """
        first = self.inputs[0]
        if not first.has_spacing:
            found = f"the voxel size of {first.shown} is unknown, and a region has a size in mm"
            raise VolumeError(self.key, found, 'give "spacing"')
        return in_unit(first.spacing, first.unit, "millimeter")


Segment = Callable[[RegionSource, SearchedVolume], Probabilities]
"""Predicts the object with the network of a source."""


class NotFoundYetError(VolumeError):
    """A network has to find the region first, and this is no place to run one."""


def find_region(
    config: RegionConfig,
    scan: SearchedVolume,
    *,
    known: Path,
    reporter: Reporter,
    segment: Segment | None = None,
) -> Region:
    """The region of a volume, by the first source that finds an object which passes the checks.

    What a source found is kept by its content, and that of the volume, and not looked for again.

    Args:
        config: the sources, the checks, and what is made of the object.
        scan: the volume.
        known: folder of what was found before.
        reporter: told when a source fails, and why.
        segment: runs networks; None where that may not be.

    Raises:
        NotFoundYetError: a network must run, and `segment` is None.
        VolumeError: no source finds anything, and there is no fallback; a file that a source names
            is damaged, or does not fit the volume.
    """
    reasons: list[str] = []
    for source in config.sources:
        found = _found(source, config, scan, known, segment)
        reason = found if isinstance(found, str) else _defect(found, config, scan)
        if reason is None and isinstance(found, Trace):
            if reasons:
                reporter.say(f"{scan.name}: region from {source}, as {'; '.join(reasons)}")
            extent = scan.inputs[0].extent
            return Region.around(found, config, str(source), extent, scan.spacing)
        reasons.append(f"{source}: {reason}")
    if config.fallback == "whole":
        reporter.say(f"{scan.name}: no region, all of it is taken, as {'; '.join(reasons)}")
        return Region.whole(scan.inputs[0].extent, scan.spacing)
    remedy = 'give points or a mask as another source, or set "fallback": "whole"'
    raise VolumeError(f"{KEY} of {scan.name}", f"nothing was found: {'; '.join(reasons)}", remedy)


def _defect(found: Trace, config: RegionConfig, scan: SearchedVolume) -> str | None:
    size = np.array(scan.inputs[0].extent) * scan.spacing
    if (np.array(found.high) < 0).any() or (np.array(found.low) > size).any():
        return "it lies outside of the volume"
    return found.defect(config.least_length_mm, config.least_share, "mm")


def _found(
    source: RegionSource,
    config: RegionConfig,
    scan: SearchedVolume,
    known: Path,
    segment: Segment | None,
) -> Trace | str:
    """The object by one source, or why it finds none."""
    if source.points is not None:
        return _by_points(source.points, config, scan)
    mask = None
    if source.mask is not None:
        mask = _mask(source.mask, scan)
        if mask is None:
            return "there is none"
    place = known / f"{_digest(source, config, scan, mask)}.json"
    if (before := _kept(place)) is not None:
        return before
    if source.checkpoint is not None:
        _require_network(source, scan, segment)
    try:
        known.mkdir(parents=True, exist_ok=True)
        lock = FileLock(known / f".{place.stem}.lock", waits=True)
    except OSError as error:
        found = f"cannot be written ({error.strerror})"
        raise OutputError(str(known), found, "set XDG_CACHE_HOME to another folder") from error
    try:  # of several processes one looks for it
        return _kept(place) or _looked_for(source, config, scan, mask, segment, place)
    finally:
        lock.close(delete=True)


def _require_network(source: RegionSource, scan: SearchedVolume, segment: Segment | None) -> None:
    """Refuse a network that is not trained yet, or that may not run here."""
    if source.sha256 is None:
        found = f"there is no checkpoint {source.checkpoint}, which is to find its region"
        raise VolumeError(scan.key, found, "train it first, or name another")
    if segment is None:
        text = f"its region is to be found by {source}, which has not run on it yet"
        raise NotFoundYetError(scan.key, text, "run vcmodels region TASK")


def _kept(place: Path) -> Trace | str | None:
    """What a source found before, or why it found nothing; None where it has not looked."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        stored = read_json(place)
        return str(stored["reason"]) if "reason" in stored else trace_from_json(stored)
    return None


def _looked_for(
    source: RegionSource,
    config: RegionConfig,
    scan: SearchedVolume,
    mask: Volume | None,
    segment: Segment | None,
    place: Path,
) -> Trace | str:
    """What a source finds now, which is kept."""
    if source.heuristic is not None:
        found = guess(source, config, scan.inputs[0], scan.spacing)
    elif mask is not None:
        found = _traced(_of_mask(mask), 0.0, config, scan)
    else:
        assert segment is not None, "it was asked for"
        found = _traced(segment(source, scan), source.threshold, config, scan)
    write_json(place, {"reason": found} if isinstance(found, str) else trace_to_json(found))
    return found


def _digest(
    source: RegionSource, config: RegionConfig, scan: SearchedVolume, mask: Volume | None
) -> str:
    """Of all that decides what a source finds."""
    seen = scan.inputs if mask is None else (mask,)
    how = {"threshold", "target", "sha256", "heuristic", "width_mm"}
    parts = [
        VERSION,
        source.model_dump(mode="json", include=how),
        [config.axis, config.most_gap_mm, config.least_length_mm if source.heuristic else None],
        scan.spacing,
        [volume.fingerprint() for volume in seen],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def _by_points(location: str, config: RegionConfig, scan: SearchedVolume) -> Trace | str:
    path = Path(expand_location(location.replace(NAME, scan.name)))
    if not path.exists():
        return f"there is no {path}"
    points = read_points(path, scan.inputs[0], scan.spacing)
    try:
        return Trace.given(line_through(points, config.axis_number))
    except ValueError as error:
        return str(error)


def _mask(named: str, scan: SearchedVolume) -> Volume | None:
    """The label of that name, or the volume at that location; None if there is none.

    Raises:
        VolumeError: it is damaged, or not on the grid of the input.
    """
    if named in scan.labels:
        return scan.labels[named]
    location = expand_location(named.replace(NAME, scan.name))
    if not is_remote(location) and not Path(location).exists():
        return None
    mask = open_located(location, key=f"{KEY}.from.mask", channels="any")
    if mask.extent != scan.inputs[0].extent:
        found = f"{mask.shown} has shape {mask.extent}, {scan.name} has {scan.inputs[0].extent}"
        raise VolumeError(mask.key, found, "give a mask on the grid of the input")
    _require_same_place(mask, scan)
    return mask


def _require_same_place(mask: Volume, scan: SearchedVolume) -> None:
    """Refuse a mask of which its affine says that its voxels are not those of the input."""
    image = scan.inputs[0]
    here, there = world_affine(image), world_affine(mask)
    if here is None or there is None:
        return
    aligned = align(here, image.extent, there, mask.extent)
    if aligned.voxels > TOLERANCE or not aligned.grid_map.is_identity:
        found = f"{mask.shown} lies elsewhere in the world than {scan.name}, by the affines of both"
        raise VolumeError(mask.key, found, "give a mask on the grid of the input")


def _of_mask(mask: Volume) -> Probabilities:
    for box in mask.stored_blocks():
        values = mask.read(box)
        yield box, (values != 0).any(axis=0) & ~np.isnan(values).any(axis=0)


def _traced(
    blocks: Probabilities, above: float, config: RegionConfig, scan: SearchedVolume
) -> Trace | str:
    """The line of the voxels that are more than `above`, each by its value."""
    index: list[NDArray[np.int32]] = []
    weights: list[NDArray[np.float32]] = []
    count = 0
    for box, values in blocks:
        here = np.argwhere(values > above)
        count += len(here)
        if count > MOST_VOXELS:
            return f"it holds more than {MOST_VOXELS:,} voxels"
        index.append((here + box.origin).astype(np.int32))
        weights.append(values[tuple(here.T)].astype(np.float32))
    found = trace(
        np.concatenate(index or [np.empty((0, 3), np.int32)]),
        np.concatenate(weights or [np.empty(0, np.float32)]),
        scan.spacing,
        axis=config.axis_number,
        most_gap=config.most_gap_mm,
    )
    return "it is empty" if found is None else found
