"""All access to zarr: opening, reading, listing and writing volumes. Nothing else imports zarr."""

from vcmodels.volumes.axes import ChannelAxis, Reading
from vcmodels.volumes.backend import Storage
from vcmodels.volumes.collection import OME, ListedImage, read_members, write_collection
from vcmodels.volumes.location import expand_location, expand_pattern, is_remote
from vcmodels.volumes.multiscale import Blocks, Pyramid, write_volume
from vcmodels.volumes.nodes import MetadataError, group_attributes
from vcmodels.volumes.places import LocalPlace, ObjectPlace, Place, place_at, whole_folder
from vcmodels.volumes.reader import ArrayVolume, ChunkError, Volume, open_volume
from vcmodels.volumes.spacing import Grid
from vcmodels.volumes.writer import (
    Description,
    WritableArray,
    array_metadata,
    coarse_grid,
    create_array,
    image_label,
    is_array,
    set_group_attributes,
    write_multiscale_group,
)

__all__ = [
    "OME",
    "ArrayVolume",
    "Blocks",
    "ChannelAxis",
    "ChunkError",
    "Description",
    "Grid",
    "ListedImage",
    "LocalPlace",
    "MetadataError",
    "ObjectPlace",
    "Place",
    "Pyramid",
    "Reading",
    "Storage",
    "Volume",
    "WritableArray",
    "array_metadata",
    "coarse_grid",
    "create_array",
    "expand_location",
    "expand_pattern",
    "group_attributes",
    "image_label",
    "is_array",
    "is_remote",
    "open_volume",
    "place_at",
    "read_members",
    "set_group_attributes",
    "whole_folder",
    "write_collection",
    "write_multiscale_group",
    "write_volume",
]
