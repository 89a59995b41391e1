"""N5, read by tensorstore: an array, or group of levels, in a `.n5` folder; stored with x first."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from vcmodels.errors import VolumeError
from vcmodels.formats.arrays import array_pieces, settled_axes, shape_of, told_grid
from vcmodels.formats.base import (
    ForeignImage,
    Format,
    Header,
    Piece,
    library,
    refuse_inside,
    stored_type,
)
from vcmodels.geometry.boxes import triple
from vcmodels.reporting import list_some
from vcmodels.volumes import Grid
from vcmodels.volumes.location import split_inside
from vcmodels.volumes.places import read_json

_ATTRIBUTES = "attributes.json"
_FINEST = "s0"
_MOST_LISTED = 12
_DEPTH = 4
"""Groups above arrays in which those are looked for."""


class N5(Format):
    name = "n5"
    endings = (".n5",)

    def recognises(self, location: str) -> bool:
        """A folder with the attributes of N5, or whose name, or that around it, ends with `.n5`."""
        folder = Path(location)
        if not folder.is_dir():
            return False
        is_inside = any(part.lower().endswith(".n5") for part in folder.parts)
        return is_inside or "dimensions" in _attributes(folder)

    def open(self, location: str, key: str) -> "N5Image":
        """Look at the array, the finest level of a group (`s0`), or the only array below."""
        place, inside = split_inside(location)
        refuse_inside(location, key, f"give {place}/{inside}")
        return N5Image(location, key)


class N5Image(ForeignImage):
    """One array."""

    def __init__(self, location: str, key: str) -> None:
        self._tensorstore = library("tensorstore", location, key)
        self._folder, self._key = _array_below(Path(location), key), key
        stored = self._opened()
        given = _attributes(self._folder)
        names = _axis_names(given, len(stored.shape))
        self._letters = settled_axes(names, stored.shape, str(self._folder), key)
        sizes = dict(zip(self._letters, stored.shape, strict=True))
        dtype = stored_type(stored.dtype.numpy_dtype, str(self._folder), key)
        grid = _grid(self._folder, names)
        self._header = Header(shape_of(sizes), dtype, grid, notes=grid.notes)

    @property
    def header(self) -> Header:
        return self._header

    @property
    def files(self) -> Sequence[Path]:
        """Its own, and the attributes of the group around it, which may say the voxel size."""
        around = self._folder.parent / _ATTRIBUTES
        own = sorted(path for path in self._folder.rglob("*") if path.is_file())
        return [*own, around] if around.is_file() else own

    @property
    def places(self) -> Sequence[str]:
        """The path of a block says which one it is."""
        return [Path(os.path.relpath(path, self._folder)).as_posix() for path in self.files]

    def pieces(self) -> Iterator[Piece]:
        """Whole blocks of N5, in the order of z."""
        stored = self._opened()
        blocks = dict(zip(self._letters, stored.chunk_layout.read_chunk.shape, strict=True))
        chunks = triple(blocks.get(a, 1) for a in "zyx")
        try:
            yield from array_pieces(_Read(stored), self._letters, self._header.dtype, chunks)
        except ValueError as error:
            raise self._damaged(error) from error

    def _opened(self) -> Any:  # noqa: ANN401 - of tensorstore
        store = {"driver": "file", "path": f"{self._folder}/"}
        try:
            return self._tensorstore.open({"driver": "n5", "kvstore": store}, read=True).result()
        except ValueError as error:
            raise self._damaged(error) from error

    def _damaged(self, error: ValueError) -> VolumeError:
        said = " ".join(str(error).split())[:200]
        found = f"{self._folder} cannot be read ({said})"
        return VolumeError(self._key, found, "it is damaged: restore it")


class _Read:
    """An array of tensorstore that is read when it is sliced."""

    def __init__(self, stored: Any) -> None:  # noqa: ANN401
        self._stored = stored
        self.shape = tuple(map(int, stored.shape))

    def __getitem__(self, where: Any, /) -> np.ndarray:  # noqa: ANN401
        return self._stored[where].read().result()


def _array_below(folder: Path, key: str) -> Path:
    """The array that a folder is, or stands for.

    Raises:
        VolumeError: there are several, or none.
    """
    if "dimensions" in _attributes(folder):
        return folder
    if "dimensions" in _attributes(folder / _FINEST):
        return folder / _FINEST
    found = list(_arrays(folder, _DEPTH))
    if len(found) == 1:
        return _array_below(found[0], key)
    remedy = f"give one of {list_some(found, _MOST_LISTED)}" if found else "choose another folder"
    raise VolumeError(key, f"{folder} holds {len(found)} images", remedy)


def _arrays(folder: Path, depth: int) -> Iterator[Path]:
    """The arrays below; of several levels the group."""
    if "dimensions" in _attributes(folder) or "dimensions" in _attributes(folder / _FINEST):
        yield folder
    elif depth:
        for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
            yield from _arrays(inner, depth - 1)


def _attributes(folder: Path) -> dict[str, Any]:
    """The attributes of a folder; {} where there are none that can be read."""
    try:
        found = read_json(folder / _ATTRIBUTES)
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _axis_names(given: dict[str, Any], count: int) -> str:
    names = given.get("axes")
    if isinstance(names, list) and len(names) == count and all(len(str(n)) == 1 for n in names):
        return "".join(str(name).lower() for name in names)
    return "xyzct"[:count]


def _grid(folder: Path, names: str) -> Grid:
    """The voxel size, of the array or of the group around it; numbers are in the order of its axes."""
    for given in (_attributes(folder), _attributes(folder.parent)):
        size, unit = given.get("pixelResolution"), given.get("units")
        if isinstance(size, dict):
            size, unit = size.get("dimensions"), size.get("unit", unit)
        size = given.get("resolution") if size is None else size
        if isinstance(size, list):
            place, shift = f"{folder / _ATTRIBUTES}", given.get("offset")
            sizes = _zyx(_coarser(size, _attributes(folder)), names)
            return told_grid(place, sizes, _zyx(shift, names), _one(unit))
    return Grid()


def _coarser(size: list[Any], level: dict[str, Any]) -> list[Any]:
    """The voxel size of a level, from that of the finest one."""
    factors = level.get("downsamplingFactors")
    if not isinstance(factors, list) or len(factors) != len(size):
        return size
    return [a * b for a, b in zip(size, factors, strict=True)]


def _zyx(values: object, names: str) -> object:
    """What is given for (x, y, z), or for each axis, along (z, y, x); as it is when it fits neither."""
    if not isinstance(values, list):
        return None
    listed = cast("list[object]", values)
    order = names if len(listed) == len(names) else "xyz"
    if len(listed) != len(order) or not {*"zyx"} <= {*order}:
        return listed
    return [listed[order.index(a)] for a in "zyx"]


def _one(unit: object) -> object:
    """A unit; of a list that says one for each axis, the first."""
    return unit[0] if isinstance(unit, list) and unit else unit
