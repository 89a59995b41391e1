"""Stores behind a URL, and the bytes under a volume, local or remote.

Only we try a request again, object by object, in the same way for every protocol: the drivers'
own tries are switched off, since theirs times ours would be hours at a server that never answers.
"""

import asyncio
import importlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from zarr.abc.store import RangeByteRequest
from zarr.storage import FsspecStore, WrapperStore

from vcmodels.errors import RunError, VolumeError
from vcmodels.volumes.location import is_remote, join

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


PAUSES_S = (0.5, 1.0, 2.0, 4.0)
"""Before the second try, the third, ...: a server that restarts, or asks for less, gets 7.5 s."""
SILENCE_S = 60.0
"""How long a server may send nothing."""
CONNECT_S = 20.0
WHOLE_S = 900.0
"""What one object may take over http, however slowly it comes."""

_S3 = ("s3", "s3a")
_HTTP = ("http", "https")
_ABSENT = (404, 410)
FORBIDDEN = 403
"""What a bucket that may be read but not listed says of an object that is absent, too."""
_BUSY = (408, 409, 425, 429)
UNKNOWN = 501
"""The server does not have this kind of request."""
_CONFIGURED: Mapping[str, dict[str, Any]] = importlib.import_module("fsspec.config").conf
"""What the user has set by FSSPEC_<PROTOCOL> variables and in ~/.config/fsspec."""
_T = TypeVar("_T")


METADATA = ("zarr.json", ".zarray")
"""Files of which an array has one."""


def is_http(location: str) -> bool:
    """Whether a location is behind a server that lists nothing."""
    return location.partition("://")[0] in _HTTP


class RemoteError(RunError):
    """An object of a remote store that could not be had, after some tries where those may help.

    Args:
        place: its URL.
        found: what cannot be done with it, and what the server, or the lack of one, came to.
        remedy: what to do about it.
        status: what the server answered with, if it did.
    """

    def __init__(self, place: str, found: str, remedy: str, status: int | None = None) -> None:
        super().__init__(place, found, remedy)
        self.status = status


class Files(Protocol):
    """What is used of an fsspec file system."""

    def cat_file(self, path: str) -> bytes: ...
    def find(self, path: str, detail: bool) -> dict[str, dict[str, Any]]: ...
    def ls(self, path: str, detail: bool) -> list[str]: ...
    def rm(self, path: list[str]) -> object: ...
    def info(self, path: str) -> dict[str, Any]: ...
    def call_s3(self, method: str, **arguments: object) -> dict[str, Any]: ...
    def split_path(self, path: str) -> tuple[str, str, str | None]: ...


class PatientStore(WrapperStore[FsspecStore]):
    """A remote zarr store that tries again, and names the object that it failed on."""

    def __init__(self, store: FsspecStore, location: str) -> None:
        super().__init__(store)
        self._location = location
        self._is_blind: bool | None = None
        self._metadata: Sequence[str] = METADATA

    @classmethod
    def at(cls, location: str, *, read_only: bool) -> "PatientStore":
        """The store whose root is a URL."""
        options = {**_options(location), "asynchronous": True}
        store = FsspecStore.from_url(location, storage_options=options, read_only=read_only)
        _try_once(store.fs)
        return cls(store, location)

    def _with_store(self, store: FsspecStore) -> "PatientStore":
        return type(self)(store, self._location)

    async def get(
        self, key: str, prototype: "BufferPrototype", byte_range: "ByteRequest | None" = None
    ) -> "Buffer | None":
        """The bytes of an object; None when there is none.

        What is refused counts as absent where the server lists nothing and gives the metadata of
        the array: so speaks a bucket that may be read, but not listed.
        """
        if isinstance(byte_range, RangeByteRequest):
            require_bytes(byte_range)
        try:
            found = await self._patiently(
                "read", key, lambda: self._store.get(key, prototype, byte_range)
            )
        except FileNotFoundError:
            return None
        except RemoteError as error:
            if error.status != FORBIDDEN or not await self._means_absent(key, prototype):
                raise
            return None
        if found is not None and not len(found):
            # An empty shard would read as the fill value.
            raise ValueError("it is empty")
        return found

    async def _means_absent(self, key: str, prototype: "BufferPrototype") -> bool:
        """Whether a refusal of an object says no more than that there is none."""
        if self._is_blind is None:
            self._is_blind = await self._lists_nothing()
        return self._is_blind and await self._gives_metadata(key, prototype)

    async def _lists_nothing(self) -> bool:
        if is_http(self._location):
            return True
        try:
            await cast("Any", self._store.fs)._ls(self._location, detail=False)
        except PermissionError:
            return True
        return False

    async def _gives_metadata(self, key: str, prototype: "BufferPrototype") -> bool:
        for name in (n for n in self._metadata if n != key):
            try:
                found = await self._patiently(
                    "read", name, lambda n=name: self._store.get(n, prototype)
                )
            except FileNotFoundError:
                continue
            except RemoteError as error:
                if error.status != FORBIDDEN:
                    raise
                continue
            if found is not None:
                self._metadata = (name,)  # the others need not be asked for again
                return True
        return False

    async def set(self, key: str, value: "Buffer") -> None:
        """Write an object: all of it, or none."""
        await self._patiently("written", key, lambda: self._store.set(key, value))

    async def delete(self, key: str) -> None:
        """Delete an object if there is one."""
        await self._patiently("deleted", key, lambda: self._store.delete(key))

    async def exists(self, key: str) -> bool:
        """Whether there is an object."""
        return await self._patiently("asked for", key, lambda: self._store.exists(key))

    async def _patiently(self, verb: str, key: str, ask: Callable[[], Awaitable[_T]]) -> _T:
        place, tries = join(self._location, key), 0
        while True:
            try:
                return await ask()
            except remote_errors() as error:
                pause = pause_after(error, tries, verb, place)
            await asyncio.sleep(pause)
            tries += 1


