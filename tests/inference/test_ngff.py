"""Outputs before the validator of the OME-Zarr specification, which is another project's."""

import json

import numpy as np
import pytest
import zarr
from ome_zarr_models.v04.image import Image as Image04
from ome_zarr_models.v05.image import Image as Image05
from pydantic_zarr.v2 import ArraySpec

from vcmodels.volumes import Description, Grid, Storage, create_array, write_multiscale_group

# Its 0.4 model names a class that it imports for type checkers alone, which pydantic 2.14 wants.
Image04.model_rebuild(_types_namespace={"ArraySpec": ArraySpec})


def validated(place, version):
    """The image, and its multiscales; raises where the group breaks the specification."""
    image = {2: Image04, 3: Image05}[version].from_zarr(zarr.open_group(str(place), mode="r"))
    holder = image.attributes if version == 2 else image.ome_attributes
    return image, holder.multiscales


@pytest.mark.parametrize("version", [2, 3])
def test_the_validator_of_the_specification_opens_every_level(workplace, version):
    work = workplace(np.random.default_rng(0).random((9, 33, 34), np.float32))
    attributes = work.folder / "input.zarr" / "raw" / ".zattrs"
    grid = {"resolution": [5.0, 2.0, 1.0], "offset": [10.0, 20.0, 30.0], "units": "um"}
    attributes.write_text(json.dumps(json.loads(attributes.read_text()) | grid))
    work.run(pyramid=3, output_zarr_format=version)
    image, (scales,) = validated(work.folder / "out" / "net.zarr" / "value", version)
    assert [(axis.name, axis.type, axis.unit) for axis in scales.axes] == [
        (name, "space", "micrometer") for name in "zyx"
    ]
    assert [dataset.path for dataset in scales.datasets] == ["0", "1", "2", "3"]
    spacings, shifts = zip(
        *((d.coordinateTransformations[0].scale, d.coordinateTransformations[1].translation)
          for d in scales.datasets), strict=True
    )  # fmt: skip
    assert spacings == ([5, 2, 1], [5, 2, 2], [5, 4, 4], [10, 8, 8])
    for spacing, shift in zip(spacings, shifts, strict=True):
        half = (np.array(spacing) - spacings[0]) / 2
        np.testing.assert_allclose(shift, np.array([10, 20, 30]) + half)
    shapes = [image.members[d.path].shape for d in scales.datasets]
    assert shapes == [(9, 33, 34), (9, 33, 17), (9, 17, 9), (5, 9, 5)]


@pytest.mark.parametrize("version", [2, 3])
def test_an_image_with_channels_is_valid_too(tmp_path, version):
    place = tmp_path / "normals.zarr"
    for level, size in enumerate((8, 4)):
        create_array(
            str(place),
            str(level),
            shape=(3, size, size, size),
            chunks=(3, 4, 4, 4),
            dtype="u1",
            storage=Storage(version),
        )
    grid = Grid((1, 1, 1), unit="nanometer", axes=("c", "z", "y", "x"))
    levels = {"0": (1, 1, 1), "1": (2, 2, 2)}
    write_multiscale_group(
        str(place), grid, Description("normals"), levels=levels, zarr_format=version
    )
    _, (scales,) = validated(place, version)
    assert [axis.type for axis in scales.axes] == ["channel"] + ["space"] * 3
