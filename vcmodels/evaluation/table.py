"""The scores of a report as rows: a CSV, and what a person reads on a terminal."""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from vcmodels.evaluation.report import Report, TargetScores, VolumeScores
from vcmodels.evaluation.summary import class_of
from vcmodels.volumes.places import write_atomic

COLUMNS = ("volume", "group", "split", "target", "class")


@dataclass(frozen=True)
class ClassRow:
    """The figures of one class, or of all of them together."""

    name: str
    """Of the class; empty for the mean over all, and where there are none."""
    figures: Mapping[str, float]
    """By the name of the figure without the class."""


def class_rows(scores: TargetScores) -> list[ClassRow]:
    """The figures of a target: all together, then those of each class."""
    by_class: dict[str, dict[str, float]] = {"": {}, **{name: {} for name in scores.classes}}
    for figure, value in scores.figures.items():
        base, name = class_of(figure, scores)
        by_class[name or ""][base] = value
    return [ClassRow(name, figures) for name, figures in by_class.items()]


def write_csv(report: Report, path: Path) -> None:
    """Write a row for each volume, target and class, and a column for each figure.

    The row of a target without a class is that of all its classes together. What is unknown is
    empty; numbers are written so that they are read back exactly.

    Args:
        report: whose volumes are written; figures over all of them are not.
        path: replaced if it is there.

    Raises:
        OSError: it cannot be written.
    """
    text = io.StringIO(newline="")
    rows = list(_rows(report))
    figures = list(dict.fromkeys(name for _, row in rows for name in row.figures))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *figures])
    for start, row in rows:
        values = [row.figures.get(name) for name in figures]
        shown = ["" if v is None or not isfinite(v) else repr(float(v)) for v in values]
        writer.writerow([*start, row.name, *shown])
    write_atomic(path, text.getvalue().encode())


def _rows(report: Report) -> Iterator[tuple[list[str], ClassRow]]:
    for volume in report.volumes:
        for target, scores in volume.targets.items():
            for row in class_rows(scores):
                yield [*_names(volume), target], row


def _names(volume: VolumeScores) -> list[str]:
    return [volume.name, volume.group or "", volume.split or ""]
