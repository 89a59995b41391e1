"""The volumes of a task as a table of cases, which `volume_paths` takes again."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from vcmodels.data.task_volume import TaskVolume
from vcmodels.data.volumes import spacing_text
from vcmodels.geometry.boxes import Box
from vcmodels.reporting import list_some
from vcmodels.volumes.places import write_atomic

Row = dict[str, str]
"""A text for each column."""
MOST_NAMED = 4


def case_rows(volumes: Iterable[TaskVolume], sides: Mapping[str, str]) -> list[Row]:
    """A row for each volume: where its arrays are, how it is divided, and what it holds.

    Args:
        volumes: of a task; parts of one have one row.
        sides: by name, what of a split each volume is used for, in words.
    """
    rows: dict[int, Row] = {}
    for volume in volumes:
        row = _row(volume, sides.get(volume.name, ""))
        first = rows.setdefault(id(volume.inputs), row)
        used = dict.fromkeys(
            word for one in (first, row) for word in one["Used"].split("+") if word
        )
        first["Used"] = "+".join(used)
    return list(rows.values())


def _row(volume: TaskVolume, side: str) -> Row:
    first, labels = volume.inputs[0], volume.labels.items()
    return {
        "SubjectID": volume.name,
        **{f"Channel_{number}": one.shown for number, one in enumerate(volume.inputs)},
        **{f"Label:{name}": label.shown for name, label in labels},
        "Split": volume.split or "",
        "Group": volume.group or "",
        "Cohort": volume.cohort or "",
        "Weight": f"{volume.weight:g}",
        "Used": side,
        "Shape": " x ".join(map(str, first.extent)),
        "Spacing": " x ".join(f"{n:g}" for n in volume.spacing) if volume.has_spacing else "",
        "Unit": volume.unit or "",
        "DType": "+".join(str(one.dtype) for one in volume.inputs),
        "Channels": str(volume.stored_channels),
    }


def used_sides(
    volumes: Sequence[TaskVolume],
    train: Sequence[Box | None],
    val: Sequence[Box | None],
    tested: Iterable[TaskVolume] = (),
) -> dict[str, str]:
    """By the name of a volume, whether it trains, validates, both, or is kept for testing."""
    found = {volume.name: "test" for volume in tested}
    for volume, trained, held in zip(volumes, train, val, strict=True):
        sides = [name for name, box in (("train", trained), ("val", held)) if box is not None]
        found[volume.name] = "+".join(sides)
    return found


def columns_of(rows: Iterable[Row]) -> list[str]:
    """All columns that any row has: channels and labels first, as they come."""
    names = dict.fromkeys(name for row in rows for name in row)
    leading = [name for name in names if name.startswith(("SubjectID", "Channel_", "Label:"))]
    return [*leading, *(name for name in names if name not in leading)]


def write_cases(path: Path, rows: Sequence[Row]) -> None:
    """Write a table of cases as CSV.

    Raises:
        OSError: it cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns_of(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())


def mixtures(volumes: Sequence[TaskVolume]) -> Iterator[str]:
    """A line for each of voxel size, type and channels that is not the same in all volumes."""
    looks: dict[str, Callable[[TaskVolume], str]] = {
        "voxel sizes": spacing_text,
        "types": lambda volume: "+".join(str(one.dtype) for one in volume.inputs),
        "channels": lambda volume: str(volume.stored_channels),
    }
    for what, look in looks.items():
        found: dict[str, list[str]] = {}
        for volume in volumes:
            found.setdefault(look(volume), []).append(volume.name)
        if len(found) > 1:
            each = sorted(found.items(), key=lambda pair: -len(pair[1]))
            told = (f"{value} in {len(names)} (such as {names[0]})" for value, names in each)
            yield f"{what} differ: {list_some(told, MOST_NAMED, between='; ')}"
