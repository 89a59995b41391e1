"""Which volumes show the same voxels, whatever their paths: such must not train and validate.

Links, other spellings of a path, bind mounts and `file://` lead to the same folder on the disk. The
levels of one multiscale image show the same object. Copies are found by their values: arrays of equal
shape are compared in a few small boxes, of which one at least must hold many values.
"""

import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np

from vcmodels.errors import VcmodelsError
from vcmodels.geometry.boxes import Box, Shape
from vcmodels.volumes import Volume
from vcmodels.volumes.location import is_remote, parent
from vcmodels.volumes.ngff import read_multiscale
from vcmodels.volumes.nodes import read_node

WINDOWS, SIDE = 5, 8
"""Boxes in which arrays are compared, and voxels along their axes."""
DISTINCT = 16
"""Different values in a box that tell a scan from others."""
READERS = 8


def number_scans(arrays: Sequence[Sequence[Volume]]) -> list[int]:
    """For each volume a number, equal for those that have an array in common.

    Args:
        arrays: of each volume, inputs and labels.
    """
    places = [{_at_its_time(array, mine[0]) for array in mine} for mine in arrays]
    found = _joined(places)
    firsts = [array for mine in arrays for array in mine[:1]]
    return _joined([{number, *keys} for number, keys in zip(found, _images(firsts), strict=True)])


def number_copies(inputs: Sequence[Sequence[Volume]], scans: Sequence[int]) -> list[int]:
    """The numbers of `number_scans`, equal also for volumes of which an input is a copy.

    A few boxes are read where volumes of different numbers have arrays of equal shape.
    """
    alike: dict[Hashable, dict[tuple[int, str], Volume]] = {}
    for scan, mine in zip(scans, inputs, strict=True):
        for array in mine:
            same = alike.setdefault((array.extent, array.channels), {})
            same.setdefault((scan, array.identity), array)
    groups = [[(scan, array) for (scan, _), array in same.items()] for same in alike.values()]
    several = [group for group in groups if len({scan for scan, _ in group}) > 1]
    copies = [found for group in several for found in _copies(group)]
    return _joined([{scan, *(min(found) for found in copies if scan in found)} for scan in scans])


def _at_its_time(array: Volume, image: Volume) -> Hashable:
    """Where an array lies, and the time that is read of it: its own, or that of the image it labels."""
    times = array.axes.positions("t") or image.axes.positions("t")
    return place_of(array.shown), *times


def share_voxels(one: Box, extent: Shape, other: Box, other_extent: Shape) -> bool:
    """Whether two boxes of one scan meet, in volumes of these extents (levels have different ones)."""
    return all(
        max(a0 * m, b0 * n) < min(a1 * m, b1 * n)
        for a0, a1, n, b0, b1, m in zip(
            one.origin, one.end, extent, other.origin, other.end, other_extent, strict=True
        )
    )


def place_of(location: str) -> Hashable:
    """What is equal for all locations that lead to one array."""
    scheme, _, rest = location.rpartition("://")
    if scheme in ("file", "local"):
        location = rest
    elif is_remote(location):
        host, slash, path = rest.partition("/")
        return {"s3a": "s3"}.get(scheme.lower(), scheme.lower()), host.lower() + slash + path
    try:
        status = Path(location).stat()
    except OSError:
        return location
    return status.st_dev, status.st_ino


def _joined(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """For each set of keys the number of the first that it is connected with through common keys."""
    first = list(range(len(keys)))
    owner: dict[Hashable, int] = {}

    def find(number: int) -> int:
        while first[number] != number:
            number = first[number] = first[first[number]]
        return number

    for number, mine in enumerate(keys):
        for key in mine:
            low, high = sorted((find(number), find(owner.setdefault(key, number))))
            first[high] = low
    return [find(number) for number in range(len(keys))]


def _images(arrays: Sequence[Volume]) -> list[set[Hashable]]:
    """For each array the multiscale image that it is a level of; looked up where extents differ."""
    places = [_real(array.location) for array in arrays]
    extents: dict[str | None, set[Shape]] = {}
    for array, place in zip(arrays, places, strict=True):
        extents.setdefault(parent(place), set()).add(array.extent)
    return [
        {("image", parent(place), *array.axes.positions("t"))}
        if len(extents[parent(place)]) > 1 and _is_level(place)
        else set()
        for array, place in zip(arrays, places, strict=True)
    ]


def _real(location: str) -> str:
    """A path without links; a URL as it is."""
    location = re.sub("^(file|local)://", "", location)
    return location if is_remote(location) else str(Path(location).resolve())


def _is_level(place: str) -> bool:
    """Whether the group around an array is a multiscale image that has it as a level."""
    around = parent(place)
    with suppress(VcmodelsError):  # the array could be opened without it
        group = read_node(around, around) if around else None
        image = read_multiscale(group.attributes) if group else None
        return image is not None and place.rpartition("/")[2] in {
            p.strip("/") for p, *_ in image.levels
        }
    return False


CopyCandidates = list[tuple[int, Volume]]
"""Arrays of one shape, each with the number of its scan."""


def _copies(candidates: CopyCandidates) -> Iterator[set[int]]:
    """The numbers of scans whose arrays have the same values."""
    groups = [(candidates, False)]  # with whether a box was seen that tells scans apart
    with ThreadPoolExecutor(READERS) as pool:
        for window in _windows(candidates[0][1]):
            parts: list[tuple[CopyCandidates, bool]] = []
            for group, is_told in groups:
                values = list(pool.map(lambda one, box=window: _values(one[1], box), group))
                for value in set(values) - {b""}:
                    same = [one for one, v in zip(group, values, strict=True) if v == value]
                    parts.append((same, is_told or _tells(value)))
            groups = [(same, is_told) for same, is_told in parts if len(same) > 1]
    for group, is_told in groups:
        if is_told:
            yield {scan for scan, _ in group}


def _windows(array: Volume) -> list[Box]:
    """Small boxes in the middle of stored blocks that are spread over an array."""
    blocks = [array.box]
    if array.listing is not None and array.listing.spatial:
        step = -(-len(array.listing.spatial) // WINDOWS)
        blocks = list(islice(array.stored_blocks(), step // 2, None, step))
    return [_middle(block) for block in blocks]


def _middle(block: Box) -> Box:
    low = [o + max(n - SIDE, 0) // 2 for o, n in zip(block.origin, block.shape, strict=True)]
    return Box.between(low, [min(a + SIDE, b) for a, b in zip(low, block.end, strict=True)])


def _values(array: Volume, box: Box) -> bytes:
    """The values in a box, whatever their type; b"" where they cannot be read."""
    with suppress(VcmodelsError):  # whoever needs them reports it
        return array.read(box).astype(np.float64).tobytes()
    return b""


def _tells(values: bytes) -> bool:
    """Whether only copies have these values: empty boxes and plain masks are alike in many scans."""
    return len(set(np.frombuffer(values, np.float64).tolist())) >= DISTINCT
