"""What a format is: it knows its files by their names, says what one holds, and gives the voxels once.

A format is one file of this package and one name in `FORMATS`. It reads through a library of its
field, and gives voxels as the file means them: rescaled where the file says so, turned to
(C, Z, Y, X), in pieces of bounded size in the order in which they are stored.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vcmodels.errors import VolumeError
from vcmodels.extras import load_extra
from vcmodels.geometry.affine import Affine
from vcmodels.geometry.boxes import Box
from vcmodels.volumes import Grid
from vcmodels.volumes.location import split_inside

Piece = tuple[Box, np.ndarray[Any, Any]]
"""A box of the volume, and its (C, Z, Y, X) voxels."""


@dataclass(frozen=True)
class Header:
    """What a file says of its image, before a voxel is read."""

    shape: tuple[int, ...]
    """(Z, Y, X), or (C, Z, Y, X) where the file has an axis of channels (or of times)."""
    dtype: np.dtype[Any]
    """Of the pieces: the stored one, or float32 where values are rescaled."""
    grid: Grid
    """Voxel size, offset and unit; `is_known` is false where the file does not say the size."""
    affine: Affine | None = None
    """Where the voxels lie; None of a file that does not say it."""
    channels: tuple[str, ...] = ()
    """Their names, if the file has any."""
    is_label: bool = False
    """Whether the file itself says that the values are classes or ids: coarser levels take the
    majority then."""
    original: Mapping[str, Any] = field(default_factory=dict)
    """JSON: what a file of this format needs besides, to be written like this one. It never names
    a patient."""
    notes: tuple[str, ...] = ()
    """What a person should know of how the file is read; a line each."""


class ForeignImage(ABC):
    """An image in one file or several that are no Zarr, opened: its header is read."""

    @property
    @abstractmethod
    def header(self) -> Header:
        """What it holds."""

    @property
    @abstractmethod
    def files(self) -> Sequence[Path]:
        """All files that decide what is read, in a stable order."""

    @property
    def places(self) -> Sequence[str]:
        """Where each of `files` lies within the image, if that says where its voxels do.

        None where names do not count: they may name a patient, and files may be moved.
        """
        return ()

    @abstractmethod
    def pieces(self) -> Iterator[Piece]:
        """All voxels, each once, in the order in which they are stored.

        Raises:
            VolumeError: the file is cut or damaged.
        """

    def full_header(self) -> Mapping[str, Any]:
        """All that the files say besides voxels, as JSON; it may name a patient.

        {} of formats that say no more than `header` does.
        """
        return {}


class Format(ABC):
    """A kind of files. The class stands for no state: formats are listed as objects."""

    name: str
    """As in messages and in the attribute `source`."""
    endings: tuple[str, ...]
    """Of file names, in lower case, with their dot."""
    is_private: bool = False
    """Whether the names of files may name a patient: they are in no attribute then."""

    def recognises(self, location: str) -> bool:
        """Whether a local file, or folder, that exists is of this format.

        By its name, or a look at a folder. What is chosen inside is not part of the location here,
        see `volumes.location.split_inside`.
        """
        return location.lower().endswith(self.endings)

    @abstractmethod
    def open(self, location: str, key: str) -> ForeignImage:
        """Read the header.

        Args:
            location: local, expanded, and recognised; with what is chosen inside.
            key: the dotted task key, or the option, for messages.

        Raises:
            VolumeError: it is damaged, holds no image, or holds several and none is chosen.
        """


def without_ending(name: str, endings: Iterable[str]) -> str:
    """A name of a file without the longest of the endings that it has; "" where it has none."""
    found = [ending for ending in endings if name.lower().endswith(ending)]
    return name[: -len(max(found, key=len))] if found else ""


def refuse_inside(location: str, key: str, remedy: str = "leave it out") -> None:
    """Refuse that something is chosen inside a file of one image.

    Raises:
        VolumeError: naming it.
    """
    place, inside = split_inside(location)
    if inside:
        raise VolumeError(key, f'nothing can be chosen in {place}, as "{inside}" is', remedy)


def library(name: str, location: str, key: str) -> Any:  # noqa: ANN401 - a module
    """The library that reads a format, imported when a file of it is opened.

    Args:
        name: of the module; that of its package is the first part.
        location: of the file, and `key`: for the message.
        key: as for `Format.open`.

    Raises:
        VolumeError: it is not installed.
    """
    return load_extra(name, "formats", key, location, VolumeError)


def stored_type(dtype: np.dtype[Any], location: str, key: str) -> np.dtype[Any]:
    """The type of pieces of stored voxels: native, and one that Zarr and networks know.

    Raises:
        VolumeError: colours, complex numbers or texts.
    """
    if dtype.kind not in "biuf":
        kind = {"V": "colours, or other records", "c": "complex numbers"}.get(
            dtype.kind, "no numbers"
        )
        remedy = (
            "write one number for each voxel (colours as channels along an axis), and give that"
        )
        raise VolumeError(key, f"{location} holds {kind} ({dtype})", remedy)
    return np.dtype(np.float64) if dtype.itemsize > 8 else dtype.newbyteorder("=")
