"""What was started and what is finished, kept beside the arrays until the run is complete.

`<output>/.vcmodels/manifest.json` says what determines the result; each process adds a line to a
`done-*.jsonl` of its own for each layer of blocks after its chunks are on the disk. A chunk that
exists proves nothing: the ones that hold the fill value alone are never stored, and another run may
have written the rest.
"""

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import Box
from vcmodels.volumes.files import read_json, sweep_temporaries, write_json

FOLDER = ".vcmodels"

Manifest = dict[str, Any]
"""JSON values by dotted key: all that determines the voxels of the result."""


class Journal:
    """The journal of one output group, as one process reads and writes it."""

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER
        self._manifest = self.folder / "manifest.json"
        # Two that append to one file, over a network at that, could mix their lines.
        self._mine = self.folder / f"done-{uuid.uuid4().hex}.jsonl"

    def manifest(self) -> Manifest | None:
        """What the run in progress was started with; None when there is none.

        Raises:
            OutputError: the file is damaged.
        """
        try:
            found = read_json(self._manifest)
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            remedy = "run with --overwrite to start again"
            raise OutputError(str(self._manifest), f"cannot be read ({error})", remedy) from error
        if not isinstance(found, dict):
            raise OutputError(
                str(self._manifest), "is not ours", "remove it or choose another folder"
            )
        return found

    def begin(self, manifest: Manifest) -> None:
        """Start a journal; what an older one said is gone first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._forget()
        write_json(self._manifest, manifest)

    def done(self, array: str = "") -> list[Box]:
        """The layers that are written, by whom ever, or the blocks of another `array`; each once.

        A last line without its end is from a kill, and counts for nothing.
        """
        found: set[Box] = set()
        for path in self._notes():
            text = path.read_text(encoding="ascii")
            lines = text[: text.rfind("\n") + 1].splitlines()
            notes = map(json.loads, lines)
            found |= {
                Box.between(start, end) for start, end, *of in notes if of == [array] * bool(array)
            }
        return sorted(found)

    def mark(self, *boxes: Box, array: str = "") -> None:
        """Note that all chunks of some boxes are on the disk; in one write, so a kill cuts the last.

        Those of level 0 of all targets, or of the `array` that is named.
        """
        of = [array] if array else []
        line = "".join(f"{json.dumps([box.origin, box.end, *of])}\n" for box in boxes).encode()
        handle = os.open(self._mine, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, line)
            os.fsync(handle)
        finally:
            os.close(handle)

    def remove(self) -> None:
        """Delete the journal's own files, and its folder if nothing else is in it."""
        if not self.folder.is_dir():
            return
        sweep_temporaries(self.folder)
        self._forget()
        # The manifest goes last: without it the rest would belong to nobody.
        self._manifest.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _notes(self) -> list[Path]:
        return sorted(self.folder.glob("done-*.jsonl"))

    def _forget(self) -> None:
        for path in self._notes():
            path.unlink(missing_ok=True)


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


def sweep_partials(array: Path) -> int:
    """Delete what killed chunk writes left in one of our arrays; returns how many files."""
    litter = [path for path in array.rglob("*.partial") if path.is_file()]
    for path in litter:
        path.unlink(missing_ok=True)
    return len(litter)
