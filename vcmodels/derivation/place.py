"""A store that appears at its place when all of it is written, and not before."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vcmodels.errors import OutputError
from vcmodels.volumes import expand_location, group_attributes, is_remote

KEY = "vcmodels"
"""The attribute under which everything of ours stands."""
OPTION = "--output"


def check_place(text: str, *, overwrite: bool) -> Path:
    """The place of an output; an earlier one there must be ours, and may go.

    Raises:
        OutputError: a URL, something that exists and may not be replaced, no folder to write to.
    """
    if is_remote(text):
        raise OutputError(OPTION, f"{text} is a URL", "give a local path")
    place = Path(expand_location(text))
    if place.is_symlink() or place.exists():
        if not overwrite:
            raise OutputError(str(place), "exists already", "choose another, or give --overwrite")
        if not _is_ours(place):
            found = "exists and was not written by vcmodels derive"
            raise OutputError(str(place), found, "choose another, or move it away")
    return place


def _is_ours(place: Path) -> bool:
    if place.is_symlink() or not place.is_dir():
        return False
    try:
        notes = group_attributes(str(place)).get(KEY)
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(notes, dict) and "derived_from" in notes


@contextmanager
def written_at(place: Path) -> Iterator[Path]:
    """A folder to write to, which gets its name when the block ends well, and is removed otherwise.

    Raises:
        OutputError: another process writes there, or the folder cannot be made.
    """
    partial = place.with_name(f".{place.name}.partial")
    with _held(place):
        shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
        try:
            partial.mkdir()
            yield partial
            _replace(place, partial)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _held(place: Path) -> Iterator[None]:
    """Keep other processes off a place, by a lock on a file beside it."""
    path = place.with_name(f".{place.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        found = f"{path.parent} cannot be written ({error.strerror})"
        raise OutputError(OPTION, found, "choose a writable folder") from error
    try:
        if not _is_locked(handle, path):
            raise OutputError(str(place), "another process writes it", "wait for it")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _is_locked(handle: int, path: Path) -> bool:
    """Lock a file that was opened; in vain if another has it, or has just deleted it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(handle).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


def _replace(place: Path, new: Path) -> None:
    """Rename; what was there of ours goes after that, so that a kill loses neither."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if _is_ours(place):  # what has come there since, and is not, makes the renaming fail
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)
