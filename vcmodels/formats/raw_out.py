"""Formats that are a few lines of text, or a short header, before the voxels: NRRD, MetaImage, npy.

SimpleITK writes the first two from memory only, so the lines are written here: NRRD 0005
(https://teem.sourceforge.net/nrrd/format.html) and MetaIO
(https://itk.org/Wiki/MetaIO/Documentation). Several channels are the fastest axis, as ITK has them.
"""

import gzip
from pathlib import Path

import numpy as np

from vcmodels.formats.outgoing import Exporter, Outgoing, channel_slabs, slabs_of
from vcmodels.geometry.affine import flipped_world
from vcmodels.reporting import Advance

_COMPRESSION = 5
_MET = {
    "uint8": "MET_UCHAR", "int8": "MET_CHAR", "uint16": "MET_USHORT", "int16": "MET_SHORT",
    "uint32": "MET_UINT", "int32": "MET_INT", "float32": "MET_FLOAT", "float64": "MET_DOUBLE",
}  # fmt: skip
_NRRD = {name: name for name in (*_MET, "uint64", "int64")} | {
    "float32": "float",
    "float64": "double",
}


def _words(values: object) -> str:
    return " ".join(f"{n:.17g}" for n in np.ravel(np.asarray(values, np.float64)))


def _vector(values: np.ndarray) -> str:
    return f"({','.join(f'{n:.17g}' for n in values)})"


class NrrdExporter(Exporter):
    """Compressed by gzip."""

    name = "nrrd"
    dtypes = tuple(_NRRD)

    def write(self, image: Outgoing, path: Path, advance: Advance) -> None:
        with path.open("wb") as file:
            file.write(_nrrd_header(image).encode())
            with gzip.GzipFile("", "wb", _COMPRESSION, file, mtime=0) as packed:
                for slab in slabs_of(image, path.parent, advance):
                    packed.write(_interleaved(slab, image.dtype))


def _nrrd_header(image: Outgoing) -> str:
    affine, several = flipped_world(image.world), image.channels > 1
    sizes = [*([image.channels] if several else []), *image.extent[::-1]]
    directions = " ".join(map(_vector, affine[:3, :3].T))
    lines = [
        "NRRD0005",
        f"type: {_NRRD[image.dtype.name]}",
        f"dimension: {len(sizes)}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, sizes))}",
        f"space directions: {'none ' if several else ''}{directions}",
        f"kinds: {'vector ' if several else ''}domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(affine[:3, 3])}",
    ]
    return "\n".join(lines) + "\n\n"


class MetaImageExporter(Exporter):
    """Header and voxels in one file, not compressed: the header would have to say how small it gets."""

    name = "metaimage"
    dtypes = tuple(_MET)

    def write(self, image: Outgoing, path: Path, advance: Advance) -> None:
        with path.open("wb") as file:
            file.write(_meta_header(image).encode())
            for slab in slabs_of(image, path.parent, advance):
                file.write(_interleaved(slab, image.dtype))


def _meta_header(image: Outgoing) -> str:
    affine = flipped_world(image.world)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    several = [f"ElementNumberOfChannels = {image.channels}"] if image.channels > 1 else []
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = False",
        f"TransformMatrix = {_words((affine[:3, :3] / sizes).T)}",
        f"Offset = {_words(affine[:3, 3])}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {_words(sizes)}",
        f"DimSize = {' '.join(map(str, image.extent[::-1]))}",
        *several,
        f"ElementType = {_MET[image.dtype.name]}",
        "ElementDataFile = LOCAL",
    ]
    return "\n".join(lines) + "\n"


class NumpyExporter(Exporter):
    """(Z, Y, X) or (C, Z, Y, X), without a word of its place."""

    name = "npy"
    dtypes = (
        *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
        *("float16", "float32", "float64"),
    )

    def write(self, image: Outgoing, path: Path, advance: Advance) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(image.dtype),
            "fortran_order": False,
            "shape": image.plain_shape,
        }
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for slab in channel_slabs(image, path.parent, advance):
                file.write(np.ascontiguousarray(slab).data)


def _interleaved(slab: np.ndarray, dtype: np.dtype) -> memoryview:
    """(C, Z, Y, X) with the channel as the fastest axis, little-endian."""
    return np.ascontiguousarray(np.moveaxis(slab, 0, -1), dtype.newbyteorder("<")).data
