"""How meshes are written: PLY, OBJ, or what neuroglancer reads.

Positions are float32 in neuroglancer and PLY, as their readers expect: exact to half a voxel as long
as they are below 2^23 voxels from 0.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from vcmodels.objects.pieces import PlacedMesh
from vcmodels.objects.table import ObjectTable
from vcmodels.volumes.places import write_atomic

NANOMETER = "nanometer"


class MeshForm(Protocol):
    """A form of meshes."""

    @property
    def unit(self) -> str | None:
        """In which positions are given; None: as the store has them."""
        ...

    def write(self, folder: Path, number: int, mesh: PlacedMesh, unit: str | None) -> None:
        """Write the mesh of the object of this id; `unit` is that of the positions."""
        ...

    def finish(self, folder: Path, table: ObjectTable) -> None:
        """Write what is said of all objects together."""
        ...


@dataclass(frozen=True)
class Ply:
    """One binary PLY file an object (https://paulbourke.net/dataformats/ply/)."""

    unit: str | None = None

    def write(self, folder: Path, number: int, mesh: PlacedMesh, unit: str | None) -> None:
        header = [
            "ply", "format binary_little_endian 1.0", f"comment unit {unit or 'unknown'}",
            f"element vertex {len(mesh.points)}", *(f"property float {a}" for a in "xyz"),
            f"element face {len(mesh.faces)}", "property list uchar int vertex_indices",
            "end_header\n",
        ]  # fmt: skip
        faces = np.empty(len(mesh.faces), [("count", "u1"), ("numbers", "<i4", 3)])
        faces["count"], faces["numbers"] = 3, mesh.faces
        points = mesh.points.astype("<f4")
        data = "\n".join(header).encode() + points.tobytes() + faces.tobytes()
        write_atomic(folder / f"{number}.ply", data)

    def finish(self, folder: Path, table: ObjectTable) -> None:
        """Nothing more."""


@dataclass(frozen=True)
class Obj:
    """One Wavefront OBJ file an object, as text."""

    unit: str | None = None

    def write(self, folder: Path, number: int, mesh: PlacedMesh, unit: str | None) -> None:
        lines = [f"# unit {unit or 'unknown'}"]
        lines += [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in mesh.points.tolist()]
        lines += [f"f {a} {b} {c}" for a, b, c in (mesh.faces.astype(np.int64) + 1).tolist()]
        write_atomic(folder / f"{number}.obj", ("\n".join(lines) + "\n").encode())

    def finish(self, folder: Path, table: ObjectTable) -> None:
        """Nothing more."""


@dataclass(frozen=True)
class Precomputed:
    """A source of meshes of neuroglancer, in its single-resolution form, with the table.

    https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/meshes.md
    """

    unit: str | None = NANOMETER

    def write(self, folder: Path, number: int, mesh: PlacedMesh, unit: str | None) -> None:
        data = np.uint32(len(mesh.points)).tobytes() + mesh.points.astype("<f4").tobytes()
        write_atomic(folder / f"{number}.mesh", data + mesh.faces.astype("<u4").tobytes())
        manifest = json.dumps({"fragments": [f"{number}.mesh"]})
        write_atomic(folder / f"{number}:0", manifest.encode())

    def finish(self, folder: Path, table: ObjectTable) -> None:
        info = {"@type": "neuroglancer_legacy_mesh", "segment_properties": "segment_properties"}
        write_atomic(folder / "info", json.dumps(info).encode())
        properties = json.dumps(segment_properties(table))
        write_atomic(folder / "segment_properties" / "info", properties.encode())


def segment_properties(table: ObjectTable) -> dict[str, object]:
    """The sizes of objects, by which neuroglancer sorts and filters them."""
    columns = table.columns()
    shown = [name for name in columns if name.startswith(("voxels", "volume"))]
    numbers = [
        {
            "id": name,
            "type": "number",
            "data_type": "float32",
            "values": columns[name].astype(np.float32).tolist(),
        }
        for name in shown
    ]
    inline = {"ids": [str(one) for one in table.ids.tolist()], "properties": numbers}
    return {"@type": "neuroglancer_segment_properties", "inline": inline}


FORMS: Mapping[str, MeshForm] = {"ply": Ply(), "obj": Obj(), "precomputed": Precomputed()}
"""By name, the first being the default."""
