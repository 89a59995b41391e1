"""What was made of the blocks of a volume, kept in one file while the work goes on.

The file is a sequence of frames: a head, then bytes with a checksum. The first holds the identity of
the work as JSON, each other one the arrays of a block. A frame is appended when its block is
done; a kill may tear the last one, which is then dropped and its block done again. Nothing else is
ever rewritten.
"""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np

from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import Box
from vcmodels.metrics.base import BlockPart
from vcmodels.volumes.locks import FileLock

Identity = Mapping[str, Any]
"""JSON values by name: all that determines what is recorded."""

_HEAD = struct.Struct("<8s6qQI")
"""Mark, origin and shape of the block, bytes that follow, and the CRC-32 of all that and of them."""
_MARK = b"vcblock2"
_NO_BOX = Box((0, 0, 0), (0, 0, 0))


class BlockRecord:
    """The parts of a volume that are there, by block; threads may share it, processes may not.

    Args:
        path: the file; its folder is made.
        identity: what determines the parts. Those of another identity are dropped.

    Raises:
        OutputError: another process has it open.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._hold = FileLock(path)
        except BlockingIOError as error:
            remedy = "wait for it, or choose another folder"
            raise OutputError(str(path.parent), "another process works in it", remedy) from error
        self._file = path.open("r+b", buffering=0)
        self._lock = Lock()
        self._places: dict[Box, tuple[int, int]] = {}
        self._identity = _as_bytes(identity)
        self.changed = ""
        """In words, how the identity of what was dropped differs; empty where nothing was."""
        self._end = self._scan()

    def __contains__(self, box: Box) -> bool:
        return box in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, box: Box, part: BlockPart) -> None:
        """Keep the part of a block.

        Raises:
            OSError: it cannot be written, on a full disk say; what was kept before stays.
        """
        self._append(box, _packed(part))

    def parts(self, boxes: Iterable[Box], prefix: str = "") -> Iterator[tuple[Box, BlockPart]]:
        """The parts of some blocks in their order, read one by one.

        Args:
            boxes: of blocks that are kept.
            prefix: only arrays whose names begin so, without it.
        """
        for box in boxes:
            offset, size = self._places[box]
            yield box, _unpacked(os.pread(self._file.fileno(), size, offset), prefix)

    def digest(self) -> str:
        """A sha256 of the identity."""
        return hashlib.sha256(self._identity).hexdigest()

    def close(self, *, delete: bool = False) -> None:
        """Let go of the file; what is kept stays unless it is deleted."""
        self._file.close()
        self._hold.close(delete=delete)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _scan(self) -> int:
        """Find what is whole and of this identity; returns where the next frame goes."""
        kept, self._places, end = _scanned(self._file.fileno(), self._identity)
        if kept == self._identity:
            return end
        if kept is not None:
            self.changed = _difference(kept, self._identity)
        self._end = 0
        self._append(None, self._identity)
        return self._end

    def _append(self, box: Box | None, content: bytes) -> None:
        where = (box or _NO_BOX).origin + (box or _NO_BOX).shape
        head = _head(where, content)
        with self._lock:
            os.ftruncate(self._file.fileno(), self._end)  # what is torn, or of something else
            _write(self._file.fileno(), head + content, self._end)
            if box is not None:
                self._places[box] = self._end + len(head), len(content)
            self._end += len(head) + len(content)


def recorded(
    path: Path, identity: Identity, start: int = 0
) -> tuple[dict[Box, tuple[int, int]], int]:
    """Where the parts lie in a record that another process may be writing now, by block.

    Args:
        path: of the record.
        identity: of the parts that are wanted; a record of another one has none.
        start: where an earlier look at the same record ended.

    Returns:
        Offset and length of each part from there on, for `read_part`; and where it ends.

    Raises:
        OSError: it cannot be read; a record that is not there has no parts.
    """
    try:
        with path.open("rb", buffering=0) as file:
            if start:
                return _places_after(file.fileno(), start)
            return _scanned(file.fileno(), _as_bytes(identity))[1:]
    except FileNotFoundError:
        return {}, 0


def read_part(path: Path, place: tuple[int, int], prefix: str = "") -> BlockPart:
    """One part of a record.

    Args:
        path: of the record.
        place: as from `recorded`.
        prefix: only arrays whose names begin so, without it.
    """
    offset, size = place
    with path.open("rb", buffering=0) as file:
        return _unpacked(os.pread(file.fileno(), size, offset), prefix)


def _places_after(handle: int, start: int) -> tuple[dict[Box, tuple[int, int]], int]:
    places, end = dict[Box, tuple[int, int]](), start
    for box, offset, size in _frames(handle, start):
        places[box] = offset, size
        end = offset + size
    return places, end


def _as_bytes(identity: Identity) -> bytes:
    return json.dumps(identity, sort_keys=True).encode()


def _scanned(handle: int, identity: bytes) -> tuple[bytes | None, dict[Box, tuple[int, int]], int]:
    """The identity in a record, if it has one; the places of its parts if it is this; their end."""
    first = next(_frames(handle), None)
    if first is None:
        return None, {}, 0
    _, offset, size = first
    kept = os.pread(handle, size, offset)
    if kept != identity:
        return kept, {}, 0
    return kept, *_places_after(handle, offset + size)


def _head(where: tuple[int, ...], content: bytes) -> bytes:
    bare = _HEAD.pack(_MARK, *where, len(content), 0)
    return _HEAD.pack(_MARK, *where, len(content), zlib.crc32(content, zlib.crc32(bare)))


def _write(handle: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:  # one call writes up to 2 GiB
        written = os.pwrite(handle, rest, offset)
        rest, offset = rest[written:], offset + written


def _frames(handle: int, offset: int = 0) -> Iterator[tuple[Box, int, int]]:
    """Block, offset and length of the content of each whole frame, up to the first that is none."""
    end = os.fstat(handle).st_size
    while offset + _HEAD.size <= end:
        mark, *where, size, _ = _HEAD.unpack(head := os.pread(handle, _HEAD.size, offset))
        offset += _HEAD.size
        if mark != _MARK or offset + size > end:
            return
        if _head(tuple(where), os.pread(handle, size, offset)) != head:
            return
        z, y, x, depth, height, width = where
        yield Box((z, y, x), (depth, height, width)), offset, size
        offset += size


def _packed(part: BlockPart) -> bytes:
    """A line of JSON with name, type and shape of each array, then the bytes of all of them.

    An npz file says the same, but reading its ten heads takes as long as a tenth of a block.
    """
    arrays = [np.asarray(array) for array in part.values()]
    heads = [(n, a.dtype.str, a.shape) for n, a in zip(part, arrays, strict=True)]
    return b"".join([json.dumps(heads).encode(), b"\n", *(array.tobytes() for array in arrays)])


def _unpacked(content: bytes, prefix: str) -> BlockPart:
    heads, _, _ = content.partition(b"\n")
    start, part = len(heads) + 1, BlockPart()
    for name, kind, shape in json.loads(heads):
        dtype, count = np.dtype(kind), prod(shape)
        if name.startswith(prefix):
            flat = np.frombuffer(content, dtype, count, start)
            part[name.removeprefix(prefix)] = flat.reshape(shape).copy()
        start += count * dtype.itemsize
    return part


def _difference(kept: bytes, now: bytes) -> str:
    """The names of the values that differ."""
    before: Any = None
    with suppress(ValueError):
        before = json.loads(kept)
    if not isinstance(before, dict):
        return "what was recorded"
    after = json.loads(now)
    return ", ".join(k for k in {**before, **after} if before.get(k) != after.get(k))
