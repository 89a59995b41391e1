"""DICOM: a series of images in a file or a folder, and labels as SEG or RTSTRUCT, through pydicom.

A folder is searched with all folders in it. Of several series one is chosen by `#` behind the
folder: its number as in the message that lists them, or the end of its UID. Of a file of labels,
`#` chooses one segment by its number or name.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from vcmodels.formats.base import ForeignImage, Format, library
from vcmodels.volumes.location import split_inside

_MAGIC, _MAGIC_AT = b"DICM", 128
_LOOKED_AT = 16


class Dicom(Format):
    """A file or a folder."""

    name = "dicom"
    endings = (".dcm", ".dicom", ".ima")
    is_private = True

    def recognises(self, location: str) -> bool:
        path = Path(location)
        if path.is_dir():
            return any(_is_dicom(file) for file in _first_files(path))
        return path.name.lower().endswith(self.endings) or _is_dicom(path)

    def open(self, location: str, key: str) -> ForeignImage:
        library("pydicom", location, key)
        # Late: it is no part of the base.
        from vcmodels.formats.dicom_labels import open_labels
        from vcmodels.formats.dicom_series import DicomImage, choose_series, find_series

        place, choice = split_inside(location)
        labels = open_labels(Path(place), choice, key)
        if labels is not None:
            return labels
        return DicomImage(choose_series(find_series(Path(place), key), choice, place, key), key)


def _is_dicom(path: Path) -> bool:
    """Whether a file has the mark of DICOM (PS3.10 7.1)."""
    try:
        with path.open("rb") as file:
            file.seek(_MAGIC_AT)
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _first_files(folder: Path) -> Iterator[Path]:
    """A few visible files of a folder, and of the first folders in it: there may be millions of others."""
    for number, (place, inner, names) in enumerate(os.walk(folder)):
        inner[:] = sorted(n for n in inner if n[0] != ".")[:_LOOKED_AT]
        shown = sorted(name for name in names if name[0] != ".")
        yield from (Path(place, name) for name in shown[:_LOOKED_AT])
        if number == _LOOKED_AT:
            return
