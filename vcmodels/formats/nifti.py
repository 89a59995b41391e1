"""NIfTI (.nii, .nii.gz), read by nibabel: voxels (x, y, z[, t]), x the fastest; affines as they are here."""

import base64
import errno
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np

from vcmodels.errors import VolumeError
from vcmodels.formats.base import (
    ForeignImage,
    Format,
    Header,
    Piece,
    library,
    refuse_inside,
    stored_type,
)
from vcmodels.geometry.affine import Affine, offset_of, spacing_of
from vcmodels.geometry.boxes import Box
from vcmodels.scratch import scratch_folder
from vcmodels.volumes import Grid

_MM = {1: 1e3, 3: 1e-3}
"""Millimetres in the unit of this code in `xyzt_units`; all others are taken for them."""
_NAMING = ("descrip", "aux_file", "db_name", "intent_name")
"""Fields of a header with free text, which may name a patient."""
_NO_SIZE = 'its header says no voxel size, and nothing of its place; give "spacing"'
_PIECE_BYTES = 1 << 22
_LABEL = 1002
_DAMAGE = (OSError, EOFError, ValueError, zlib.error)
"""What is raised for files that are cut or damaged, besides nibabel's own errors."""


class Nifti(Format):
    name = "nifti"
    endings = (".nii", ".nii.gz")

    def open(self, location: str, key: str) -> "NiftiImage":
        """Read the header; the place is that of the sform, else of the qform, as nibabel takes it."""
        refuse_inside(location, key)
        return NiftiImage(location, key)


