"""The mark at the end of a whole checkpoint, which can be looked for without reading the file."""

import os
from pathlib import Path

TRAILER = b"vcmodels-sha256:"
"""Followed by the sha256 of all that stands before."""
TRAILER_LENGTH = len(TRAILER) + 32


def is_sealed(path: Path) -> bool:
    """Whether a file ends as a checkpoint does; one that was cut does not, a flipped bit may.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) < TRAILER_LENGTH:
            return False
        file.seek(-TRAILER_LENGTH, os.SEEK_END)
        return file.read(len(TRAILER)) == TRAILER
