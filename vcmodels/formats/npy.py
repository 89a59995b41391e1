"""NumPy arrays (.npy), by a memory map: (z, y, x), or with channels at one end; they say no voxel size."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vcmodels.errors import VolumeError
from vcmodels.formats.arrays import array_pieces, guessed_axes, shape_of
from vcmodels.formats.base import (
    ForeignImage,
    Format,
    Header,
    Piece,
    refuse_inside,
    stored_type,
)
from vcmodels.volumes import Grid


class Npy(Format):
    name = "npy"
    endings = (".npy",)

    def open(self, location: str, key: str) -> "NpyImage":
        """Read the header; arrays of Python objects are refused, as they could run anything."""
        refuse_inside(location, key)
        return NpyImage(location, key)


class NpyImage(ForeignImage):
    """One array."""

    def __init__(self, location: str, key: str) -> None:
        self._location = location
        try:
            # Unlike np.load, it takes no .npz for an array.
            self._array = np.lib.format.open_memmap(location, mode="r")
        except (OSError, ValueError, EOFError) as error:
            found = f"{location} cannot be read ({' '.join(str(error).split())})"
            raise VolumeError(key, found, "it is cut or damaged: restore it") from error
        self._letters, notes = guessed_axes(self._array.shape, location, key)
        dtype = stored_type(self._array.dtype, location, key)
        sizes = dict(zip(self._letters, self._array.shape, strict=True))
        self._header = Header(shape_of(sizes), dtype, Grid(), notes=notes)

    @property
    def header(self) -> Header:
        return self._header

    @property
    def files(self) -> Sequence[Path]:
        return [Path(self._location)]

    def pieces(self) -> Iterator[Piece]:
        return array_pieces(self._array, self._letters, self._header.dtype)
