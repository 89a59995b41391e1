"""TIFF stacks: `.ome.tif` says voxel size and unit for all, `.tif` as ImageJ does where it can."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from vcmodels.formats.outgoing import Exporter, Outgoing, channel_slabs
from vcmodels.reporting import Advance

_LARGE = 2**32 - 2**26
"""Bytes from which on a file is a BigTIFF, which ImageJ's own form does not know."""
_IMAGEJ = ("uint8", "uint16", "float32")
_UNITS = {
    "meter": "m", "centimeter": "cm", "millimeter": "mm", "micrometer": "µm", "nanometer": "nm",
    "picometer": "pm", "angstrom": "Å",
}  # fmt: skip


class TiffExporter(Exporter):
    name = "tiff"
    dtypes = (
        *("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
        *("float16", "float32", "float64"),
    )
    is_ome = False

    def write(self, image: Outgoing, path: Path, advance: Advance) -> None:
        is_large = image.bytes > _LARGE
        is_imagej = (
            not (self.is_ome or is_large or image.channels > 1) and image.dtype.name in _IMAGEJ
        )
        _, y, x = image.grid.spacing
        with tifffile.TiffWriter(path, bigtiff=is_large, ome=self.is_ome, imagej=is_imagej) as file:
            file.write(
                (
                    np.asarray(p)
                    for slab in channel_slabs(image, path.parent, advance)
                    for p in slab
                ),
                shape=image.plain_shape,
                dtype=image.dtype,
                photometric="minisblack",
                compression=None if is_imagej else "zlib",
                metadata=self._metadata(image, is_imagej=is_imagej),
                resolution=None if self.is_ome else (1 / x, 1 / y),
            )

    def _metadata(self, image: Outgoing, *, is_imagej: bool) -> dict[str, Any]:
        axes = "CZYX"[-len(image.plain_shape) :]
        unit = _UNITS.get(image.grid.unit or "", "")
        sizes = dict(zip("ZYX", image.grid.spacing, strict=True))
        if not self.is_ome:
            shown = "\\u00B5m" if unit == "µm" and is_imagej else unit or "pixel"
            return {"axes": axes, "spacing": sizes["Z"], "unit": shown}
        said = {f"PhysicalSize{axis}": size for axis, size in sizes.items()}
        units = {f"PhysicalSize{axis}Unit": unit or "pixel" for axis in sizes}
        return {"axes": axes, "Name": image.name, **said, **units}


class OmeTiffExporter(TiffExporter):
    name = "ome-tiff"
    dtypes = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
    is_ome = True
