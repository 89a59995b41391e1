"""Which chunks of the input changed since a run began, and whether anything finished has read them.

A listing tells chunks by name, size and time, so that a chunk that was damaged and put back makes
another input. The journal therefore keeps what each chunk was like. A run goes on where all that
changed has the bytes of before, or was never read for what is finished; else it is refused, so that
no result ever mixes two inputs.
"""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vcmodels.config.slices import readers_of
from vcmodels.geometry.boxes import Box, unit_box
from vcmodels.geometry.grid import BoxSet, PatchGrid
from vcmodels.volumes import Volume, is_remote
from vcmodels.volumes.location import join
from vcmodels.volumes.remote import StoredFile

if TYPE_CHECKING:
    from vcmodels.inference.job import Pipeline

MOST_HASHED = 1 << 30
"""Bytes of an input up to which its files are read for their content: seconds, next to a prediction."""
MOST_CHUNKS = 1 << 22
MOST_CHANGED = 10_000

_Index = tuple[int, ...]
_State = tuple[int, int]
"""Hashes of size and time, and of the bytes; 0 where the bytes were not read."""


@dataclass(frozen=True)
class InputRecord:
    """What the chunks of some inputs were like, and what their values become."""

    chunks: tuple[dict[_Index, _State], ...]
    """Of each input, by index in its array."""
    manner: int
    """A hash of all else that says what is read: metadata, and what values become."""

    @classmethod
    def of(cls, pipeline: "Pipeline", before: "InputRecord | None" = None) -> "InputRecord | None":
        """That of today; None where an input cannot be listed, or has too many chunks.

        Args:
            pipeline: its inputs and normalisation.
            before: an earlier record; where it knows the bytes of a chunk, they are read again.
        """
        listings = [volume.listing for volume in pipeline.inputs]
        found: list[dict[_Index, _State]] = []
        for number, (volume, listing) in enumerate(zip(pipeline.inputs, listings, strict=True)):
            if listing is None or len(listing.files) > MOST_CHUNKS:
                return None
            known = before.chunks[number] if before else None
            found.append(_states(volume, listing.files, known))
        return cls(tuple(found), _manner(pipeline))

    def to_bytes(self) -> bytes:
        """As a compressed file of NumPy."""
        arrays: dict[str, np.ndarray] = {"manner": np.uint64(self.manner).reshape(1)}
        for number, chunks in enumerate(self.chunks):
            arrays[f"index{number}"] = np.array(list(chunks), np.int64)
            arrays[f"state{number}"] = np.array(list(chunks.values()), np.uint64)
        out = io.BytesIO()
        np.savez_compressed(out, allow_pickle=False, **arrays)
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "InputRecord":
        """Undo `to_bytes`.

        Raises:
            ValueError, KeyError, OSError, EOFError: it is damaged.
        """
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            chunks = [
                dict(zip(map(tuple, index.tolist()), map(tuple, state.tolist()), strict=True))
                for index, state in (
                    (arrays[f"index{n}"], arrays[f"state{n}"])
                    for n in range((len(arrays.files) - 1) // 2)
                )
            ]
            return cls(tuple(chunks), int(arrays["manner"][0]))

    def changed(self, now: "InputRecord") -> list[set[_Index]]:
        """The chunks of each input that came, went, or have other bytes as far as is known."""
        return [
            {index for index in old.keys() | new.keys() if _differs(old.get(index), new.get(index))}
            for old, new in zip(self.chunks, now.chunks, strict=True)
        ]


def lets_continue(
    pipeline: "Pipeline", before: InputRecord, now: InputRecord, done: Iterable[Box]
) -> bool:
    """Whether what is finished would be the same on the input of today.

    Args:
        pipeline: its inputs, and the grid of patches.
        before: the input as it was.
        now: the input as it is.
        done: what is finished, in whole blocks.
    """
    if len(before.chunks) != len(now.chunks) or before.manner != now.manner:
        return False
    changed = before.changed(now)
    if sum(map(len, changed)) > MOST_CHANGED:
        return False
    finished = BoxSet.of(done)
    return not any(
        _has_read(finished, pipeline.grid, readers_of(pipeline.stack, _chunk_box(volume, index)))
        for volume, indices in zip(pipeline.inputs, changed, strict=True)
        for index in indices
    )


def _has_read(finished: BoxSet, grid: PatchGrid, box: Box) -> bool:
    """Whether a patch that touches the box touches anything finished."""
    return len(finished.within(grid.hull(box.intersect(Box((0, 0, 0), grid.extent))))) > 0


def _chunk_box(volume: Volume, index: _Index) -> Box:
    return unit_box(volume.axes.of(index), volume.storage_unit).intersect(volume.box)


def _states(
    volume: Volume, files: dict[_Index, StoredFile], known: dict[_Index, _State] | None
) -> dict[_Index, _State]:
    """Of each chunk; bytes are read where `known` has them, without it where they are few."""
    is_small = sum(file.size for file in files.values()) <= MOST_HASHED
    may_read = not is_remote(volume.location) and is_small
    found: dict[_Index, _State] = {}
    for index, file in files.items():
        stamp = _hash(f"{file.size} {file.stamp}".encode())
        old = known.get(index, (0, 0)) if known is not None else (0, 1)
        if old[0] == stamp:
            found[index] = old
        else:
            is_read = may_read and old[1] and file.size
            found[index] = (stamp, _content(volume, file) if is_read else 0)
    return found


def _content(volume: Volume, file: StoredFile) -> int:
    """A hash of a chunk's bytes; 0 where they cannot be read, which the prediction reports."""
    try:
        return _hash(Path(join(volume.location, file.name)).read_bytes())
    except OSError:
        return 0


def _differs(old: _State | None, new: _State | None) -> bool:
    if old is None or new is None:
        return True
    return old[0] != new[0] and (old[1] != new[1] or not old[1])


def _hash(data: bytes) -> int:
    """A hash of 64 bits that is not 0."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


def _manner(pipeline: "Pipeline") -> int:
    """Of the metadata, and of the statistics that are taken from the input itself."""
    taken = repr(pipeline.measured).encode()
    return _hash(b"\0".join([taken, *(_reading_of(volume) for volume in pipeline.inputs)]))


def _reading_of(volume: Volume) -> bytes:
    return volume.node.raw + volume.axes.choice.encode() + volume.read_rules