class NiftiImage(ForeignImage):
    """One NIfTI file, version 1 or 2."""

    def __init__(self, location: str, key: str) -> None:
        self._nibabel = nibabel = library("nibabel", location, key)
        self._location, self._key = location, key
        own = nibabel.spatialimages.HeaderDataError, nibabel.filebasedimages.ImageFileError
        self._igzip = library("isal.igzip", location, key)
        self._damage = (*_DAMAGE, self._igzip.isal_zlib.error, *own)
        image, stored = self._loaded()
        self._voxels = image.dataobj
        self._shape = self._squeezed(image.shape)
        self._is_rescaled = (self._voxels.slope, self._voxels.inter) != (1, 0)
        self._header = self._described(stored, image.affine)

    @property
    def header(self) -> Header:
        return self._header

    @property
    def files(self) -> Sequence[Path]:
        return [Path(self._location)]

    def pieces(self) -> Iterator[Piece]:
        """Planes in the order of z; of several times, a compressed file is unpacked first."""
        dtype, (depth, height, width) = self._header.dtype, self._header.shape[-3:]
        plane = prod(self._shape) // depth * self._voxels.dtype.itemsize
        step = max(_PIECE_BYTES // plane, 1)
        spec = (self._shape, self._voxels.dtype, self._voxels.offset, 1.0, 0.0)
        with self._reading(), self._source() as path, self._opened(path) as file:
            stored = self._nibabel.arrayproxy.ArrayProxy(file, spec)
            for start in range(0, depth, step):
                end = min(start + step, depth)
                voxels = np.asarray(stored[:, :, start:end]).T
                channels_first = voxels if voxels.ndim == 4 else voxels[None]
                box = Box.between((start, 0, 0), (end, height, width))
                yield box, self._rescaled(channels_first).astype(dtype, copy=False)
            while file.read(_PIECE_BYTES):  # the checksum of gzip stands at the end
                pass

    def _opened(self, path: str) -> Any:  # noqa: ANN401 - a file of nibabel
        if path.lower().endswith(".gz"):
            return self._igzip.open(path)  # unpacks nearly three times as fast as nibabel's
        return self._nibabel.openers.ImageOpener(path)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except self._damage as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                found = f"there is no room to unpack {self._location} in {gettempdir()}"
                raise VolumeError(self._key, found, "set TMPDIR to a folder with room") from error
            said = " ".join(str(error).split()) or type(error).__name__
            found = f"{self._location} cannot be read ({said})"
            raise VolumeError(self._key, found, "it is cut or damaged: restore it") from error

    def _rescaled(self, stored: np.ndarray) -> np.ndarray:
        """Slope and intercept in double precision, as nibabel applies them."""
        if not self._is_rescaled:
            return stored
        return stored * np.float64(self._voxels.slope) + np.float64(self._voxels.inter)

    @contextmanager
    def _source(self) -> Iterator[str]:
        """A file of which planes can be read in their order, at the cost of reading it once."""
        if len(self._shape) == 3 or not self._location.lower().endswith(".gz"):
            yield self._location
            return
        with scratch_folder() as folder:
            unpacked = folder / "unpacked.nii"
            with self._opened(self._location) as packed, unpacked.open("wb") as out:
                shutil.copyfileobj(packed, out, _PIECE_BYTES)
            yield str(unpacked)

    def _loaded(self) -> tuple[Any, Any]:
        """The image, and its header without nibabel's corrections, which hide a missing voxel size."""
        nibabel = self._nibabel
        with nibabel.imageglobals.LoggingOutputSuppressor(), self._reading():
            image = nibabel.load(self._location)
            if not isinstance(image, nibabel.Nifti1Image):
                found = f"{self._location} is {type(image).__name__}, no image on a grid"
                raise VolumeError(self._key, found, "give an image of voxels")
            with self._opened(self._location) as file:
                return image, type(image.header).from_fileobj(file, check=False)

    def _squeezed(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(x, y, z) or (x, y, z, channels): axes of length 1 behind z are none.

        Raises:
            VolumeError: there are two axes more.
        """
        x, y, z, *others = (*map(int, shape), 1, 1)[: max(len(shape), 3)]
        lengths = [n for n in others if n > 1]
        if len(lengths) > 1 or 0 in (x, y, z, *others):
            found = f"{self._location} has shape {tuple(shape)}"
            raise VolumeError(
                self._key, found, "write (x, y, z) or (x, y, z, channels), and give that"
            )
        return (x, y, z, *lengths)

    def _described(self, stored: Any, affine: Affine) -> Header:  # noqa: ANN401 - of nibabel
        placed = in_millimetres(stored, affine)
        x, y, z, *channels = self._shape
        dtype = stored_type(self._voxels.dtype, self._location, self._key)
        times = [f"its axis of {n} behind (x, y, z) is read as channels" for n in channels]
        return Header(
            shape=(*channels, z, y, x),
            dtype=np.dtype(np.float32) if self._is_rescaled else dtype,
            grid=Grid() if placed is None else grid_of(placed),
            affine=placed,
            is_label=int(stored["intent_code"]) == _LABEL,
            original={"header": _without_names(stored)},
            notes=(*times, *([_NO_SIZE] if placed is None else [])),
        )


def millimetres(stored: Any) -> float:  # noqa: ANN401 - of nibabel
    """In the unit of a header."""
    return _MM.get(int(stored["xyzt_units"]) & 7, 1.0)


def in_millimetres(stored: Any, affine: Affine) -> Affine | None:  # noqa: ANN401 - of nibabel
    """The affine, if the header says a voxel size.

    Args:
        stored: a header of nibabel, as it is in the file.
        affine: that nibabel makes of it, in the header's unit.
    """
    sizes = stored["pixdim"][1:4]
    says_sizes = stored["sform_code"] > 0 or (np.isfinite(sizes) & (sizes != 0)).all()
    if not says_sizes or not np.isfinite(affine).all() or not np.linalg.det(affine[:3, :3]):
        return None
    factor = millimetres(stored)
    return np.diag([factor, factor, factor, 1.0]) @ affine


def grid_of(affine: Affine) -> Grid:
    """Voxel size and, where it can be said without an affine, place of a grid."""
    return Grid(spacing_of(affine), offset_of(affine), "millimeter", is_known=True)


def _without_names(stored: Any) -> str:  # noqa: ANN401 - a header of nibabel
    """The bytes of a header in base64, its free texts blank."""
    kept = stored.copy()
    for name in _NAMING:
        if name in kept:
            kept[name] = b""
    return base64.b64encode(kept.binaryblock).decode()
