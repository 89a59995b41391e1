"""Extension point: files that are no Zarr, one file a format. Everything reads Zarr; these become one first."""

import os
from pathlib import PurePath

from vcmodels.formats.base import Format, without_ending
from vcmodels.formats.dicom import Dicom
from vcmodels.formats.hdf5 import Hdf5
from vcmodels.formats.itk import Itk
from vcmodels.formats.n5 import N5
from vcmodels.formats.nifti import Nifti
from vcmodels.formats.npy import Npy
from vcmodels.formats.tiff import Tiff
from vcmodels.volumes.location import is_remote, split_inside
from vcmodels.volumes.places import is_node

FORMATS: tuple[Format, ...] = (Nifti(), Tiff(), Hdf5(), Itk(), N5(), Npy(), Dicom())
"""The first that recognises a file reads it."""
_OF_FOLDERS: tuple[Format, ...] = (N5(), Dicom(), Tiff())
"""The same of folders: a picture or two among DICOM files does not make them a stack of TIFFs."""


def format_of(location: str) -> Format | None:
    """The format of a local file, or folder of files.

    None for Zarr, a URL, what does not exist and what nothing here reads: whoever opens it says so.

    Args:
        location: expanded; may choose something inside the file.
    """
    if is_remote(location):
        return None
    place, _ = split_inside(location)
    if not os.path.exists(place) or is_node(place):  # noqa: PTH110 - as in split_inside
        return None
    kinds = _OF_FOLDERS if os.path.isdir(place) else FORMATS  # noqa: PTH112
    return next((one for one in kinds if one.recognises(place)), None)


def file_stem(location: str) -> str:
    """The name of a file without its ending, `case` of `a/case.nii.gz`; "" of what is no such name."""
    name = PurePath(split_inside(location)[0]).name
    return without_ending(name, (ending for one in FORMATS for ending in one.endings))


def location_name(location: str) -> str:
    """What an array or a file is called: `case` of `a/case.nii.gz`, `cells` of `a.zarr/cells/0`.

    The last part of a location that is no number of a level, without its ending.
    """
    if stem := file_stem(location):
        return stem
    parts = [part for part in location.rstrip("/").split("/") if part and not part.isdecimal()]
    return parts[-1].removesuffix(".zarr").removesuffix(".ome") if parts else location
