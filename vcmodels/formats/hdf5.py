"""HDF5 (.h5, .hdf5), read by h5py: `file.h5:/path`, or the only array; axes and voxel size as attributes."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vcmodels.errors import VolumeError
from vcmodels.formats.arrays import array_pieces, guessed_axes, settled_axes, shape_of, told_grid
from vcmodels.formats.base import ForeignImage, Format, Header, Piece, library, stored_type
from vcmodels.geometry.boxes import Shape, triple
from vcmodels.reporting import list_some
from vcmodels.volumes import Grid
from vcmodels.volumes.location import split_inside
from vcmodels.volumes.spacing import in_unit, numbers, unit_name

_MOST_LISTED = 12
_MICROMETERS, _RESOLUTION = "element_size_um", "resolution"
"""Attributes with the voxel size along (z, y, x): of ilastik and pytorch-3dunet, and of CREMI, where
it is in nm unless `units` says another."""
_AXES = frozenset("tczyx")


class Hdf5(Format):
    name = "hdf5"
    endings = (".h5", ".hdf5", ".hdf", ".he5")

    def open(self, location: str, key: str) -> "Hdf5Image":
        """Look at one array: that of the path behind ":", or the only one."""
        return Hdf5Image(location, key)


class Hdf5Image(ForeignImage):
    """One array of a file."""

    def __init__(self, location: str, key: str) -> None:
        self._h5py = library("h5py", location, key)
        self._location, self._key = location, key
        self._file, inside = split_inside(location)
        with self._opened() as file:
            self._path = inside or self._only(file)
            stored = file.get(self._path)
            if not isinstance(stored, self._h5py.Dataset) or stored.shape is None:
                remedy = f"give one of {self._listed(file)}"
                raise VolumeError(key, f"{location} is no array", remedy)
            self._describe(stored)

    @property
    def header(self) -> Header:
        return self._header

    @property
    def files(self) -> Sequence[Path]:
        return [Path(self._file)]

    def pieces(self) -> Iterator[Piece]:
        """Whole chunks, in the order of z."""
        with self._opened() as file:
            stored = file[self._path]
            yield from array_pieces(stored, self._letters, self._header.dtype, self._chunks)

    def _describe(self, stored: Any) -> None:  # noqa: ANN401 - of h5py
        named, notes = _named_axes(stored), ()
        if named:
            self._letters = settled_axes(named, stored.shape, self._location, self._key)
        else:
            self._letters, notes = guessed_axes(stored.shape, self._location, self._key)
        sizes = dict(zip(self._letters, stored.shape, strict=True))
        dtype = stored_type(stored.dtype, self._location, self._key)
        self._chunks = _chunks(stored, self._letters)
        grid = _grid(stored)
        self._header = Header(shape_of(sizes), dtype, grid, notes=(*notes, *grid.notes))

    def _only(self, file: Any) -> str:  # noqa: ANN401
        arrays = self._arrays(file)
        if len(arrays) == 1:
            return arrays[0]
        found = f"{self._file} holds {len(arrays)} arrays"
        remedy = f"give one of {self._listed(file)}" if arrays else "choose another file"
        raise VolumeError(self._key, found, remedy)

    def _listed(self, file: Any) -> str:  # noqa: ANN401
        return list_some((f"{self._file}:/{path}" for path in self._arrays(file)), _MOST_LISTED)

    def _arrays(self, file: Any) -> list[str]:  # noqa: ANN401
        """The paths of all arrays that may be images."""
        found: list[str] = []

        def look(path: str, node: Any) -> None:  # noqa: ANN401 - of h5py
            if isinstance(node, self._h5py.Dataset) and node.ndim > 1:
                found.append(path)

        file.visititems(look)
        return found

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            with self._h5py.File(self._file, "r") as file:
                yield file
        except OSError as error:  # for damage, and for a file that is being written
            found = f"{self._file} cannot be read ({' '.join(str(error).split())})"
            raise VolumeError(
                self._key, found, "it is cut, damaged or in use: restore it"
            ) from error


def _named_axes(stored: Any) -> str:  # noqa: ANN401
    """The letters that ilastik's `axistags`, `axes`, or the labels of the dimensions give, or ""."""
    try:
        axes = json.loads(stored.attrs["axistags"])["axes"]
        names = [str(axis["key"]) for axis in axes]
    except (KeyError, TypeError, ValueError):
        plain = stored.attrs.get("axes")
        is_plain = isinstance(plain, str) and {*plain.lower()} <= _AXES
        names = [*plain.lower()] if is_plain else [d.label.lower() for d in stored.dims]
    return "".join(names) if len(names) == stored.ndim and all(len(n) == 1 for n in names) else ""


def _grid(stored: Any) -> Grid:  # noqa: ANN401
    """The voxel size and offset that attributes say, of the array or of the file."""
    for said in (stored.attrs, stored.file.attrs):
        shift = _listed(said.get("offset"))
        default = "nanometer" if _RESOLUTION in said else "micrometer"
        unit = _text(said.get("units"), _text(said.get("unit"), default))
        if _MICROMETERS in said:
            place, sizes = f"attribute {_MICROMETERS}", _listed(said[_MICROMETERS])
            return told_grid(place, sizes, _in_micrometers(shift, unit), "micrometer")
        if _RESOLUTION in said:
            return told_grid(f"attribute {_RESOLUTION}", _listed(said[_RESOLUTION]), shift, unit)
    return Grid()


def _in_micrometers(shift: object, unit: str) -> object:
    """An offset; as it is where it is no three numbers."""
    given = numbers(shift)
    if given is None or len(given) != 3:
        return shift
    return list(in_unit(triple(given), unit_name(unit), "micrometer"))


def _listed(value: Any) -> object:  # noqa: ANN401
    return value.tolist() if hasattr(value, "tolist") else value


def _text(value: object, default: str) -> str:
    return value if isinstance(value, str) and value else default


def _chunks(stored: Any, letters: str) -> Shape:  # noqa: ANN401
    """Chunks along (z, y, x); of what is stored in one run, rows."""
    lengths = dict(zip(letters, stored.chunks or (1,) * stored.ndim, strict=True))
    return triple(lengths.get(a, 1) for a in "zyx")
