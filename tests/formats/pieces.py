"""What a file gives, put together from its pieces by their boxes."""

from pathlib import Path

import numpy as np

from vcmodels.formats import format_of
from vcmodels.formats.base import ForeignImage, Header


def opened(location: str | Path) -> ForeignImage:
    found = format_of(str(location))
    assert found is not None, location
    return found.open(str(location), "input")


def read(location: str | Path) -> tuple[Header, np.ndarray]:
    """(C, Z, Y, X); each voxel comes once."""
    image = opened(location)
    header, lead = image.header, image.header.shape[:-3] or (1,)
    found = np.zeros((*lead, *header.shape[-3:]), header.dtype)
    count = np.zeros(header.shape[-3:], int)
    for box, piece in image.pieces():
        assert piece.dtype == header.dtype
        found[(slice(None), *box.slices())] = piece
        count[box.slices()] += 1
    assert (count == 1).all()
    return header, found
