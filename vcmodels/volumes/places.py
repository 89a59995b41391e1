"""Folders to write to: on a disk, or below a prefix of an object store.

Both promise the same: a file that was written is all there or not at all, and stays when `write`
has returned.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from vcmodels.errors import OutputError, VolumeError
from vcmodels.volumes.location import expand_location, expand_pattern, is_remote, join
from vcmodels.volumes.locks import FileLock
from vcmodels.volumes.remote import Files, RemoteError, patiently, remote_files

MARK = ".vcmodels-"
"""In the names of temporary files."""


_NODE_FILES = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")


def store_around(place: str | Path) -> Path | None:
    """The outermost Zarr store that a local place is, or lies in; None if it is in none.

    A store is known by its files, or by a name that ends in `.zarr`. Links are followed.
    """
    real = Path(os.path.realpath(place))
    around = [f for f in (real, *real.parents) if f.suffix == ".zarr" or is_node(f)]
    return around[-1] if around else None


def is_node(folder: str | Path) -> bool:
    """Whether a local folder has the files of a Zarr group or array."""
    # Unlike Path.is_file, this is false, and no error, for a name that is too long.
    return any(os.path.isfile(Path(folder, name)) for name in _NODE_FILES)  # noqa: PTH113


def input_stores(inputs: Iterable[tuple[str, str]]) -> dict[Path, str]:
    """The local stores that inputs lie in, each with the key of the first that does.

    Args:
        inputs: keys and locations, as they were given. A pattern stands for all that it matches;
            one that is remote or cannot be expanded is passed over.
    """
    found: dict[Path, str] = {}
    for key, given in inputs:
        for location in _local_places(given):
            store = store_around(location) or Path(os.path.realpath(location))
            found.setdefault(store, key)
    return found


def refuse_in_stores(key: str, place: str | Path, stores: Mapping[Path, str]) -> None:
    """Refuse to write to a local place in a store that is read: it may be shared, or a mirror.

    Args:
        key: of the place, for the message.
        place: a file or folder, expanded; it need not exist.
        stores: from `input_stores`.

    Raises:
        OutputError: it lies in such a store, or is one.
    """
    if is_remote(str(place)):
        return
    real = Path(os.path.realpath(place))
    for folder in (real, *real.parents):
        if folder in stores:
            found = f"{real} lies in the input {folder} ({stores[folder]})"
            raise OutputError(key, found, "write elsewhere")


def refuse_in_store(key: str, place: str | Path) -> None:
    """Refuse to write a file, or another store, into a Zarr group or array that is there.

    Raises:
        OutputError: the local place lies in one.
    """
    real = Path(os.path.realpath(place))
    node = next((folder for folder in real.parents if is_node(folder)), None)
    if node is not None:
        raise OutputError(key, f"{real} lies in the Zarr store {node}", "write elsewhere")


def _local_places(given: str) -> list[str]:
    """The local paths that an input stands for; none for a URL or what is reported when opened."""
    try:
        location = expand_location(given)
        if is_remote(location):
            return []
        with suppress(VolumeError):
            return [location, *(place for _, place in expand_pattern(location))]
        return [location]
    except (VolumeError, OSError, ValueError):
        return []


def write_atomic(path: str | Path, data: bytes, keep: Path | None = None) -> None:
    """Replace a file in one step: whoever reads it sees the old bytes or the new, never a part.

    The folder is made if it is missing. Bytes and folder are synced, so the file also survives a
    power cut once this returns.

    Args:
        path: the file.
        data: its new content.
        keep: where in the same folder the old content goes, once the new one is on the disk.

    Raises:
        OSError: no permission, no space; the old file is then untouched and no litter stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same folder, because a rename across file systems is a copy and not atomic.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}{MARK}")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            # mkstemp makes files for the owner only; give the ones that plain open() would give.
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            keep_as(path, keep)
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # writing knows only the handle
        raise
    sync_folder(path.parent)


