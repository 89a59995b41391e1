"""NIfTI files, written in pieces: with the header of the original, if there is one, to the byte.

Of the original's header only `dim`, `datatype`, `bitpix`, `vox_offset`, `magic`, `scl_slope`,
`scl_inter`, `cal_min` and `cal_max` change; `sform` and `qform` too where the voxels lie elsewhere.
"""

import base64
import gzip
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

from vcmodels.formats.base import ForeignImage
from vcmodels.formats.nifti import in_millimetres, millimetres
from vcmodels.formats.outgoing import Exporter, Outgoing, channel_slabs
from vcmodels.geometry.alignment import align
from vcmodels.reporting import Advance

_COMPRESSION = 5
"""Of gzip: labels become as small as with 9, in a third of the time."""
_LONGEST = np.iinfo(np.int16).max
_SIZE_OF_1, _SIZE_OF_2 = 348, 540
_SAME = 1e-3
"""Part of a voxel by which what a header says, rounded to float32, may lie off its affine."""


class NiftiExporter(Exporter):
    name = "nifti"
    dtypes = (
        *("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
        *("float32", "float64"),
    )
    keeps_scale = True

    def kept_of(self, image: ForeignImage) -> Mapping[str, Any]:
        """The header as it is in the file, with its texts: the file is named by who has it."""
        with ImageOpener(str(image.files[0])) as file:
            raw = file.read(_SIZE_OF_2)
        is_second = raw[:4] in (struct.pack("<i", _SIZE_OF_2), struct.pack(">i", _SIZE_OF_2))
        return {"header": base64.b64encode(raw if is_second else raw[:_SIZE_OF_1]).decode()}

    def write(self, image: Outgoing, path: Path, advance: Advance) -> None:
        header = header_of(image)
        dtype = image.dtype.newbyteorder(header.endianness)
        with self._file(path) as file:
            file.write(header.binaryblock)
            file.write(bytes(header.get_data_offset() - len(header.binaryblock)))
            for slab in channel_slabs(image, path.parent, advance):
                for plane in slab:
                    file.write(np.ascontiguousarray(plane, dtype).data)

    @contextmanager
    def _file(self, path: Path) -> Iterator[BinaryIO | gzip.GzipFile]:
        with path.open("wb") as file:
            yield file


class PackedNiftiExporter(NiftiExporter):
    """Compressed by gzip."""

    @contextmanager
    def _file(self, path: Path) -> Iterator[BinaryIO | gzip.GzipFile]:
        # Without a time and a name: the same voxels make the same file.
        with (
            path.open("wb") as file,
            gzip.GzipFile("", "wb", _COMPRESSION, file, mtime=0) as packed,
        ):
            yield packed


def header_of(image: Outgoing) -> Any:  # noqa: ANN401 - of nibabel
    """The header of the file."""
    z, y, x = image.extent
    shape = (x, y, z) if image.channels == 1 else (x, y, z, image.channels)
    header = _original(image, max(shape)) or _new(image, max(shape))
    header.set_data_shape(shape)
    header.set_data_dtype(image.dtype)
    header["scl_slope"], header["scl_inter"] = image.scale or (1, 0)
    header["cal_min"] = header["cal_max"] = 0
    header["magic"] = header.single_magic
    header["vox_offset"] = len(header.binaryblock) + 4  # four bytes say that nothing more follows
    return header


def _original(image: Outgoing, longest: int) -> Any:  # noqa: ANN401 - of nibabel
    """That of the file that the voxels come from; None if there is none, or it is too small."""
    stored = image.original.get("header")
    if stored is None:
        return None
    raw = base64.b64decode(stored)
    is_second = len(raw) >= _SIZE_OF_2
    if longest > _LONGEST and not is_second:
        return None
    raw = raw[:_SIZE_OF_2] if is_second else raw
    header = nib.Nifti2Header(raw) if is_second else nib.Nifti1Header(raw)
    if image.affine is not None and not _lies_there(header, raw, image):
        scaled = image.affine.copy()
        scaled[:3] /= millimetres(header)
        _place(header, scaled, 1)
    return header


def _lies_there(header: Any, raw: bytes, image: Outgoing) -> bool:  # noqa: ANN401 - of nibabel
    """Whether a header, which nibabel has corrected, says the place of an image."""
    stored = type(header)(raw, check=False)
    said = in_millimetres(stored, np.array(header.get_best_affine(), np.float64))
    if said is None or image.affine is None:
        return False
    found = align(image.affine, image.extent, said, image.extent)
    return found.voxels <= _SAME and found.grid_map.is_identity


def _new(image: Outgoing, longest: int) -> Any:  # noqa: ANN401 - of nibabel
    header = nib.Nifti2Header() if longest > _LONGEST else nib.Nifti1Header()
    header.set_data_shape((1, 1, 1))
    is_length = image.affine is not None or image.grid.unit is not None
    header.set_xyzt_units("mm" if is_length else 0)
    if image.is_label:
        header.set_intent("label")
    _place(header, image.world, 2 if image.affine is None else 1)
    return header


def _place(header: Any, affine: np.ndarray[Any, Any], code: int) -> None:  # noqa: ANN401
    """Say the affine in both ways; a sheared one in the first only, which goes before the other."""
    header.set_sform(affine, code)
    header.set_qform(affine, code, strip_shears=True)
