"""What an exporter is: it writes one volume to a file of its format, in pieces of bounded size."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from vcmodels.errors import OutputError
from vcmodels.formats.base import ForeignImage
from vcmodels.geometry.affine import Affine
from vcmodels.geometry.boxes import Box, Shape, triple
from vcmodels.geometry.grid import slabs, tiles
from vcmodels.reporting import Advance
from vcmodels.volumes import Grid
from vcmodels.volumes.spacing import in_unit

ROOM_BYTES = 1 << 28
"""A slab of more is put together in a file, which the system keeps in memory as far as there is any."""


@dataclass(frozen=True)
class Outgoing:
    """A volume that is exported."""

    name: str
    """What is in it: that of a target."""
    shape: tuple[int, int, int, int]
    """(C, Z, Y, X)."""
    dtype: np.dtype[Any]
    """Of the voxels in the file."""
    read: Callable[[Box], np.ndarray[Any, Any]]
    """(C, Z, Y, X) of `dtype` in a box."""
    chunks: Shape
    """In which it is stored: each is read once."""
    grid: Grid
    affine: Affine | None = None
    scale: tuple[float, float] | None = None
    """Slope and intercept that make values of what is written, for formats that can say so."""
    is_label: bool = False
    """Whether voxels are classes or ids."""
    original: Mapping[str, Any] = field(default_factory=dict)
    """As in `Header`, of a file of the format that is written; empty when there is none."""
    like: ForeignImage | None = None
    """A file that lies on this grid, if one is named."""

    @property
    def extent(self) -> Shape:
        """(Z, Y, X)."""
        return triple(self.shape[1:])

    @property
    def channels(self) -> int:
        """How many there are."""
        return self.shape[0]

    @property
    def plain_shape(self) -> tuple[int, ...]:
        """(Z, Y, X), or (C, Z, Y, X) of several channels."""
        return self.shape if self.channels > 1 else self.extent

    @property
    def bytes(self) -> int:
        """Of all voxels."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def world(self) -> Affine:
        """The affine, or that of the grid alone: in mm where its unit is a length."""
        if self.affine is not None:
            return self.affine
        sizes = in_unit(self.grid.spacing, self.grid.unit, "millimeter")
        offset = in_unit(self.grid.offset, self.grid.unit, "millimeter")
        affine = np.diag([*sizes[::-1], 1.0])
        affine[:3, 3] = offset[::-1]
        return affine


class Exporter(ABC):
    """A format that is written. The class stands for no state: exporters are listed as objects."""

    name: str
    """For messages; that of a `Format` if it reads such files, too."""
    dtypes: tuple[str, ...]
    """Types of voxels that the format has."""
    keeps_scale: bool = False
    """Whether the file can say slope and intercept, so that codes of probabilities stay codes."""

    is_for_classes: bool = False
    """Whether it holds classes only, so that probabilities are cut."""

    def kept_of(self, image: ForeignImage) -> Mapping[str, Any]:
        """What of a file of this format is kept in one that is written like it."""
        return image.header.original

    def check(self, image: Outgoing, key: str) -> None:  # noqa: B027 - most hold anything
        """Refuse what the format cannot hold, before anything is written.

        Raises:
            OutputError: naming it.
        """

    @abstractmethod
    def write(self, image: Outgoing, path: Path, advance: Advance) -> None:
        """Write the file.

        Args:
            image: of a type in `dtypes`.
            path: a temporary one, which has another ending.
            advance: told the voxels that are done.

        Raises:
            OSError: the disk is full.
        """


def slabs_of(image: Outgoing, folder: Path, advance: Advance) -> Iterator[np.ndarray[Any, Any]]:
    """All voxels as (C, depth, Y, X), in the order of z; no more than one slab exists at a time.

    Args:
        image: what is read; each of its chunks once.
        folder: for the file that a large slab is put together in, which has no name.
        advance: told the voxels that are done.
    """
    for box in slabs(Box((0, 0, 0), image.extent), image.chunks[0]):
        slab = _room((image.channels, *box.shape), image.dtype, folder)
        for part in tiles(box, image.chunks):
            slab[(slice(None), *part.slices(box))] = image.read(part)
            advance(part.voxels, "")
        yield slab


def channel_slabs(
    image: Outgoing, folder: Path, advance: Advance
) -> Iterator[np.ndarray[Any, Any]]:
    """All voxels as (depth, Y, X), one channel after the other, each in the order of z.

    The volume is read once for each channel.
    """
    for channel in range(image.channels):
        share = advance if channel == 0 else _silent
        for slab in slabs_of(image, folder, share):
            yield slab[channel]


def _silent(amount: float, text: str) -> None:
    del amount, text


def _room(shape: tuple[int, ...], dtype: np.dtype[Any], folder: Path) -> np.ndarray[Any, Any]:
    if prod(shape) * dtype.itemsize <= ROOM_BYTES:
        return np.empty(shape, dtype)
    with TemporaryFile(dir=folder) as file:  # goes with the last view of it
        return np.memmap(file, dtype, "w+", shape=shape)


def refuse_channels(image: Outgoing, key: str, form: str) -> None:
    """Refuse several channels.

    Raises:
        OutputError: there are some.
    """
    if image.channels > 1:
        found = f"{image.name} has {image.channels} channels, and {form} holds one"
        raise OutputError(key, found, "name a .nii.gz, a .ome.tif or a .h5")
