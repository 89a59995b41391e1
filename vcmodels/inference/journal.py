"""What was started and what is finished, kept beside the arrays until the run is complete.

`<output>/.vcmodels/manifest.json` says what determines the result; `done.jsonl` gets one line for
each slab after its chunks are in place. A chunk that exists proves nothing: the ones that hold the
fill value alone are never stored, and another run may have written the rest.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import Box
from vcmodels.volumes.files import read_json, sweep_temporaries, write_json

FOLDER = ".vcmodels"

Manifest = dict[str, Any]
"""JSON values by dotted key: all that determines the voxels of the result."""


class Journal:
    """The journal of one output group."""

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER
        self._manifest, self._done = self.folder / "manifest.json", self.folder / "done.jsonl"

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
        self._done.unlink(missing_ok=True)
        write_json(self._manifest, manifest)

    def done(self) -> list[Box]:
        """The slabs that are written. A last line without its end is from a kill, and dropped."""
        sweep_temporaries(self.folder)
        try:
            text = self._done.read_text(encoding="ascii")
        except FileNotFoundError:
            return []
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            os.truncate(self._done, len(whole))
        rows = (json.loads(line) for line in whole.splitlines())
        return [Box.between(start, end) for start, end in rows]

    def mark(self, box: Box) -> None:
        """Note that all chunks of a slab are in place; one short write, so a kill cannot mix two."""
        line = (json.dumps([box.origin, box.end]) + "\n").encode()
        handle = os.open(self._done, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
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
        # The manifest goes last: without it the rest would belong to nobody.
        for path in (self._done, self._manifest):
            path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


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


@contextmanager
def hold(root: Path) -> Iterator[None]:
    """Keep other processes off an output while the context lasts, however this one ends.

    Raises:
        OutputError: another process holds it, or the folder cannot be written.
    """
    path = root.with_name(f".{root.name}.lock")
    handle = _lock(path, root)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"pid {os.getpid()} on host {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _lock(path: Path, root: Path) -> int:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            found = f"cannot be written ({error.strerror})"
            remedy = "choose a writable folder"
            raise OutputError(
                "inference_params.output_dir", f"{path.parent} {found}", remedy
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(handle, 200).decode(errors="replace") or "another process"
            os.close(handle)
            remedy = "wait for it, or choose another output_dir"
            raise OutputError(str(root), f"in use by {holder}", remedy) from error
        # Its last holder may have deleted the file between our open and our lock.
        if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
            return handle
        os.close(handle)
