"""How centre lines are written: SWC, or what neuroglancer reads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from vcmodels.objects.centrelines import Centreline
from vcmodels.objects.forms import NANOMETER, segment_properties
from vcmodels.objects.table import ObjectTable
from vcmodels.volumes.places import write_atomic


class LineForm(Protocol):
    """A form of centre lines."""

    @property
    def unit(self) -> str | None:
        """In which positions are given; None: as the store has them."""
        ...

    def write(self, folder: Path, number: int, line: Centreline, unit: str | None) -> None:
        """Write the line of the object of this id; `unit` is that of the positions."""
        ...

    def finish(self, folder: Path, table: ObjectTable) -> None:
        """Write what is said of all objects together."""
        ...


@dataclass(frozen=True)
class Swc:
    """One SWC file an object: a line for each point, its parent before it; in micrometers.

    http://www.neuronland.org/NLMorphologyConverter/MorphologyFormats/SWC/Spec.html
    """

    unit: str | None = "micrometer"

    def write(self, folder: Path, number: int, line: Centreline, unit: str | None) -> None:
        order, parents = line.parents()
        place = {point: n for n, point in enumerate(order.tolist(), 1)} | {-1: -1}
        lines = [f"# object {number}", f"# unit {unit or 'unknown'}", "# number type x y z radius parent"]  # fmt: skip
        for point, parent in zip(order.tolist(), parents.tolist(), strict=True):
            x, y, z = line.points[point].tolist()
            radius = float(line.radii[point])
            lines.append(f"{place[point]} 0 {x:.9g} {y:.9g} {z:.9g} {radius:.6g} {place[parent]}")
        write_atomic(folder / f"{number}.swc", ("\n".join(lines) + "\n").encode())

    def finish(self, folder: Path, table: ObjectTable) -> None:
        """Nothing more."""


@dataclass(frozen=True)
class PrecomputedLines:
    """A source of skeletons of neuroglancer, with radii, and with the table.

    https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/skeletons.md
    """

    unit: str | None = NANOMETER

    def write(self, folder: Path, number: int, line: Centreline, unit: str | None) -> None:
        arrays = [
            np.array([len(line.points), len(line.edges)], "<u4"),
            line.points.astype("<f4"),
            line.edges.astype("<u4"),
            line.radii.astype("<f4"),
        ]
        write_atomic(folder / str(number), b"".join(array.tobytes() for array in arrays))

    def finish(self, folder: Path, table: ObjectTable) -> None:
        info = {
            "@type": "neuroglancer_skeletons",
            "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
            "vertex_attributes": [{"id": "radius", "data_type": "float32", "num_components": 1}],
            "segment_properties": "segment_properties",
        }
        write_atomic(folder / "info", json.dumps(info).encode())
        properties = json.dumps(segment_properties(table))
        write_atomic(folder / "segment_properties" / "info", properties.encode())


LINE_FORMS: Mapping[str, LineForm] = {"swc": Swc(), "precomputed": PrecomputedLines()}
"""By name, the first being the default."""