def require_bytes(asked: RangeByteRequest, size: int | None = None) -> None:
    """Refuse what the index of a shard cannot mean: zarr reads such a chunk as the fill value.

    Args:
        asked: where a chunk should lie in its shard.
        size: bytes of the shard, or those up to which there are any; None where that is not known.

    Raises:
        ValueError: no byte, or some past the end.
    """
    if asked.end <= asked.start or (size is not None and asked.end > size):
        of = "" if size is None else f" of {size}"
        raise ValueError(f"the index of the shard gives bytes {asked.start} to {asked.end}{of}")


def patiently(verb: str, place: str, ask: Callable[[], _T]) -> _T:
    """What `ask` returns, asked again while that may help.

    Args:
        verb: what is done, such as "read", for messages.
        place: the URL that it is done with, for messages.
        ask: raises what drivers raise.

    Raises:
        FileNotFoundError: there is no such object.
        RemoteError: it cannot be had.
    """
    tries = 0
    while True:
        try:
            return ask()
        except remote_errors() as error:
            pause = pause_after(error, tries, verb, place)
        time.sleep(pause)
        tries += 1


def pause_after(error: Exception, tries: int, verb: str, place: str) -> float:
    """How many seconds to wait before an object is asked for again.

    Args:
        error: what the driver raised.
        tries: how many went before this one.
        verb: what is done, for messages.
        place: the object's URL.

    Raises:
        FileNotFoundError: there is no such object; `error` itself.
        RemoteError: trying again would not help, or was done often enough.
    """
    # fsspec wraps the errors of the drivers in its own.
    cause = error.__cause__ if isinstance(error.__cause__, _driver_errors()) else error
    status, code = _status(cause)
    # What fsspec's http makes of a lost connection is a FileNotFoundError, too.
    is_absent = isinstance(error, FileNotFoundError) and (
        status in _ABSENT or not isinstance(cause, _driver_errors())
    )
    if is_absent and code != "NoSuchBucket":
        raise error
    if status in _ABSENT and code != "NoSuchBucket":  # fsspec knows 404 only
        raise FileNotFoundError(place) from error
    if tries < len(PAUSES_S) and _may_pass(cause, status):
        return PAUSES_S[tries]
    often = f" {tries + 1} times" if tries else ""
    found = f"cannot be {verb} ({describe(cause)}{often})"
    raise RemoteError(place, found, _remedy(cause, status, code), status) from error


def remote_files(location: str) -> Files:
    """The fsspec file system of a URL.

    Raises:
        ImportError: the driver of this protocol is not installed.
        ValueError: the protocol is not known.
    """
    url_to_fs = importlib.import_module("fsspec.core").url_to_fs
    files = url_to_fs(location, **_options(location))[0]
    _try_once(files)
    return cast("Files", files)


def remote_errors() -> tuple[type[Exception], ...]:
    """What a failing request raises, for the drivers that are installed."""
    return (OSError, TimeoutError, *_driver_errors())


def describe(error: BaseException) -> str:
    """An error as a few words on one line; some have no text of their own."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__


def _driver_errors() -> tuple[type[Exception], ...]:
    return (
        *_named("aiohttp", "ClientError"),
        *_named("botocore.exceptions", "BotoCoreError", "ClientError"),
    )


def _named(module: str, *names: str) -> tuple[type[Exception], ...]:
    """Errors of a package; none where it is not installed."""
    try:
        found = importlib.import_module(module)
    except ImportError:
        return ()
    return tuple(getattr(found, name) for name in names)


def _status(error: BaseException) -> tuple[int | None, str]:
    """The status that a server answered with, and the name that S3 gives to its reason."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        answer = cast("dict[str, dict[str, Any]]", response)
        code = str(answer.get("Error", {}).get("Code", ""))
        return answer.get("ResponseMetadata", {}).get("HTTPStatusCode"), code
    status = getattr(error, "status", None)
    return (status if isinstance(status, int) else None), ""


