"""Which chunks are stored where a store cannot be listed (http): asked one by one, many at a time."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from vcmodels.errors import RunError
from vcmodels.volumes.backend import remote_errors, remote_files
from vcmodels.volumes.chunks import ChunkNames
from vcmodels.volumes.location import join
from vcmodels.volumes.storage import StoredFile, describe

PROBES = 64
"""Requests at a time."""
TRIES = 3
_BATCH = 16 * PROBES
_ABSENT = (404, 410)


def probe_chunks(
    location: str, names: ChunkNames, indices: Iterable[tuple[int, ...]]
) -> Iterator[tuple[tuple[int, ...], StoredFile]]:
    """Those of the chunks that exist, in order, with size and ETag (or time).

    Raises:
        RunError: the server answers neither yes nor no, after some tries.
    """

    def probe(index: tuple[int, ...]) -> StoredFile | None:
        return _probe(location, names.name(index))

    rest = iter(indices)
    with ThreadPoolExecutor(PROBES) as pool:
        while batch := list(islice(rest, _BATCH)):
            files = pool.map(probe, batch)
            for index, file in zip(batch, files, strict=True):
                if file is not None:
                    yield index, file


def _probe(location: str, name: str) -> StoredFile | None:
    """One file, None when it is not there."""
    place = join(location, name)
    for last in (False,) * (TRIES - 1) + (True,):
        try:
            info = remote_files(place).info(place)
        except remote_errors() as error:
            # fsspec makes every failure a FileNotFoundError; its cause has the server's answer.
            if getattr(error.__cause__, "status", None) in _ABSENT:
                return None
            if last:
                cause = error.__cause__ or error
                raise RunError(
                    place, f"cannot be asked for ({describe(cause)})", "run again"
                ) from error
        else:
            stamp = next((info[k] for k in ("ETag", "Last-Modified") if k in info), "")
            return StoredFile(name, int(info.get("size") or 0), str(stamp))
    raise AssertionError("the last try returns or raises")
