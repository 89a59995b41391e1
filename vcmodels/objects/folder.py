"""A folder of files of objects: what it says of itself, and what it holds until it is whole."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vcmodels.blockwise import Crew
from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import Box
from vcmodels.volumes import Volume
from vcmodels.volumes.places import read_json, write_json

SCRATCH = "unfinished"
"""What is needed until all files are written."""


def is_done(manifest: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a folder holds these files, whole.

    Args:
        manifest: of the folder, such as `meshes.json`; its name says what the folder holds.
        identity: JSON values that determine the files.

    Raises:
        OutputError: it is a file, or holds something else.
    """
    folder = manifest.parent
    if folder.exists() and not folder.is_dir():
        raise OutputError("-o", f"{folder} is a file", "name a folder")
    remedy = "name another folder, or remove it"
    if not manifest.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise OutputError("-o", f"{folder} holds other files", remedy)
        return False
    try:
        notes = read_json(manifest)
        before, is_complete = notes["identity"], notes["complete"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise OutputError("-o", f"{manifest} is none of vcmodels", remedy) from error
    differing = [key for key in identity if before.get(key) != identity[key]]
    if differing:
        found = f"{folder} holds {manifest.stem} of other {', '.join(differing)}"
        raise OutputError("-o", found, remedy)
    return bool(is_complete)


def note(
    manifest: Path, ids: Volume, unit: str | None, identity: Mapping[str, Any], *, is_complete: bool
) -> None:
    """Write what a folder holds, of which array, and whether it is whole."""
    import vcmodels  # late: the package imports this module

    notes = {
        "vcmodels": vcmodels.__version__,
        "complete": is_complete,
        "ids": ids.location,
        "unit": unit,
        "identity": dict(identity),
    }
    write_json(manifest, notes)


def remove_scratch(folder: Path, crew: Crew) -> None:
    """Remove what was needed, unless other parts may still read it."""
    scratch = folder / SCRATCH
    if crew.part.count == 1 and scratch.exists():
        shutil.rmtree(scratch)


def units(count: int, together: int) -> list[Box]:
    """So many objects as work, some in each: a box stands for those of its numbers along z."""
    return [
        Box((start, 0, 0), (min(together, count - start), 1, 1))
        for start in range(0, count, together)
    ]