def _may_pass(error: BaseException, status: int | None) -> bool:
    """Whether the same request may succeed a little later."""
    if status is not None:
        return (status >= 500 and status != UNKNOWN) or status in _BUSY
    botocore = _named("botocore.exceptions", "BotoCoreError")
    # Of these, the others say that something is not configured: no credentials, no region.
    passing = _named("botocore.exceptions", "HTTPClientError", "IncompleteReadError")
    invalid = (PermissionError, *_named("aiohttp", "InvalidURL"))
    return isinstance(error, passing) or not isinstance(error, (*botocore, *invalid))


def _remedy(error: BaseException, status: int | None, code: str) -> str:
    if code == "NoSuchBucket":
        return "check the name of the bucket, and AWS_ENDPOINT_URL"
    if status in (401, 403) or isinstance(error, PermissionError):
        return "check the credentials, and whether they may read, list and write there"
    if type(error).__name__ == "NoCredentialsError":
        return "set AWS_PROFILE or AWS_ACCESS_KEY_ID; for public data FSSPEC_S3='{\"anon\": true}'"
    return "check the address and the connection, then run again"


def _try_once(files: object) -> None:
    """Leave trying again to us; s3fs would do it five times."""
    if hasattr(files, "retries"):
        cast("Any", files).retries = 1


def _options(location: str) -> dict[str, Any]:
    """Timeouts, one try, and nothing remembered, on top of what the user's fsspec configuration says."""
    protocol = location.partition("://")[0]
    configured = _CONFIGURED.get(protocol, {})
    if protocol in _HTTP:
        timeout = importlib.import_module("aiohttp").ClientTimeout(
            total=WHOLE_S, sock_connect=CONNECT_S, sock_read=SILENCE_S
        )
        return {"client_kwargs": {**configured.get("client_kwargs", {}), "timeout": timeout}}
    if protocol in _S3:
        limits = {
            "connect_timeout": CONNECT_S,
            "read_timeout": SILENCE_S,
            "retries": {"total_max_attempts": 1},
        }
        return {
            "config_kwargs": {**configured.get("config_kwargs", {}), **limits},
            "use_listings_cache": False,  # others write there, too
            "max_concurrency": 1,  # else s3fs asks for the size of each chunk before it reads it
        }
    return {}


_DEEPEST = 8  # "c/0/0/0/0" is five; a limit, so that a loop of symlinks ends.


@dataclass(frozen=True, slots=True, order=True)
class StoredFile:
    """A file under an array: its name relative to the array, its bytes, and its version stamp."""

    name: str
    size: int
    stamp: str
    """mtime in ns for a local file; the ETag or LastModified of a remote one."""


def read_bytes(location: str, name: str, key: str, *, is_needed: bool = False) -> bytes | None:
    """The bytes of a small file under a node; None when there is none.

    What a server refuses (403) counts as absent, as that is how some say so; see `PatientStore`.

    Args:
        location: of the node.
        name: of the file below it, such as "zarr.json".
        key: the dotted task key, for messages.
        is_needed: a refusal is an error.

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
        if error.status == FORBIDDEN and not is_needed:
            return None
        raise VolumeError(key, f"{place} {error.found}", error.remedy) from error
    except OSError as error:
        raise VolumeError(key, f"{place} cannot be read ({describe(error)})") from error


def list_files(location: str, key: str) -> Iterator[StoredFile] | None:
    """All files under a node, in no particular order; None where they cannot or may not be listed.

    A local folder is listed too, with a `/` behind its name, before what is in it.
    """
    if not is_remote(location):
        return _list_local(location, key)
    if is_http(location):
        return None
    return _find_remote(location, key)


def _list_local(location: str, key: str) -> Iterator[StoredFile]:
    try:
        yield from _walk(Path(location), "", _DEEPEST)
    except OSError as error:
        found = f"{error.filename} cannot be listed ({error.strerror})"
        raise VolumeError(key, found, "check its permissions, and the disk") from error


def _walk(folder: Path, prefix: str, depth: int) -> Iterator[StoredFile]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if not _leads_to_folder(entry):
                with suppress(FileNotFoundError):  # a writer's own file, renamed since
                    size, changed = _size_and_time(entry)
                    yield StoredFile(name, size, str(changed))
            elif depth:
                yield StoredFile(f"{name}/", 0, "")
                with suppress(FileNotFoundError):
                    yield from _walk(Path(entry.path), f"{name}/", depth - 1)


def _leads_to_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _size_and_time(entry: "os.DirEntry[str]") -> tuple[int, int]:
    """Bytes and mtime in ns of a file; of a link that leads to nothing, 0 and its own."""
    try:
        status = entry.stat()
    except OSError:
        return 0, entry.stat(follow_symlinks=False).st_mtime_ns
    return status.st_size, status.st_mtime_ns


def _find_remote(location: str, key: str) -> Iterator[StoredFile] | None:
    files = _filesystem(location, key)
    try:
        found = patiently("listed", location, lambda: files.find(location, detail=True))
    except RemoteError as error:
        if error.status == FORBIDDEN:
            return None
        raise VolumeError(key, f"{location} {error.found}", error.remedy) from error
    return _as_stored(found, location.partition("://")[2])


def _as_stored(found: Mapping[str, dict[str, Any]], root: str) -> Iterator[StoredFile]:
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
