"""Which chunks are stored where a store cannot be listed (http): asked one by one, many at a time."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from vcmodels.volumes.chunks import ChunkNames
from vcmodels.volumes.location import join
from vcmodels.volumes.remote import patiently, remote_files
from vcmodels.volumes.storage import StoredFile

PROBES = 64
"""Requests at a time."""
_BATCH = 16 * PROBES


def probe_chunks(
    location: str, names: ChunkNames, indices: Iterable[tuple[int, ...]]
) -> Iterator[tuple[tuple[int, ...], StoredFile]]:
    """Those of the chunks that exist, in order, with size and ETag (or time).

    Raises:
        RemoteError: the server answers neither yes nor no, after some tries.
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
    try:
        info = patiently("asked for", place, lambda: remote_files(place).info(place))
    except FileNotFoundError:
        return None
    stamp = next((info[k] for k in ("ETag", "Last-Modified") if k in info), "")
    return StoredFile(name, int(info.get("size") or 0), str(stamp))
