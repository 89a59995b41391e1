"""A case: the arrays that belong to one volume, and what is said of them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vcmodels.errors import TaskError
from vcmodels.formats import file_stem, format_of
from vcmodels.volumes.places import is_node

Key = TypeVar("Key")


@dataclass(frozen=True)
class Case:
    """One row of a table, or what stands for it in a folder."""

    inputs: tuple[str, ...]
    """Locations of the channels, in order."""
    labels: Mapping[str, str]
    """Locations by the name of a label; those that the case has."""
    subject: str | None = None
    """Who or what it is of."""
    name: str | None = None
    """Of the volume; of the subject when null."""
    group: str | None = None
    """What must stay on one side of a split."""
    cohort: str | None = None
    """Where it is from."""
    split: str | None = None
    """`train`, `val` or `test`."""
    weight: float | None = None
    """How often it is drawn, relative to others."""

    def entry(self) -> dict[str, Any]:
        """The case as an entry of `volume_paths`, without what is not said."""
        first, *others = self.inputs
        said = {
            "name": self.name, "group": self.group, "cohort": self.cohort, "split": self.split,
            "weight": self.weight,
        }  # fmt: skip
        known = {key: value for key, value in said.items() if value is not None}
        return {"input": [first, *others] if others else first, **self.labels, **known}


@dataclass(frozen=True)
class CaseList:
    """The cases of one table or folder."""

    cases: tuple[Case, ...]
    identity: str
    """A sha256 of what says which cases there are."""
    notes: tuple[str, ...] = ()
    """What a person should know of how they were found; a line each."""
    has_subjects: bool = False
    """Whether each subject is a group, also one with a single case."""


def only_label(names: Iterable[str], subject: str, remedy: str) -> str:
    """The label that is meant where none is named.

    Raises:
        TaskError: there are several, or none.
    """
    listed = list(names)
    if len(listed) != 1:
        found = f"names no label, and the task has {', '.join(listed) or 'none'}"
        raise TaskError(subject, found, remedy)
    return listed[0]


_ZARR = re.compile(r"(\.ome)?\.zarr$", re.I)


def stem_of(name: str) -> str:
    """The name of an array without its ending: `case_1` of `case_1.nii.gz`.

    A name without an ending that is known is kept as it is: that of a DICOM folder may have dots.
    """
    return _ZARR.sub("", name) if _ZARR.search(name) else file_stem(name) or name


def is_array(path: Path) -> bool:
    """Whether a file or folder is of a format that is read, or is Zarr, if only by its name."""
    return bool(_ZARR.search(path.name)) or is_node(path) or format_of(str(path)) is not None


def arrays_in(folder: Path) -> dict[str, Path]:
    """What can be read in a folder by its name without ending, sorted; {} without such a folder.

    Raises:
        TaskError: two have the same name.
    """
    found: dict[str, Path] = {}
    for path in visible(folder):
        if is_array(path):
            keep_one(found, stem_of(path.name), path)
    return found


def keep_one(found: dict[Key, Path], key: Key, path: Path) -> None:
    """Note an array by what it is of.

    Raises:
        TaskError: there is one already.
    """
    if key in found:
        remedy = "remove one of them, or rename it"
        raise TaskError(str(path), f"means the same array as {found[key]}", remedy)
    found[key] = path


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; hidden entries left out, [] where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
