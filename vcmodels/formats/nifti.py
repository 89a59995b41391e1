"""NIfTI (.nii, .nii.gz), read by nibabel: voxels (x, y, z[, t]), x the fastest; affines as they are here."""

import base64
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from vcmodels.errors import VolumeError
from vcmodels.formats.base import ForeignImage, Format, Header, Piece, library, stored_type
from vcmodels.geometry.affine import Affine, offset_of, spacing_of
from vcmodels.geometry.boxes import Box
from vcmodels.scratch import scratch_folder
from vcmodels.volumes import Grid

_MM = {1: 1e3, 3: 1e-3}
"""Millimetres in the unit of this code in `xyzt_units`; all others are taken for them."""
_NAMING = ("descrip", "aux_file", "db_name", "intent_name")
"""Fields of a header with free text, which may name a patient."""
_PIECE_BYTES = 1 << 22
_LABEL = 1002
_DAMAGE = (OSError, EOFError, ValueError, zlib.error)
"""What is raised for files that are cut or damaged, besides nibabel's own errors."""


class Nifti(Format):
    name = "nifti"
    endings = (".nii", ".nii.gz")

    def open(self, location: str, key: str) -> "NiftiImage":
        """Read the header; the place is that of the sform, else of the qform, as nibabel takes it."""
        return NiftiImage(location, key)


class NiftiImage(ForeignImage):
    """One NIfTI file, version 1 or 2."""

    def __init__(self, location: str, key: str) -> None:
        self._nibabel = nibabel = library("nibabel", location, key)
        self._location, self._key = location, key
        own = nibabel.spatialimages.HeaderDataError, nibabel.filebasedimages.ImageFileError
        self._damage = (*_DAMAGE, *own)
        stored = self._stored_header()
        self._offset = stored.get_data_offset()
        self._shape = self._squeezed(stored.get_data_shape())
        self._stored = np.dtype(stored.get_data_dtype())
        try:
            slope, shift = stored.get_slope_inter()
        except self._damage as error:
            raise self._damaged(error) from error
        self._scale = None if slope is None or (slope, shift) == (1, 0) else (slope, shift)
        self._header = self._described(stored)

    @property
    def header(self) -> Header:
        return self._header

    @property
    def files(self) -> Sequence[Path]:
        return [Path(self._location)]

    def pieces(self) -> Iterator[Piece]:
        """Planes in the order of z; of several times, a compressed file is unpacked first."""
        dtype, (depth, height, width) = self._header.dtype, self._header.shape[-3:]
        plane = prod(self._shape) // depth * self._stored.itemsize
        step = max(_PIECE_BYTES // plane, 1)
        with self._source() as source:
            spec = (self._shape, self._stored, self._offset, 1.0, 0.0)
            stored = self._nibabel.arrayproxy.ArrayProxy(source, spec, keep_file_open=True)
            for start in range(0, depth, step):
                end = min(start + step, depth)
                try:
                    voxels = np.asarray(stored[:, :, start:end]).T
                except self._damage as error:
                    raise self._damaged(error) from error
                channels_first = voxels if voxels.ndim == 4 else voxels[None]
                box = Box.between((start, 0, 0), (end, height, width))
                yield box, self._rescaled(channels_first).astype(dtype, copy=False)

    def _rescaled(self, stored: np.ndarray) -> np.ndarray:
        """Slope and intercept in double precision, as nibabel applies them."""
        if self._scale is None:
            return stored
        slope, shift = self._scale
        return stored * np.float64(slope) + np.float64(shift)

    @contextmanager
    def _source(self) -> Iterator[str]:
        """A file of which planes can be read in their order, at the cost of reading it once."""
        if len(self._shape) == 3 or not self._location.lower().endswith(".gz"):
            yield self._location
            return
        with scratch_folder() as folder:
            unpacked = folder / "unpacked.nii"
            with (
                self._nibabel.openers.ImageOpener(self._location) as packed,
                unpacked.open("wb") as out,
            ):
                try:
                    shutil.copyfileobj(packed, out, _PIECE_BYTES)
                except self._damage as error:
                    raise self._damaged(error) from error
            yield str(unpacked)

    def _stored_header(self) -> Any:  # noqa: ANN401 - of nibabel
        """The header without nibabel's corrections, which would hide that a voxel size is missing."""
        nibabel = self._nibabel
        with nibabel.imageglobals.LoggingOutputSuppressor():
            try:
                image = nibabel.load(self._location)
                if not isinstance(image, nibabel.Nifti1Image):
                    found = f"{self._location} is {type(image).__name__}, no image on a grid"
                    raise VolumeError(self._key, found, "give an image of voxels")
                with nibabel.openers.ImageOpener(self._location) as file:
                    stored = type(image.header).from_fileobj(file, check=False)
            except self._damage as error:
                raise self._damaged(error) from error
        self._affine = np.asarray(image.affine, np.float64)
        return stored

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

    def _described(self, stored: Any) -> Header:  # noqa: ANN401 - a header of nibabel
        affine, place_notes = self._placed(stored)
        x, y, z, *channels = self._shape
        dtype = stored_type(self._stored, self._location, self._key)
        times = [f"its axis of {n} behind (x, y, z) is read as channels" for n in channels]
        return Header(
            shape=(*channels, z, y, x),
            dtype=np.dtype(np.float32) if self._scale else dtype,
            grid=Grid() if affine is None else grid_of(affine),
            affine=affine,
            is_label=int(stored["intent_code"]) == _LABEL,
            original={"header": _without_names(stored)},
            notes=(*times, *place_notes),
        )

    def _placed(self, stored: Any) -> tuple[Affine | None, tuple[str, ...]]:  # noqa: ANN401
        """The affine in millimetres, if the header says a voxel size, and a word where it does not."""
        affine = self._affine.copy()
        affine[:3] *= _MM.get(int(stored["xyzt_units"]) & 7, 1.0)
        sizes = stored["pixdim"][1:4]
        says_sizes = stored["sform_code"] > 0 or (np.isfinite(sizes) & (sizes != 0)).all()
        if says_sizes and np.isfinite(affine).all() and np.linalg.det(affine[:3, :3]) != 0:
            return affine, ()
        return None, ("its header says no voxel size, and nothing of its place",)

    def _damaged(self, error: Exception) -> VolumeError:
        found = f"{self._location} cannot be read ({' '.join(str(error).split()) or type(error).__name__})"
        return VolumeError(self._key, found, "it is cut or damaged: restore it")


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
