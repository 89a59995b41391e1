"""Brain Imaging Data Structure: raw images by suffix, labels in `derivatives`.

See https://bids-specification.readthedocs.io.
A raw image is `sub-*/[ses-*/]<type>/<entities>_<suffix>.<ending>`. A label of it lies at the same
place in a folder of `derivatives`, as `<entities>_<suffix>_<label>` (as the spinal cord toolbox and
ivadomed write them) or `<entities>_<label>` (as the specification has them).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from vcmodels.cohorts.base import Case, CaseList, is_array, keep_one, stem_of, visible
from vcmodels.errors import TaskError
from vcmodels.section import Section

ROOT_FILE, DERIVATIVES = "dataset_description.json", "derivatives"
Suffix = Annotated[str, Field(min_length=1, max_length=200)]


class BidsCases(Section):
    """All subjects of a BIDS data set."""

    bids: Annotated[str, Field(min_length=1, max_length=4096)]
    """The folder with `dataset_description.json`."""
    input: Suffix | Annotated[list[Suffix], Field(min_length=1)]
    """Suffix of the images, such as `T2w`; several are channels."""
    labels: Annotated[dict[str, Suffix], Field(min_length=1)]
    """By the name of a label, how its files end, as in {"cord": "label-SC_mask"}."""
    pipeline: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """The folder in `derivatives` with the labels; all of them are looked at when null."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the channels, in order."""
        return (self.input,) if isinstance(self.input, str) else tuple(self.input)


@dataclass(frozen=True)
class _Image:
    """A raw image, or the first of several that are channels."""

    path: Path
    entities: str
    """Its name without suffix and ending."""
    subject: str


def read_bids(block: BidsCases, root: Path, source: str) -> CaseList:
    """The cases of a data set, by subject and session.

    Those that lack a channel, or all labels, are left out.

    Args:
        block: what is taken.
        root: its folder, as it is to stand in the locations.
        source: what messages call it.

    Raises:
        TaskError: it is no BIDS data set, nothing has the suffix, no image has a label, or an
            image or a label is there twice.
    """
    if not (root / ROOT_FILE).is_file():
        raise TaskError(source, f"has no {ROOT_FILE}", "name the folder that holds it")
    images = list(_images(root, block.suffixes[0]))
    if not images:
        found = f"holds no image with the suffix {block.suffixes[0]}"
        raise TaskError(source, found, "give the end of their names, such as T2w")
    homes = _homes(root, block.pipeline, source)
    cases, left = list[Case](), list[str]()
    for image in images:
        inputs = [_beside(image, suffix) for suffix in block.suffixes]
        labels = {
            name: str(found)
            for name, suffix in block.labels.items()
            if (found := _label(image, suffix, root, homes)) is not None
        }
        paths = tuple(str(path) for path in inputs if path is not None)
        if len(paths) == len(inputs) and labels:
            cases.append(Case(paths, labels, subject=image.subject, name=image.entities))
        else:
            left.append(image.entities)
    if not cases:
        ends = ", ".join(block.labels.values())
        raise TaskError(source, f"no image has a label that ends in {ends}", "correct labels")
    return _listed(cases, left, source)


def _listed(cases: list[Case], left: list[str], source: str) -> CaseList:
    text = "\n".join(f"{case.inputs} {dict(case.labels)}" for case in cases)
    note = f"{source}: images without a label, or a channel, left out: {len(left)}"
    notes = (f"{note}, such as {left[0]}",) if left else ()
    return CaseList(
        tuple(cases), hashlib.sha256(text.encode()).hexdigest(), notes, has_subjects=True
    )


def _images(root: Path, suffix: str) -> Iterator[_Image]:
    """The raw images with a suffix, sorted."""
    for pattern in ("sub-*/*", "sub-*/ses-*/*"):
        for folder in sorted(root.glob(pattern)):
            if folder.name.startswith("ses-"):
                continue
            for path in visible(folder):
                stem = stem_of(path.name)
                if stem.endswith(f"_{suffix}") and is_array(path):
                    subject = path.relative_to(root).parts[0]
                    yield _Image(path, stem.removesuffix(f"_{suffix}"), subject)


def _beside(image: _Image, suffix: str) -> Path | None:
    """The image of another suffix at the same place."""
    return _named(image.path.parent, (f"{image.entities}_{suffix}",))


def _homes(root: Path, pipeline: str | None, source: str) -> list[Path]:
    folder = root / DERIVATIVES
    homes = [path for path in visible(folder) if path.is_dir() and pipeline in (None, path.name)]
    if not homes:
        found = f"has no {DERIVATIVES}/{pipeline or ''}".rstrip("/")
        raise TaskError(source, found, "labels lie there; correct pipeline, or leave it out")
    return homes


def _label(image: _Image, suffix: str, root: Path, homes: list[Path]) -> Path | None:
    """The label of an image; None where it has none.

    Raises:
        TaskError: several folders of `derivatives` have one.
    """
    inner = image.path.parent.relative_to(root)
    stems = (f"{stem_of(image.path.name)}_{suffix}", f"{image.entities}_{suffix}")
    found = [path for home in homes if (path := _named(home / inner, stems)) is not None]
    if len(found) > 1:
        both = " and ".join(str(path) for path in found[:2])
        raise TaskError(str(image.path), f"has the labels {both}", 'choose with "pipeline"')
    return found[0] if found else None


def _named(folder: Path, stems: tuple[str, ...]) -> Path | None:
    """The array of the first of these names that is there.

    Raises:
        TaskError: two have the same name.
    """
    files: dict[str, Path] = {}
    for path in visible(folder):
        if (stem := stem_of(path.name)) in stems and is_array(path):
            keep_one(files, stem, path)
    return next((files[stem] for stem in stems if stem in files), None)
