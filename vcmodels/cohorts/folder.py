"""Folders of images and labels with the same names, as nnU-Net and the decathlon have them.

`imagesTr` and `labelsTr`, `imagesTs` and `labelsTs` (which are for testing), or `images` and `labels`.
An image is called as its label is; `<case>_0000`, `<case>_0001` are its channels
(nnU-Net, documentation/dataset_format.md).
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from vcmodels.cohorts.base import Case, CaseList, arrays_in, keep_one, only_label, visible
from vcmodels.errors import TaskError
from vcmodels.reporting import list_some

PAIRS = (
    ("imagesTr", "labelsTr", None), ("imagesTs", "labelsTs", "test"), ("images", "labels", None),
)  # fmt: skip
MOST_NAMED = 3
_CHANNEL = re.compile(r"(.+)_(\d{4})")


def is_paired(folder: Path) -> bool:
    """Whether a folder has images and labels side by side."""
    return any((folder / images).is_dir() for images, _, _ in PAIRS)


def read_folder(folder: Path, source: str, names: Sequence[str]) -> CaseList:
    """The cases of a folder; images without a label, and files of no format, are left out.

    Args:
        folder: as it is to stand in the locations.
        source: what messages call it.
        names: of the labels that a volume of the task may have; the folder holds the only one.

    Raises:
        TaskError: there is no pair of folders, no label, a label without an image, channels that are
            not numbered from 0, or two files of one name.
    """
    name = only_label(names, source, "give a table of cases with a column for each label")
    cases, lonely = list[Case](), 0
    for images, labels, split in PAIRS:
        found, left = _cases(folder / images, folder / labels, name, split)
        cases, lonely = cases + found, lonely + left
    if not cases:
        raise TaskError(
            source,
            "holds no label of a format that is read",
            "give imagesTr and labelsTr, or images and labels",
        )
    listed = "\n".join(f"{case.inputs} {case.labels}" for case in cases)
    notes = [f"{source}: images without a label, left out: {lonely}"] if lonely else []
    notes += _unread(folder, source)
    return CaseList(tuple(cases), hashlib.sha256(listed.encode()).hexdigest(), tuple(notes))


def _unread(folder: Path, source: str) -> list[str]:
    """A line for the files that are of no format, but for the voxels of a header with their name."""
    found: list[str] = []
    for name in (name for images, labels, _ in PAIRS for name in (images, labels)):
        arrays = arrays_in(folder / name)
        others = {*visible(folder / name)} - {*arrays.values()}
        found += sorted(f"{name}/{path.name}" for path in others if path.stem not in arrays)
    given = f"{source}: of no format that is read, left out: {list_some(found, MOST_NAMED)}"
    return [given] if found else []


def _cases(images: Path, labels: Path, name: str, split: str | None) -> tuple[list[Case], int]:
    """The cases of a pair of folders, and how many images have no label."""
    masks = arrays_in(labels)
    channels: dict[str, dict[int, Path]] = {}
    for stem, path in arrays_in(images).items():
        number = 0
        if stem not in masks and (match := _CHANNEL.fullmatch(stem)):
            stem, number = match[1], int(match[2])
        keep_one(channels.setdefault(stem, {}), number, path)
    cases: list[Case] = []
    for stem, mask in masks.items():
        mine = channels.get(stem, {})
        if sorted(mine) != list(range(len(mine))) or not mine:
            found = (
                f"has channels {sorted(mine)} in {images}" if mine else f"has no image in {images}"
            )
            raise TaskError(str(mask), found, "add what is missing, or remove the label")
        inputs = tuple(str(mine[number]) for number in sorted(mine))
        cases.append(Case(inputs, {name: str(mask)}, subject=stem, split=split))
    return cases, len(channels.keys() - masks.keys())