@contextmanager
def whole_file(path: str | Path) -> Generator[Path]:
    """A file to write, which replaces another in one step once the context ends without an error.

    As `write_atomic`, for what is too large for the memory or written by another program.

    Raises:
        OSError: no permission, no space; the old file is then untouched and no litter stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{MARK}{os.getpid()}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def keep_as(path: str | Path, kept: str | Path) -> None:
    """Give the content of a file a second name in its folder, in one step.

    Raises:
        OSError: no permission, no space; what had the second name is then untouched.
    """
    kept = Path(kept)
    temporary = kept.with_name(f".{kept.name}{MARK}{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        try:
            temporary.hardlink_to(path)
        except OSError:  # FAT and some network file systems have no hard links
            shutil.copyfile(path, temporary)
        temporary.replace(kept)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: object) -> None:
    """Write JSON with `write_atomic`; NaN and infinity are refused (they are not JSON).

    Raises:
        ValueError: the value holds NaN or infinity.
    """
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    write_atomic(path, (text + "\n").encode())


def read_json(path: str | Path) -> Any:  # noqa: ANN401 - JSON is anything
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the bytes are not UTF-8 or not JSON (`json.JSONDecodeError` is one).
        RecursionError: it is nested absurdly deep.
    """
    return json.loads(Path(path).read_bytes())


def cache_folder() -> str:
    """Where vcmodels keeps what it can make again, label indexes and imports; not expanded."""
    return f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/vcmodels"


def obstacle(folder: Path) -> str | None:
    """In words, why a folder cannot be made or written in; None where nothing speaks against it.

    Nothing is written to find out, so that a full disk, or a file system that takes no folders, is not seen.
    """
    for place in (folder, *folder.parents):
        try:
            if place.is_symlink() and not place.exists():
                return f"{place} is a link to nothing"
            if not place.exists():
                continue
        except OSError as error:
            return f"{place}: {error.strerror}"
        if not place.is_dir():
            return f"{place} is a file"
        return None if os.access(place, os.W_OK | os.X_OK) else f"{place} cannot be written"
    return None


def sync_folder(folder: str | Path) -> None:
    """Flush a folder's list of names to disk, so that a rename in it survives a power cut."""
    # Some network file systems refuse to open or to sync a folder; the rename itself stands.
    with suppress(OSError):
        sync(folder)


def sync(path: str | Path) -> None:
    """Flush a file, or a folder's list of names, to disk.

    Raises:
        OSError: it cannot be opened or synced.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_folder(
    place: Path, *, key: str | None = None, replaces: Callable[[Path], bool] = lambda _: False
) -> Generator[Path]:
    """A folder to write to, which gets its name when the block ends well, and is removed otherwise.

    Args:
        place: the name; the folders above are made if they are missing.
        key: what messages call it, instead of its path.
        replaces: whether what stands at the place then may go. It goes after the new folder has its
            name, so that a kill loses neither.

    Raises:
        OutputError: something else exists there, another process writes it, or it cannot be made.
    """
    partial, old = (place.with_name(f".{place.name}.{end}") for end in ("partial", "old"))
    if (place.exists() or place.is_symlink()) and not replaces(place):
        raise OutputError(str(place), "exists already", "choose another path or remove it")
    with _locked(place, key or str(place)):
        shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
        try:
            partial.mkdir()
            yield partial
            shutil.rmtree(old, ignore_errors=True)
            if replaces(place):  # what has come there since, and is not, makes the renaming fail
                place.rename(old)
            partial.rename(place)
            sync_folder(place.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked(place: Path, key: str) -> Generator[None]:
    """Keep other processes off a place, by a lock on a file next to it."""
    path = place.with_name(f".{place.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
    except BlockingIOError as error:
        raise OutputError(str(place), "another process writes it", "wait for it") from error
    except OSError as error:
        found = f"{path.parent} cannot be written ({error.strerror})"
        raise OutputError(key, found, "choose a writable folder") from error
    try:
        yield
    finally:
        lock.close(delete=True)


def sweep_temporaries(folder: str | Path) -> int:
    """Delete what killed `write_atomic` calls left in a folder; returns how many files."""
    litter = [p for p in Path(folder).glob(f".*{MARK}*") if p.is_file()]
    for path in litter:
        path.unlink(missing_ok=True)
    return len(litter)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_REFUSED = 412
"""The status of a request whose condition does not hold."""


@dataclass(frozen=True)
class LocalPlace:
    """A folder on a disk, which need not exist yet."""

    path: Path

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.name

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> "LocalPlace":
        return LocalPlace(self.path / name)

    def names(self) -> set[str]:
        """What is in it, files and folders; empty where there is no such folder."""
        return {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()

    def holds(self, name: str) -> bool:
        """Whether it has this file."""
        return (self.path / name).exists()

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        return (self.path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file, and wait until it is on the disk; folders are made as needed.

        Raises:
            OSError: it cannot be written; what was there is untouched.
        """
        write_atomic(self.path / name, data)

    def delete(self, *names: str) -> None:
        """Delete files, where they exist."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder with everything in it; a link stays."""
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path)

    def prune(self) -> None:
        """Delete the folder if nothing is in it."""
        if self.path.is_dir() and not self.names():
            self.path.rmdir()

    def prune_below(self) -> None:
        """Delete all folders below it in which there is no file."""
        for folder, _, _ in os.walk(self.path, topdown=False):
            if Path(folder) != self.path:
                LocalPlace(Path(folder)).prune()

    def sweep(self) -> None:
        """Delete the partial files that killed writes of zarr and `write` left, here and below."""
        for folder, _, names in os.walk(self.path):
            for name in names:
                if name.endswith(".partial") or (name.startswith(".") and MARK in name):
                    Path(folder, name).unlink(missing_ok=True)

    def is_obstructed(self) -> bool:
        """Whether a link or a file is in its place."""
        return self.path.is_symlink() or (self.path.exists() and not self.path.is_dir())


