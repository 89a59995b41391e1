"""The content of files by a digest, remembered by their sizes and times: a second look costs nothing."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vcmodels.reporting import Advance
from vcmodels.volumes.places import read_json, write_json

VERSION = 2
"""Of what an import makes of a file; another one imports again."""
_READ_BYTES = 1 << 22
Stamp = list[str | int]
"""Path, bytes, and the time of the last change in ns."""


@dataclass(frozen=True)
class Known:
    """What was found out of the files at a location."""

    stamps: list[Stamp]
    sha256: str
    """Of the file, or of the sha256 and the place of each, in their order."""
    digest: str
    """Of that, the format and what is chosen inside: names the import."""


def content_of(files: Sequence[Path], places: Sequence[str], advance: Advance) -> str:
    """The sha256 of a file, or that of the sha256 of several, as raw bytes in their order.

    Args:
        files: to read.
        places: of each within the image, hashed with it where several are; none where only the
            order of files counts.
        advance: told the bytes that are read.

    Raises:
        OSError: one cannot be read.
    """
    each = [_sha256(path, advance) for path in files]
    if len(each) == 1:
        return each[0].hex()
    whole = hashlib.sha256(b"".join(each))
    for place in places:
        whole.update(f"{place}\0".encode())
    return whole.hexdigest()


def _sha256(path: Path, advance: Advance) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
            advance(len(data), path.name)
    return digest.digest()


def stamps_of(paths: Iterable[str | Path]) -> list[Stamp]:
    """The sizes and times of files and folders; a folder's time changes with the names in it.

    Raises:
        OSError: one is gone.
    """
    found = [(str(path), os.stat(path)) for path in paths]  # noqa: PTH116 - paths may be texts
    return [[path, there.st_size, there.st_mtime_ns] for path, there in found]


def remembered(folder: Path, location: str) -> Known | None:
    """What is known of a location; None if nothing is, or a file has changed."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        known = Known(**read_json(_note(folder, location)))
        if stamps_of(str(stamp[0]) for stamp in known.stamps) == known.stamps:
            return known
    return None


def remember(folder: Path, location: str, known: Known) -> None:
    """Keep what is known of a location."""
    write_json(_note(folder, location), asdict(known))


def _note(folder: Path, location: str) -> Path:
    name = hashlib.blake2b(f"{VERSION} {location}".encode(), digest_size=16).hexdigest()
    return folder / "known" / f"{name}.json"
