"""What an array holds, in a few JSON values: enough to find out later, and say, what has changed.

Names, sizes and times of all chunk files come from the listing. Times say for nothing that bytes
are others: a copy has new ones. So bytes are compared, too, where that is cheap: all of them up to
`WHOLE_FILES` files and `WHOLE_BYTES`, else the ends of `SAMPLED_FILES` files that are spread over
the array. Of a large array, files with other times are then believed to be a copy only when that
holds for all those files, and their bytes and the sizes of all are as before.
"""

import hashlib
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np

from vcmodels.volumes.listing import probe_chunks
from vcmodels.volumes.location import is_remote
from vcmodels.volumes.reader import Volume
from vcmodels.volumes.remote import StoredFile

WHOLE_FILES, WHOLE_BYTES = 4096, 128 << 20
SAMPLED_FILES, SAMPLED_BYTES = 64, 1 << 20
"""Files of a large array, and bytes at either end of each."""
PROBED_UNITS = 16
"""Chunks or shards that are asked for where a server lists nothing."""

_MEANING = ("extent", "channels", "dtype", "fill_value", "chunks", "shards")


def content_of(volume: Volume) -> dict[str, Any]:
    """What an array holds now: JSON values that `difference` compares.

    Raises:
        RunError: a server that lists nothing does not answer.
    """
    files = _stored_files(volume)
    total = sum(file.size for file in files)
    is_whole = len(files) <= WHOLE_FILES and total <= WHOLE_BYTES
    compared = [] if is_remote(volume.location) else files
    if not is_whole:
        compared = [compared[n] for n in _spread(len(compared), SAMPLED_FILES)]
    return {
        "location": volume.shown,
        **{key: _plain(getattr(volume, key)) for key in _MEANING},
        "axes": [*volume.axes.names, volume.axes.choice],
        "encoding": _encoding(volume),
        "files": len(files),
        "bytes": total,
        "sizes_sha256": _sha256(f"{file.name}\0{file.size}" for file in files),
        "stamps_sha256": _sha256(f"{file.name}\0{file.size}\0{file.stamp}" for file in files),
        "bytes_sha256": _bytes_sha256(volume, compared, whole=is_whole) if compared else None,
        "stamps": [] if is_whole else [file.stamp for file in compared],
    }


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words, how an array is other than it was; "" where it holds the same.

    Args:
        before: from `content_of`, perhaps of a copy elsewhere.
        now: from `content_of`.
    """
    for key in (*_MEANING, "axes"):
        if before.get(key) != now[key]:
            return f"{key} was {before.get(key)}, is {now[key]}"
    if before.get("encoding") != now["encoding"]:
        return "its metadata differs: codecs, order or names of chunks"
    if before.get("stamps_sha256") == now["stamps_sha256"]:
        return ""
    for key, what in (("files", "stored chunks"), ("bytes", "stored bytes")):
        if before.get(key) != now[key]:
            return f"{before.get(key)} {what}, now {now[key]}"
    if before.get("sizes_sha256") != now["sizes_sha256"]:
        return "its chunks have other names or sizes"
    if now["bytes_sha256"] is None or before.get("bytes_sha256") is None:
        return "its chunks have other times or tags"
    if before["bytes_sha256"] != now["bytes_sha256"]:
        return "the bytes of its chunks differ"
    stamps = before.get("stamps")
    is_kept = isinstance(stamps, list) and any(
        map(operator.eq, cast("list[object]", stamps), now["stamps"])
    )
    return "some of its chunks were written again" if is_kept else ""


def _plain(value: object) -> object:
    """As JSON gives it back."""
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, float):
        return repr(value)  # a fill value may be NaN
    return list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value


def _encoding(volume: Volume) -> str:
    """A sha256 of the metadata but for attributes, however it is written."""
    left_out = ("attributes", "consolidated_metadata")
    document = {k: v for k, v in volume.node.document.items() if k not in left_out}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _stored_files(volume: Volume) -> list[StoredFile]:
    """The chunk files by index; of a server that lists nothing, those of a few that are there."""
    if volume.listing is not None:
        return list(volume.listing.files.values())
    counts = volume.names.counts
    flat = _spread(prod(counts), PROBED_UNITS)
    indices = [tuple(int(i) for i in np.unravel_index(n, counts)) for n in flat]
    return [file for _, file in probe_chunks(volume.location, volume.names, indices)]


def _spread(count: int, most: int) -> list[int]:
    """At most so many of 0 ... count - 1, evenly."""
    step = max(count / most, 1)
    return [int(n * step) for n in range(min(count, most))]


def _sha256(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text}\0".encode())
    return digest.hexdigest()


def _bytes_sha256(volume: Volume, files: Sequence[StoredFile], *, whole: bool) -> str:
    """Of all bytes of some files, or of their ends."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"\0{file.name}\0{file.size}\0".encode())
        digest.update(_ends(Path(volume.location, file.name), file.size, whole=whole))
    return digest.hexdigest()


def _ends(path: Path, size: int, *, whole: bool) -> bytes:
    """The first and the last bytes of a file; what cannot be read is for the reader to name."""
    try:
        with path.open("rb") as file:
            if whole or size <= 2 * SAMPLED_BYTES:
                return file.read()
            head = file.read(SAMPLED_BYTES)
            file.seek(-SAMPLED_BYTES, 2)
            return head + file.read()
    except OSError:
        return b"unreadable"
