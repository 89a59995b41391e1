"""Tables of cases: CSV with commas, semicolons or tabs."""

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from vcmodels.cohorts.base import Case, CaseList
from vcmodels.cohorts.header import Columns, read_header
from vcmodels.errors import TaskError
from vcmodels.volumes.location import counted_from

SEPARATORS = (",", ";", "\t")
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class _Row:
    line: int
    """Of the file, the last one where a cell has several."""
    cells: tuple[str, ...]


def read_table(text: str, source: str, folder: str, names: Sequence[str]) -> CaseList:
    """The cases of a table.

    Lines that begin with `#` and lines without a value are left out. A path counts from the folder
    of the table, as in GaNDLF, unless it is absolute or a URL. An empty cell of a label: the case
    lacks it.

    Args:
        text: of the file.
        source: what messages call it.
        folder: that relative paths count from.
        names: of the labels that a volume of the task may have.

    Raises:
        TaskError: naming the line.
    """
    rows = _rows(text, source)
    header = next(rows, None)
    if header is None:
        raise TaskError(source, "is empty", "give a header and a line for each case")
    columns = read_header(header.cells, names, f"{source}, line {header.line}")
    cases: list[Case] = []
    seen: dict[tuple[str, ...], int] = {}
    groups: dict[str, str] = {}
    for row in rows:
        place = f"{source}, line {row.line}"
        case = _case(row, header, columns, folder, place)
        first = seen.setdefault(case.inputs, row.line)
        if first != row.line:
            raise TaskError(place, f"has the input of line {first}", "give each case once")
        if (
            case.subject
            and case.group
            and groups.setdefault(case.subject, case.group) != case.group
        ):
            found = f"{case.subject} is in group {groups[case.subject]} further up, in {case.group} here"
            raise TaskError(place, found, "give a subject one group")
        cases.append(case)
    if not cases:
        raise TaskError(source, "has a header and no case", "give a line for each case")
    notes = [f"{source}: columns that are not read: {', '.join(columns.unread)}"]
    return CaseList(
        tuple(cases),
        hashlib.sha256(text.encode()).hexdigest(),
        tuple(notes if columns.unread else ()),
    )


def _rows(text: str, source: str) -> Iterator[_Row]:
    """The rows with a value, cells stripped, without comments."""
    # A comment leaves an empty line, so that the reader counts as an editor does.
    lines = ["\n" if line.startswith("#") else line for line in io.StringIO(text, newline="")]
    first = next((line for line in lines if line.strip()), "")
    reader = csv.reader(lines, delimiter=max(SEPARATORS, key=first.count), strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield _Row(reader.line_num, tuple(cell.strip() for cell in cells))
    except csv.Error as error:
        place = f"{source}, line {reader.line_num}"
        raise TaskError(place, str(error), "correct the quotes there") from error


def _case(row: _Row, header: _Row, columns: Columns, folder: str, place: str) -> Case:
    wanted, extra = len(header.cells), row.cells[len(header.cells) :]
    if len(row.cells) < wanted or any(extra):
        found = f"has {len(row.cells)} cells, the header {wanted}"
        raise TaskError(
            place, found, "put paths with a separator in quotes, or add what is missing"
        )
    for number in (*columns.inputs, *columns.labels.values()):
        if "*" in row.cells[number]:
            remedy = "a * stands for many volumes in volume_paths itself"
            raise TaskError(place, f"{row.cells[number]} holds a *", remedy)
    for number in columns.inputs:
        if not row.cells[number]:
            raise TaskError(place, f'"{header.cells[number]}" is empty', "give its path")
    paths = {name: row.cells[number] for name, number in columns.labels.items()}
    labels = {name: counted_from(path, folder) for name, path in paths.items() if path}
    if not labels:
        raise TaskError(place, "has no label", "give the path of at least one, or remove the line")
    other = {key: row.cells[number] or None for key, number in columns.others.items()}
    return Case(
        tuple(counted_from(row.cells[number], folder) for number in columns.inputs),
        labels,
        subject=other.get("subject"),
        group=other.get("group"),
        cohort=other.get("cohort"),
        split=_split(other.get("split"), place),
        weight=_weight(other.get("weight"), place),
    )


def _split(text: str | None, place: str) -> str | None:
    if text is None or text.lower() in SPLITS:
        return text and SPLITS[text.lower()]
    raise TaskError(place, f'"{text}" is no split', "give train, val or test, or leave it empty")


def _weight(text: str | None, place: str) -> float | None:
    if text is None:
        return None
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0 < weight < inf:
        raise TaskError(place, f'"{text}" is no weight', "give a number above 0")
    return weight
