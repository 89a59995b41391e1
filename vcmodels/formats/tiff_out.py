"""TIFF stacks: OME-TIFF, and for a plain `.tif` what ImageJ itself writes where that can hold it."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from vcmodels.formats.outgoing import Exporter, Outgoing, channel_slabs
from vcmodels.reporting import Advance

_LARGE = 2**32 - 2**26
"""Bytes from which on a file is a BigTIFF, which ImageJ's own form does not know."""
_COMPRESSION = 4
_IMAGEJ = ("uint8", "uint16", "float32")
_UNITS = {
    "meter": "m", "centimeter": "cm", "millimeter": "mm", "micrometer": "µm", "nanometer": "nm",
    "picometer": "pm", "angstrom": "Å",
}  # fmt: skip


class OmeTiffExporter(Exporter):
    """OME-XML says axes, voxel size and unit; compressed."""

    name = "tiff"
    dtypes = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")

    def write(self, image: Outgoing, path: Path, advance: Advance) -> None:
        with tifffile.TiffWriter(path, bigtiff=image.bytes > _LARGE, ome=True) as file:
            file.write(
                (
                    np.asarray(p)
                    for slab in channel_slabs(image, path.parent, advance)
                    for p in slab
                ),
                shape=image.plain_shape,
                dtype=image.dtype,
                photometric="minisblack",
                compression="zlib",
                compressionargs={"level": _COMPRESSION},
                metadata=_ome(image),
            )


class TiffExporter(OmeTiffExporter):
    """As ImageJ writes one channel of its types, up to 4 GB; all else as OME-TIFF."""

    def write(self, image: Outgoing, path: Path, advance: Advance) -> None:
        if image.channels > 1 or image.bytes > _LARGE or image.dtype.name not in _IMAGEJ:
            super().write(image, path, advance)
            return
        z, y, x = image.grid.spacing
        unit = _unit(image).replace("µ", "\\u00B5")
        with tifffile.TiffWriter(path, imagej=True) as file:
            file.write(
                (
                    np.asarray(p)
                    for slab in channel_slabs(image, path.parent, advance)
                    for p in slab
                ),
                shape=image.plain_shape,
                dtype=image.dtype,
                photometric="minisblack",
                metadata={"axes": "ZYX", "spacing": z, "unit": unit},
                resolution=(1 / x, 1 / y),
            )


def _ome(image: Outgoing) -> dict[str, Any]:
    sizes = dict(zip("ZYX", image.grid.spacing, strict=True))
    said = {f"PhysicalSize{axis}": size for axis, size in sizes.items()}
    units = {f"PhysicalSize{axis}Unit": _unit(image) for axis in sizes}
    return {"axes": "CZYX"[-len(image.plain_shape) :], "Name": image.name, **said, **units}


def _unit(image: Outgoing) -> str:
    """As OME-XML and ImageJ write it."""
    return _UNITS.get(image.grid.unit or "", "pixel")
