"""HDF5: one dataset, with the name of what is in it, in the chunks that it is stored in.

A voxel size that is a length is said as ilastik and Fiji (`element_size_um`) and as CREMI
(`resolution`, `offset`, in nm) do.
"""

from pathlib import Path

import h5py

from vcmodels.formats.outgoing import Exporter, Outgoing
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import tiles
from vcmodels.reporting import Advance
from vcmodels.volumes.spacing import in_unit, is_length


class Hdf5Exporter(Exporter):
    name = "hdf5"
    dtypes = (
        *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
        *("float16", "float32", "float64"),
    )

    def write(self, image: Outgoing, path: Path, advance: Advance) -> None:
        lead = image.plain_shape[:-3]
        with h5py.File(path, "w") as file:
            data = file.create_dataset(
                image.name.replace("/", "_"),
                shape=image.plain_shape,
                dtype=image.dtype,
                chunks=(
                    *lead,
                    *(min(pair) for pair in zip(image.chunks, image.extent, strict=True)),
                ),
                compression="gzip",
                shuffle=True,
            )
            _describe(data, image)
            for box in tiles(Box((0, 0, 0), image.extent), image.chunks):
                values = image.read(box)
                data[(*(slice(None) for _ in lead), *box.slices())] = values if lead else values[0]
                advance(box.voxels, "")


def _describe(data: h5py.Dataset, image: Outgoing) -> None:
    grid, attributes = image.grid, data.attrs
    attributes["axes"] = "czyx"[-len(image.plain_shape) :]
    if grid.is_known and is_length(grid.unit):
        attributes["resolution"] = in_unit(grid.spacing, grid.unit, "nanometer")
        attributes["offset"] = in_unit(grid.offset, grid.unit, "nanometer")
        attributes["units"] = "nanometer"
        attributes["element_size_um"] = in_unit(grid.spacing, grid.unit, "micrometer")
    if image.affine is not None:
        attributes["affine_ras_mm"] = image.affine  # of the index (x, y, z, 1)
