"""The bytes under a volume: metadata documents and file listings, local or remote."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vcmodels.errors import VolumeError
from vcmodels.volumes.location import is_remote, join
from vcmodels.volumes.remote import Files, RemoteError, describe, patiently, remote_files

_DEEPEST = 8  # "c/0/0/0/0" is five; a limit, so that a loop of symlinks ends.


@dataclass(frozen=True, slots=True, order=True)
class StoredFile:
    """A file under an array: its name relative to the array, its bytes, and its version stamp."""

    name: str
    size: int
    stamp: str
    """mtime in ns for a local file; the ETag or LastModified of a remote one."""


def read_bytes(location: str, name: str, key: str) -> bytes | None:
    """The bytes of a small file under a node; None when there is none.

    Args:
        location: of the node.
        name: of the file below it, such as "zarr.json".
        key: the dotted task key, for messages.

    Raises:
        VolumeError: no permission, no connection, or no driver for this kind of URL.
    """
    place = join(location, name)
    try:
        if not is_remote(location):
            return Path(place).read_bytes()
        files = _filesystem(location, key)
        return bytes(patiently("read", place, lambda: files.cat_file(place)))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except RemoteError as error:
        raise VolumeError(key, f"{place} {error.found}", error.remedy) from error
    except OSError as error:
        raise VolumeError(key, f"{place} cannot be read ({describe(error)})") from error


def list_files(location: str, key: str) -> Iterator[StoredFile] | None:
    """All files under a node, in no particular order; None where listing is not possible (http)."""
    if not is_remote(location):
        return _walk(Path(location), "", _DEEPEST)
    if location.startswith(("http://", "https://")):
        return None
    return _find_remote(location, key)


def _walk(folder: Path, prefix: str, depth: int) -> Iterator[StoredFile]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if not entry.is_dir():
                status = entry.stat(follow_symlinks=False)
                if entry.is_symlink() and Path(entry.path).exists():
                    status = entry.stat()
                yield StoredFile(name, status.st_size, str(status.st_mtime_ns))
            elif depth:
                yield from _walk(Path(entry.path), f"{name}/", depth - 1)


def _find_remote(location: str, key: str) -> Iterator[StoredFile]:
    files = _filesystem(location, key)
    try:
        found = patiently("listed", location, lambda: files.find(location, detail=True))
    except RemoteError as error:
        raise VolumeError(key, f"{location} {error.found}", error.remedy) from error
    root = location.partition("://")[2]
    for path, info in found.items():
        stamp = next((info[k] for k in ("ETag", "etag", "LastModified", "mtime") if k in info), "")
        # fsspec gives paths without the protocol, so count from the end of the node's own path.
        yield StoredFile(path.partition(f"{root}/")[2], int(info.get("size") or 0), str(stamp))


def _filesystem(location: str, key: str) -> Files:
    """The fsspec file system of a URL.

    Raises:
        VolumeError: the driver is not installed, or the protocol is unknown.
    """
    protocol = location.partition("://")[0]
    try:
        return remote_files(location)
    except ImportError as error:
        remedy = 'pip install "vcmodels[remote]"'
        raise VolumeError(key, f"reading {protocol}:// needs a driver", remedy) from error
    except ValueError as error:
        found = f"{protocol}:// cannot be opened ({describe(error)})"
        raise VolumeError(key, found, "use a local path, https:// or s3://") from error
