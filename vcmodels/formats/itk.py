"""NRRD and MetaImage (.nrrd, .nhdr, .mha, .mhd), read by SimpleITK; its world (LPS+) is turned to RAS+."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vcmodels.errors import VolumeError
from vcmodels.formats.arrays import shape_of
from vcmodels.formats.base import ForeignImage, Format, Header, Piece, library, refuse_inside
from vcmodels.formats.nifti import grid_of
from vcmodels.geometry.affine import Affine, flipped_world
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import slabs
from vcmodels.volumes import Grid

_HEADER_BYTES = 1 << 16
_PIECE_BYTES = 1 << 24
_PIXEL = re.compile(r"(?:vector of )?(\d+)-bit (unsigned integer|signed integer|float)")
_KINDS = {"unsigned integer": "u", "signed integer": "i", "float": "f"}
_DATA_FILE = re.compile(rb"^(?:data ?file: *|ElementDataFile *= *)(.+?)\r?$", re.I | re.M)
_SAYS_SIZE = re.compile(
    rb"^(?:space directions|spacings|ElementSpacing|ElementSize)\b", re.I | re.M
)
_IS_LABEL = re.compile(rb"^Segment\d+_ID:=", re.M)
"""Of segmentations that 3D Slicer writes."""


class Itk(Format):
    name = "itk"
    endings = (".nrrd", ".nhdr", ".mha", ".mhd")

    def open(self, location: str, key: str) -> "ItkImage":
        """Read the header."""
        refuse_inside(location, key)
        return ItkImage(location, key)


class ItkImage(ForeignImage):
    """One image; vector pixels, or a fourth axis, are channels."""

    def __init__(self, location: str, key: str) -> None:
        self._itk = library("SimpleITK", location, key)
        self._location, self._key = location, key
        reader = self._reader()
        with self._reading():
            reader.ReadImageInformation()
        self._size, self._components = reader.GetSize(), reader.GetNumberOfComponents()
        with Path(location).open("rb") as file:
            self._start = file.read(_HEADER_BYTES)
        self._header = self._described(reader)

    @property
    def header(self) -> Header:
        return self._header

    @property
    def files(self) -> Sequence[Path]:
        """The file, and the one of its voxels if that is another.

        Raises:
            VolumeError: there are several.
        """
        header, match = Path(self._location), _DATA_FILE.search(self._start)
        name = match[1].decode(errors="replace").strip() if match else "LOCAL"
        if name.upper() == "LOCAL":
            return [header]
        if name.upper().startswith("LIST") or "%" in name:
            found = f"{self._location} has its voxels in several files"
            raise VolumeError(self._key, found, "write it into one file")
        return [header, header.parent / name]

    def pieces(self) -> Iterator[Piece]:
        """Slabs; what is compressed, and NRRD, is in memory as a whole: the library reads it so."""
        shape = self._header.shape
        plane = int(np.prod(shape)) // shape[-3] * self._header.dtype.itemsize
        whole = Box((0, 0, 0), (shape[-3], shape[-2], shape[-1]))
        can_stream = len(self._size) == 3 and self._is_plain_meta()
        read = self._slab if can_stream else self._part_of_whole()
        for box in slabs(whole, max(_PIECE_BYTES // plane, 1)):
            yield box, self._channels_first(read(box)).astype(self._header.dtype, copy=False)

    def _is_plain_meta(self) -> bool:
        is_meta = self._location.lower().endswith((".mha", ".mhd"))
        return is_meta and not re.search(rb"^CompressedData *= *True", self._start, re.I | re.M)

    def _slab(self, box: Box) -> np.ndarray:
        reader = self._reader()
        reader.SetExtractIndex((0, 0, box.origin[0]))
        reader.SetExtractSize((*self._size[:2], box.shape[0]))
        with self._reading():
            return self._itk.GetArrayFromImage(reader.Execute())

    def _part_of_whole(self) -> Any:  # noqa: ANN401 - a function of boxes
        with self._reading():
            image = self._reader().Execute()
        # A view, and so with its image in a closure: it does not keep that alive.
        view, axis = self._itk.GetArrayViewFromImage(image), len(self._size) - 3
        if axis < 0:
            return lambda _box, _image=image: view[None]
        lead = (slice(None),) * axis
        return lambda box, _image=image: view[(*lead, box.slices()[0])]

    def _channels_first(self, stored: np.ndarray) -> np.ndarray:
        """(C, Z, Y, X) of what has times in front, or components behind."""
        if self._components > 1:
            return np.moveaxis(stored, -1, 0)
        return stored if stored.ndim == 4 else stored[None]

    def _described(self, reader: Any) -> Header:  # noqa: ANN401
        text = self._itk.GetPixelIDValueAsString(reader.GetPixelID())
        pixel, size = _PIXEL.fullmatch(text), dict(zip("xyzc", self._size, strict=False))
        if pixel is None or len(self._size) > 4 or ("c" in size and self._components > 1):
            found = f"{self._location} has pixels of {text} and shape {self._size}"
            raise VolumeError(self._key, found, "write (x, y, z) of numbers, or of vectors of them")
        notes = []
        if "c" in size:
            notes = [f"its 4th axis, of {size['c']}, is read as channels"]
        elif self._components > 1:
            size["c"] = self._components
        says_size = bool(_SAYS_SIZE.search(self._start))
        affine = _affine_of(reader) if says_size else None
        return Header(
            shape=shape_of(size),
            dtype=np.dtype(f"{_KINDS[pixel[2]]}{int(pixel[1]) // 8}"),
            grid=grid_of(affine) if affine is not None else Grid(),
            affine=affine,
            is_label=bool(_IS_LABEL.search(self._start)),
            notes=tuple(notes),
        )

    def _reader(self) -> Any:  # noqa: ANN401
        reader = self._itk.ImageFileReader()
        reader.SetFileName(self._location)
        return reader

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # all that SimpleITK raises
            said = str(error).strip().splitlines()[-1].strip()
            found = f"{self._location} cannot be read ({said})"
            raise VolumeError(self._key, found, "it is cut or damaged: restore it") from error


def _affine_of(reader: Any) -> Affine:  # noqa: ANN401
    """The affine (RAS+) of the first three axes; an image of one plane lies across z."""
    count = len(reader.GetSize())
    turn = np.eye(3)
    given = np.array(reader.GetDirection()).reshape(count, count)[:3, :3]
    turn[: len(given), : len(given)] = given
    steps, origin = np.ones(3), np.zeros(3)
    steps[:count], origin[:count] = reader.GetSpacing()[:3], reader.GetOrigin()[:3]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * steps, origin
    return flipped_world(affine)
