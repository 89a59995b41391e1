"""Files that a killed process never leaves half written."""

import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

MARK = ".vcmodels-"
"""In the names of temporary files."""


def write_atomic(path: str | Path, data: bytes, keep: Path | None = None) -> None:
    """Replace a file in one step: whoever reads it sees the old bytes or the new, never a part.

    The folder is made if it is missing. Bytes and folder are synced, so the file also survives a
    power cut once this returns.

    Args:
        path: the file.
        data: its new content.
        keep: where in the same folder the old content goes, once the new one is on the disk.

    Raises:
        OSError: no permission, no space; the old file is then untouched and no litter stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same folder, because a rename across file systems is a copy and not atomic.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}{MARK}")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            # mkstemp makes files for the owner only; give the ones that plain open() would give.
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            keep_as(path, keep)
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # writing knows the handle alone
        raise
    sync_folder(path.parent)


def keep_as(path: str | Path, kept: str | Path) -> None:
    """Give the content of a file a second name in its folder, in one step.

    Raises:
        OSError: no permission, no space; what had the second name is then untouched.
    """
    kept = Path(kept)
    temporary = kept.with_name(f".{kept.name}{MARK}{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        try:
            temporary.hardlink_to(path)
        except OSError:  # FAT and some network file systems have no hard links
            shutil.copyfile(path, temporary)
        temporary.replace(kept)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: object) -> None:
    """Write JSON with `write_atomic`; NaN and infinity are refused (they are not JSON).

    Raises:
        ValueError: the value holds NaN or infinity.
    """
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    write_atomic(path, (text + "\n").encode())


def read_json(path: str | Path) -> Any:  # noqa: ANN401 - JSON is anything
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the bytes are not UTF-8 or not JSON (`json.JSONDecodeError` is one).
        RecursionError: it is nested absurdly deep.
    """
    return json.loads(Path(path).read_bytes())


def sync_folder(folder: str | Path) -> None:
    """Flush a folder's list of names to disk, so that a rename in it survives a power cut."""
    # Some network file systems refuse to open or to sync a folder; the rename itself stands.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep_temporaries(folder: str | Path) -> int:
    """Delete what killed `write_atomic` calls left in a folder; returns how many files."""
    litter = [p for p in Path(folder).glob(f".*{MARK}*") if p.is_file()]
    for path in litter:
        path.unlink(missing_ok=True)
    return len(litter)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
