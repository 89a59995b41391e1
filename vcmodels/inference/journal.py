"""What was started and what is finished, kept next to the arrays until the run is complete.

`<output>/.vcmodels/manifest.json` says what determines the result; each process notes in `done-*.jsonl`
files of its own each layer of blocks after its chunks are stored; `inputs.npz` says what the chunks of
the input were like, see `repair`. A chunk that exists proves nothing:
the ones that hold only the fill value are never stored, and another run may have written the rest.

Files are replaced, never appended to, so that the journal is the same on a disk and in an object
store. They are kept short: a line costs a few kilobytes at most.
"""

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import Box
from vcmodels.results import VERIFY
from vcmodels.volumes import Place

FOLDER = ".vcmodels"
"""Inside the output."""
LINES = 128
"""In one file."""
_MANIFEST = "manifest.json"
_INPUTS = "inputs.npz"

Manifest = dict[str, Any]
"""JSON values by dotted key: all that determines the voxels of the result."""


StoredSize = Callable[[Box, str], tuple[int, int] | None]
"""How many files a box of an array has, and their bytes; None where that is not to be had."""


@dataclass(frozen=True)
class JournalLine:
    """One line of the journal."""

    box: Box
    array: str = ""
    """Empty for level 0 of all targets."""
    stored: tuple[int, int] | None = None
    """What was measured when it was written; older journals have nothing."""

    @classmethod
    def of(cls, line: bytes) -> "JournalLine":
        """Read a line; raises ValueError or TypeError where it is damaged."""
        start, end, *more = json.loads(line)
        array, *stored = more or [""]
        files, size = stored or (0, 0)
        return cls(Box.between(start, end), array, (files, size) if stored else None)

    def line(self) -> str:
        """As it is written."""
        more = [self.array, *(self.stored or ())] if self.array or self.stored else ()
        return f"{json.dumps([self.box.origin, self.box.end, *more])}\n"


class Journal:
    """The journal of one output group, as one process reads and writes it.

    Args:
        root: the output group.
        check: called before a mark; raises when this process may not write any more.
        measure: by which a mark says what was stored.
    """

    def __init__(
        self,
        root: Place,
        check: Callable[[], None] = lambda: None,
        measure: StoredSize = lambda _box, _array: None,
    ) -> None:
        self.folder, self.check, self.measure = root / FOLDER, check, measure
        self._mine = ""
        self._lines: list[str] = []

    def manifest(self) -> Manifest | None:
        """What the run in progress was started with; None when there is none.

        Raises:
            OutputError: the file is damaged.
            RemoteError: a server does not give it.
        """
        place = str(self.folder / _MANIFEST)
        try:
            found = json.loads(self.folder.read(_MANIFEST))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise OutputError(place, f"is not JSON ({error})", VERIFY) from error
        except OSError as error:
            raise OutputError(place, f"cannot be read ({error})") from error
        if not isinstance(found, dict):
            raise OutputError(place, "holds no JSON object", VERIFY)
        return found

    def begin(self, manifest: Manifest, inputs: bytes | None = None) -> None:
        """Start a journal; what an older one holds is deleted first.

        Args:
            manifest: what determines the result.
            inputs: what the chunks of the input are like, if that is known.
        """
        self._forget()
        self.amend(manifest, inputs)

    def amend(self, manifest: Manifest, inputs: bytes | None = None) -> None:
        """Say that what is finished, and what follows, is of this manifest and these inputs."""
        text = json.dumps(manifest, indent=2, allow_nan=False, ensure_ascii=False)
        self.folder.delete(_INPUTS)  # before the manifest: a kill never pairs the old with the new
        self.folder.write(_MANIFEST, f"{text}\n".encode())
        if inputs is not None:
            self.folder.write(_INPUTS, inputs)

    def inputs(self) -> bytes | None:
        """What the chunks of the input were like; None where that was not noted."""
        try:
            return self.folder.read(_INPUTS)
        except FileNotFoundError:
            return None

    def done(self, array: str = "") -> list[Box]:
        """The layers that are written, by whom ever, or the blocks of another `array`; each once.

        Raises:
            OutputError: a file is damaged.
        """
        return sorted(
            {
                note.box
                for name in self._files()
                for note in self._notes(name)
                if note.array == array
            }
        )

    def drop_lost(self) -> list[JournalLine]:
        """Take out what is not stored any more as it was noted, and return it.

        Raises:
            OutputError: a file is damaged.
        """
        found: list[JournalLine] = []
        for name in self._files():
            notes = self._notes(name)
            lost = [n for n in notes if n.stored and self.measure(n.box, n.array) != n.stored]
            if lost:
                kept = [note.line() for note in notes if note not in lost]
                self.folder.write(name, "".join(kept).encode())
                found += lost
        return found

    def mark(self, *boxes: Box, array: str = "") -> None:
        """Note that all chunks of some boxes are stored; a kill leaves all of them noted, or none.

        The chunks of level 0 of all targets, or of the `array` that is named.

        Raises:
            RunError: this process may not write any more.
        """
        self.check()
        if not self._mine or len(self._lines) >= LINES:
            # Two that replace one file would lose each other's lines.
            self._mine, self._lines = f"done-{uuid.uuid4().hex}.jsonl", []
        self._lines += [JournalLine(box, array, self.measure(box, array)).line() for box in boxes]
        self.folder.write(self._mine, "".join(self._lines).encode())

    def remove(self) -> None:
        """Delete the journal's own files, and its folder if nothing else is in it."""
        self.folder.sweep()
        self.folder.delete(_INPUTS)  # before the notes: without them any input would seem to fit
        self._forget()
        # The manifest goes last: without it the rest would belong to nobody.
        self.folder.delete(_MANIFEST)
        self.folder.prune()

    def _notes(self, name: str) -> list[JournalLine]:
        try:
            return [JournalLine.of(line) for line in self.folder.read(name).splitlines()]
        except (ValueError, TypeError, RecursionError) as error:
            place = str(self.folder / name)
            raise OutputError(place, f"is damaged ({error})", VERIFY) from error

    def _files(self) -> list[str]:
        return sorted(name for name in self.folder.names() if name.startswith("done-"))

    def _forget(self) -> None:
        self._mine = ""
        self.folder.delete(*self._files())


_ADDED = {"pyramid": 0}
"""Keys that manifests have not always had, with what was done then; None needs no mention."""


def of_today(manifest: Mapping[str, Any]) -> Manifest:
    """A manifest, perhaps an older one, with all keys that are not None now."""
    return {**_ADDED, **manifest}


def digest(manifest: Mapping[str, Any]) -> str:
    """A sha256 of a manifest, by which an array says what it belongs to."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Manifest) -> list[str]:
    """What differs between two manifests, as `key was old, is new`."""
    return [
        f"{key} was {_short(old.get(key))}, is {_short(new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:60]}...({len(text)} characters)"
