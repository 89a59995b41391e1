"""What the columns of a table of cases mean: the names of GaNDLF and its kin, whatever their case.

GaNDLF (mlcommons/GaNDLF, docs "Constructing the Data CSV") takes Channel, Modality or Image for inputs,
Label, Mask or Segmentation for the one label, and a subject. Several labels, splits, groups, cohorts
and weights are ours.
"""

import difflib
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from vcmodels.cohorts.base import only_label
from vcmodels.errors import TaskError

_INPUT = re.compile(r"(channel|modality|image|input)s?(?:_?(\d+)|_(?!id$)\w+|_?(?:path|file))?")
_ABOUT = re.compile(
    r".+_(type|kind|format|date|time|size|shape|spacing|quality|source|site|count|comments?|notes?|"
    r"description|orientation|resolution|plane|width|height|depth)"
)
"""What is said of images, such as Image_Type: no channel."""
_LABEL = "label|mask|segmentation|seg|ground_?truth"
_BARE = re.compile(rf"({_LABEL})s?(_?(path|file))?")
_NAMED = re.compile(rf"({_LABEL})s?\s*:\s*(.+)", re.IGNORECASE)
_OTHERS = {
    "subject": r"(subject|patient|participant|case)(_?(id|name))?|pid|id|name",
    "split": r"split|subset|partition",
    "group": r"group",
    "cohort": r"cohort|site|cent(er|re)|scanner|dataset",
    "weight": r"weight",
}
WRITTEN = ("shape", "spacing", "unit", "dtype", "channels", "used")
"""Columns of the tables that vcmodels writes that say what was found: they are not read, unless a
label has the name and no other column is said to be it."""
_KNOWN = (
    "channel", "modality", "image", "label", "mask", "segmentation", "subject", "subjectid",
    "patient", "split", "group", "cohort", "weight",
)  # fmt: skip
_CLOSE = 0.8


@dataclass(frozen=True)
class Columns:
    """Numbers of the columns of a table."""

    inputs: tuple[int, ...]
    """Channels in their order."""
    labels: dict[str, int]
    """By the name of the label."""
    others: dict[str, int]
    """By field of a case."""
    unread: tuple[str, ...] = ()
    """Names of columns that are not read."""


@dataclass
class _Found:
    inputs: list[tuple[int, int]] = field(default_factory=list)
    """Number of the channel, or where it stands, and of the column."""
    labels: dict[str, int] = field(default_factory=dict)
    bare: list[int] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


def read_header(cells: Sequence[str], names: Sequence[str], place: str) -> Columns:
    """What the columns mean.

    Args:
        cells: the header.
        names: of the labels that a volume of the task may have.
        place: the file and line, for messages.

    Raises:
        TaskError: no column is an input, two are the same, two labels have no name, a label is none
            of the task, or a name is nearly one that is known.
    """
    found = _Found()
    said = {named[2] for cell in cells if (named := _NAMED.fullmatch(cell.strip()))}
    for number, cell in enumerate(cells):
        if _is_written(cell.strip(), {*names} - said):
            continue
        _sort(found, number, cell.strip(), names, place)
    if not found.inputs:
        remedy = 'call the column of the images "Channel_0"'
        raise TaskError(place, f"no column is an input: {', '.join(cells)}", remedy)
    if len(found.bare) > 1:
        both = " and ".join(f'"{cells[n]}"' for n in found.bare)
        example = ", ".join(f'"Label:{name}"' for name in names[:2])
        raise TaskError(place, f"{both} do not say which label they are", f"write {example}")
    if found.bare:
        column = cells[found.bare[0]]
        name = only_label(names, f'{place}, "{column}"', f'write "{column}:NAME"')
        _note(found.labels, name, found.bare[0], place)
    return Columns(
        tuple(column for _, column in sorted(found.inputs)),
        found.labels,
        found.others,
        tuple(found.unread),
    )


def _is_written(cell: str, labels: Set[str]) -> bool:
    """Whether a column says what was found of a volume, or has no name."""
    return not cell or (cell.lower() in WRITTEN and cell not in labels)


def _sort(found: _Found, number: int, cell: str, names: Sequence[str], place: str) -> None:
    """Note what one column means."""
    plain = re.sub(r"[\s\-]+", "_", cell.lower())
    if cell in names:
        _note(found.labels, cell, number, place)
    elif named := _NAMED.fullmatch(cell):
        _note(found.labels, _label(named[2], names, place), number, place)
    elif _BARE.fullmatch(plain):
        found.bare.append(number)
    elif (image := _INPUT.fullmatch(plain)) and not _ABOUT.fullmatch(plain):
        channel = len(found.inputs) if image[2] is None else int(image[2])
        if channel in dict(found.inputs):
            raise TaskError(place, f'"{cell}" is channel {channel} again', "number each once")
        found.inputs.append((channel, number))
    elif key := next((k for k, rule in _OTHERS.items() if re.fullmatch(rule, plain)), None):
        _note(found.others, key, number, place)
    else:
        _refuse_near(cell, plain, place)
        found.unread.append(cell)


def _note(columns: dict[str, int], key: str, number: int, place: str) -> None:
    if key in columns:
        found = f"columns {columns[key] + 1} and {number + 1} are both the {key}"
        raise TaskError(place, found, "remove one of them")
    columns[key] = number


def _label(name: str, names: Sequence[str], place: str) -> str:
    if name not in names:
        found = f'"{name}" is no label of the task, which has {", ".join(names) or "none"}'
        near = difflib.get_close_matches(name, names, n=1)
        raise TaskError(place, found, f'did you mean "{near[0]}"?' if near else "correct it")
    return name


def _refuse_near(cell: str, plain: str, place: str) -> None:
    """Refuse what is probably a slip: a column that is not read would be missed late."""
    word = re.sub(r"_?\d+$", "", plain)
    near = difflib.get_close_matches(word, _KNOWN, n=1, cutoff=_CLOSE)
    if near:
        raise TaskError(place, f'"{cell}" is no column that is known', f'is "{near[0]}" meant?')
