"""All access to zarr: opening, reading, listing and writing volumes. Nothing else imports zarr."""

from vcmodels.volumes.axes import AS_STORED, ChannelAxis, Reading
from vcmodels.volumes.backend import Storage, group_attributes
from vcmodels.volumes.location import expand_location, expand_pattern, is_remote
from vcmodels.volumes.multiscale import Blocks, Pyramid, write_volume
from vcmodels.volumes.places import LocalPlace, ObjectPlace, Place, place_at, whole_folder
from vcmodels.volumes.reader import ArrayVolume, ChunkError, Volume, open_volume
from vcmodels.volumes.spacing import Grid
from vcmodels.volumes.writer import (
    Description,
    WritableArray,
    coarse_grid,
    create_array,
    is_array,
    set_group_attributes,
    write_multiscale_group,
)

__all__ = [
    "AS_STORED",
    "ArrayVolume",
    "Blocks",
    "ChannelAxis",
    "ChunkError",
    "Description",
    "Grid",
    "LocalPlace",
    "ObjectPlace",
    "Place",
    "Pyramid",
    "Reading",
    "Storage",
    "Volume",
    "WritableArray",
    "coarse_grid",
    "create_array",
    "expand_location",
    "expand_pattern",
    "group_attributes",
    "is_array",
    "is_remote",
    "open_volume",
    "place_at",
    "set_group_attributes",
    "whole_folder",
    "write_multiscale_group",
    "write_volume",
]