@dataclass(frozen=True)
class ObjectVersion:
    """An object as it was at one moment."""

    data: bytes
    version: str
    """Another one after each write."""
    age_s: float
    """Seconds since it was written, by the clock of the server."""


@dataclass(frozen=True)
class ObjectPlace:
    """The objects of an S3 store below a prefix; a write is one request, which happens or does not."""

    location: str

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.location.rpartition("/")[2]

    @property
    def _files(self) -> Files:
        return remote_files(self.location)  # fsspec keeps one for each process

    def __str__(self) -> str:
        return self.location

    def __truediv__(self, name: str) -> "ObjectPlace":
        return ObjectPlace(join(self.location, name))

    def names(self) -> set[str]:
        """What is in it."""
        try:
            found = patiently(
                "listed", self.location, lambda: self._files.ls(self.location, detail=False)
            )
        except FileNotFoundError:
            return set()
        own = self.location.partition("://")[2]
        return {path.rstrip("/").rpartition("/")[2] for path in found if path.rstrip("/") != own}

    def holds(self, name: str) -> bool:
        """Whether it has this object."""
        return self._head(name) is not None

    def read(self, name: str) -> bytes:
        """The bytes of an object.

        Raises:
            FileNotFoundError: there is none.
            RemoteError: it cannot be had.
        """
        place = join(self.location, name)
        return bytes(patiently("read", place, lambda: self._files.cat_file(place)))

    def write(self, name: str, data: bytes) -> None:
        """Write or replace an object.

        Raises:
            RemoteError: it cannot be written.
        """
        self._put(name, data)

    def delete(self, *names: str) -> None:
        """Delete objects, where they exist."""
        self._delete([join(self.location, name) for name in names])

    def remove(self) -> None:
        """Delete every object below the prefix.

        Raises:
            RemoteError: some of them are still there.
        """
        if found := self._find():
            self._delete(found)
            # s3fs says nothing about objects that the server did not delete.
            if left := self._find():
                found = f"{len(left)} objects cannot be deleted, such as {left[0]}"
                raise RemoteError(self.location, found, "check whether you may delete there")

    def prune(self) -> None:
        """Nothing: there are no folders."""

    def prune_below(self) -> None:
        """Nothing, as for `prune`."""

    def sweep(self) -> None:
        """Drop the uploads in parts, of objects over 100 MB, that were not ended."""
        bucket, prefix, _ = self._files.split_path(self.location)
        try:
            for key, upload in self._uploads(bucket, f"{prefix}/"):
                arguments = {"Bucket": bucket, "Key": key, "UploadId": upload}
                self._call("deleted", key, "abort_multipart_upload", **arguments)
        except (RemoteError, FileNotFoundError):
            return  # may not, or no such thing there; it costs space, and changes no voxel

    def is_obstructed(self) -> bool:
        """No: an object and a prefix of one name do not exclude each other."""
        return False

    def create(self, name: str, data: bytes) -> str | None:
        """Write an object if there is none of this name; its version, None if there is one.

        Args:
            name: of the object.
            data: which nobody else writes, so that it shows who was first when an answer is lost.
        """
        return self._put_if(name, data, IfNoneMatch="*")

    def replace(self, name: str, data: bytes, version: str) -> str | None:
        """Write an object if it still is this version; the new version, None if it is not.

        Args:
            name: of the object.
            data: as for `create`.
            version: as from `create`, `replace` or `look`.
        """
        return self._put_if(name, data, IfMatch=version)

    def look(self, name: str) -> ObjectVersion | None:
        """An object and how old it is; None if there is none.

        Raises:
            RemoteError: it cannot be had, or its server sends no time.
        """
        head = self._head(name)
        if head is None:
            return None
        try:
            data = self.read(name)  # perhaps newer than the version, which then replaces nothing
        except FileNotFoundError:
            return None
        date = head["ResponseMetadata"]["HTTPHeaders"].get("date")
        if date is None:
            found = "has no age (the server, or a gateway before it, sends no Date header)"
            remedy = "write to a folder, and copy the result there"
            raise RemoteError(join(self.location, name), found, remedy)
        now = parsedate_to_datetime(date)
        age = (now - head["LastModified"]).total_seconds()
        return ObjectVersion(data, str(head["ETag"]), age)

    def _find(self) -> list[str]:
        found = patiently(
            "listed", self.location, lambda: self._files.find(self.location, detail=True)
        )
        return sorted(found)

    def _delete(self, paths: list[str]) -> None:
        if paths:
            patiently("emptied", self.location, lambda: self._files.rm(paths))

    def _put_if(self, name: str, data: bytes, **condition: str) -> str | None:
        try:
            return self._put(name, data, **condition)
        except FileNotFoundError:
            return None
        except RemoteError as error:
            if error.status != _REFUSED:
                raise
        # The first try may have succeeded, and its answer been lost.
        found = self.look(name)
        return found.version if found and found.data == data else None

    def _put(self, name: str, data: bytes, **condition: str) -> str:
        bucket, key, _ = self._files.split_path(join(self.location, name))
        answer = self._call(
            "written", name, "put_object", Bucket=bucket, Key=key, Body=data, **condition
        )
        return str(answer["ETag"])

    def _head(self, name: str) -> dict[str, Any] | None:
        bucket, key, _ = self._files.split_path(join(self.location, name))
        try:
            return self._call("asked for", name, "head_object", Bucket=bucket, Key=key)
        except FileNotFoundError:
            return None

    def _uploads(self, bucket: str, prefix: str) -> Iterator[tuple[str, str]]:
        """(key, id) of uploads that were not ended; 1000 of them at most."""
        found = self._call("listed", "", "list_multipart_uploads", Bucket=bucket, Prefix=prefix)
        for upload in found.get("Uploads") or ():
            yield upload["Key"], upload["UploadId"]

    def _call(self, verb: str, name: str, method: str, **arguments: object) -> dict[str, Any]:
        place = join(self.location, name)
        return patiently(verb, place, lambda: self._files.call_s3(method, **arguments))


Place = LocalPlace | ObjectPlace


def place_at(location: str) -> Place:
    """The folder at an expanded location.

    Raises:
        OutputError: a URL that is not of an S3 store.
    """
    if not is_remote(location):
        return LocalPlace(Path(location))
    if not location.startswith(("s3://", "s3a://")):
        raise OutputError(location, "cannot be written to", "give a local folder, or s3://")
    return ObjectPlace(location)
