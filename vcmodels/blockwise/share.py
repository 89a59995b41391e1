"""The blocks of a volume, shared by processes that may come, go and be killed.

Each process records what it did in a file of its own and reads the files of the others. It works on
its own share first, from the front, and then on what is left of the shares of others, from the back.
So nobody waits for anybody: a process alone does everything, and of one that was killed the others do
the rest. Two that meet do a block twice, which changes nothing, for a block is a pure function.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from vcmodels.blockwise.engines import Engine, ShouldStop, Threads, Work
from vcmodels.blockwise.record import BlockRecord, Identity, read_part, recorded
from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import Box
from vcmodels.metrics.base import BlockPart
from vcmodels.reporting import Reporter, Silent

_SUFFIX = ".blocks"
STOLEN = 16
"""Blocks of others that are begun at once: few, for their owner may be about to do them."""


@dataclass(frozen=True)
class Part:
    """One of so many workers that share a volume."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"part {self.index}/{self.count}: give 0/n to n-1/n")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Part(0, 1)


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Crew:
    """Who works on blocks, whom it tells of it, and what stops it."""

    engine: Engine = field(default_factory=Threads)
    part: Part = WHOLE
    reporter: Reporter = field(default_factory=Silent)
    should_stop: ShouldStop = _never


@dataclass(frozen=True)
class Measured:
    """The parts of all blocks of a volume, in the files of those who made them."""

    places: Mapping[Box, tuple[Path, tuple[int, int]]]
    """By block, in the order of the blocks."""

    def parts(self, prefix: str = "") -> Iterator[tuple[Box, BlockPart]]:
        """Each block with its part, in order, read one by one.

        Args:
            prefix: only arrays whose names begin so, without it.
        """
        for box, (path, place) in self.places.items():
            yield box, read_part(path, place, prefix)


class SharedRecord:
    """What several processes have made of the blocks of a volume.

    Args:
        folder: of the files of all of them; it is made.
        identity: what determines the parts; files of another identity are as if they were not there.
        part: which process this is.

    Raises:
        OutputError: another process works on the same part.
        OSError: a file cannot be read or written.
    """

    def __init__(self, folder: Path, identity: Identity, part: Part) -> None:
        self._folder, self._identity = folder, identity
        try:
            self._own = BlockRecord(folder / f"{part.index}-of-{part.count}{_SUFFIX}", identity)
        except OutputError as error:
            found = f"another process works in it as part {part}"
            remedy = "wait for it, or give each process its own --part I/N"
            raise OutputError(str(folder), found, remedy) from error
        self._known: dict[Path, tuple[int, dict[Box, tuple[int, int]]]] = {}

    def places(self) -> dict[Box, tuple[Path, tuple[int, int]]]:
        """Where the part of each block lies that anybody has done by now."""
        found: dict[Box, tuple[Path, tuple[int, int]]] = {}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            end, known = self._known.get(path, (0, {}))
            more, end = recorded(path, self._identity, end)  # only what is new is read
            known |= more
            self._known[path] = end, known
            found |= {box: (path, place) for box, place in known.items()}
        return found

    def add(self, box: Box, part: BlockPart) -> None:
        """Keep the part of a block, in the file of this process."""
        self._own.add(box, part)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._own.close()


def share_blocks(
    work: Work, blocks: Sequence[Box], folder: Path, identity: Identity, crew: Crew, name: str
) -> Measured | None:
    """Do the work of all blocks that nobody has done yet; None after a stop.

    Engine, order, and who does what decide nothing: the parts come back in the order of the blocks.

    Args:
        work: what is made of a block: a pure function of it.
        blocks: they do not overlap.
        folder: where processes that share the work keep their records.
        identity: what determines the parts.
        crew: who works here.
        name: of the bar, which counts voxels.

    Raises:
        OutputError: another process works on the same part.
        VcmodelsError: what the work raised; what was done before is kept.
    """
    total = sum(box.voxels for box in blocks)
    with (
        SharedRecord(folder, identity, crew.part) as record,
        crew.reporter.bar(name, total) as advance,
    ):
        shown = 0
        while not crew.should_stop():
            places = record.places()
            missing = [box for box in blocks if box not in places]
            now = total - sum(box.voxels for box in missing)
            advance(now - shown, "")
            shown = now
            if not missing:
                return Measured({box: places[box] for box in blocks})
            for box, part in crew.engine.run(
                work, _next(missing, blocks, crew.part), crew.should_stop
            ):
                record.add(box, part)
                advance(box.voxels, "")
                shown += box.voxels
    return None


def _next(missing: Iterable[Box], blocks: Sequence[Box], part: Part) -> list[Box]:
    """What is left of the own share, or the last blocks of the shares of others."""
    if part.count == 1:
        return list(missing)
    number = {box: at for at, box in enumerate(blocks)}
    left = list(missing)
    mine = [box for box in left if number[box] % part.count == part.index]
    if mine:
        return mine
    start = len(left) * part.index // part.count  # elsewhere than others that are done
    return (left[start:] + left[:start])[::-1][:STOLEN]
