"""Surfaces of objects, cut block by block and joined again without a seam.

Marching cubes goes through the cubes between the centres of 2 x 2 x 2 voxels. Each cube belongs to the
block of its low corner, and those before voxel 0 to the first block, so that the triangles of all
blocks together are those of the whole volume, each once. A vertex lies half way between two voxels:
in half voxels it is a whole number, and the same in every block that has it. So pieces are welded by
equality, and what comes of it is closed: every edge has two triangles, as zmesh has them
(https://github.com/seung-lab/zmesh).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from vcmodels.geometry.boxes import Box, Shape, Spacing

BITS = 21
"""Of a coordinate of a vertex within its object, in half voxels."""
LONGEST = 1 << (BITS - 1)
"""Voxels of an object along an axis, at most."""
LONGEST_SIMPLIFIED = 1 << 19
"""The same, where it is simplified: zmesh has 2^20 places."""
SIMPLIFIER_ERROR = 16
"""Up to which error zmesh takes a vertex away. Measured on a sphere with a plate of three voxels: the
surface stays within 0.9 voxels, and a twelfth of the triangles is left."""


@dataclass(frozen=True)
class Triangles:
    """A surface, or a piece of one."""

    vertices: np.ndarray
    """(v, 3) int32: (z, y, x) in half voxels; the centre of voxel 0 is at 0."""
    faces: np.ndarray
    """(f, 3) uint32: numbers of vertices."""


@dataclass(frozen=True)
class PlacedMesh:
    """A surface in space."""

    points: np.ndarray
    """(v, 3) float64: x, y, z."""
    faces: np.ndarray
    """(f, 3) uint32: numbers of points, counter-clockwise seen from outside."""


def around(box: Box, within: Box) -> Box:
    """The voxels of which the cubes of a block are made."""
    first = zip(box.origin, within.origin, strict=True)
    return Box.between([o - (o == w) for o, w in first], [end + 1 for end in box.end])


def cut_surfaces(ids: np.ndarray, origin: Shape) -> Iterator[tuple[int, Triangles]]:
    """The piece of the surface of each object, by id.

    Args:
        ids: (Z, Y, X) of an unsigned integer dtype, as of `around`; 0 is no object. It is changed.
        origin: of its voxel 0.
    """
    # Late: they are an extra.
    import fastremap
    from zmesh import Mesher  # pyright: ignore[reportAttributeAccessIssue]

    small, known = fastremap.renumber(ids, preserve_zero=True, in_place=True)
    numbers = {int(one): int(number) for one, number in known.items() if one}
    if not numbers:
        return
    mesher = Mesher((1, 1, 1))
    mesher.mesh(small)
    for one, number in sorted(numbers.items()):
        piece = mesher.get(number)
        mesher.erase(number)
        if piece.faces is not None and len(piece.faces):
            vertices = np.rint(2 * piece.vertices).astype(np.int32) + 2 * np.array(origin, np.int32)
            yield one, Triangles(vertices, piece.faces)


def as_bytes(pieces: Sequence[Triangles]) -> bytes:
    """Pieces one after the other, the vertices of each before its faces."""
    return b"".join(
        array.tobytes()
        for piece in pieces
        for array in (piece.vertices.astype("<i4"), piece.faces.astype("<u4"))
    )


def byte_size(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Bytes of pieces that have so many vertices and faces."""
    return 12 * (vertices + faces)


def read_piece(path: Path, offset: int, vertices: int, faces: int) -> Triangles:
    """One of the pieces of a file, by its first byte and its numbers of vertices and faces."""
    with path.open("rb") as file:
        file.seek(offset)
        return Triangles(_read(file, "<i4", vertices), _read(file, "<u4", faces))


def _read(file: IO[bytes], kind: str, rows: int) -> np.ndarray:
    return np.frombuffer(file.read(12 * rows), kind).reshape(rows, 3)


def welded(pieces: Sequence[Triangles]) -> Triangles:
    """The surface of an object from its pieces; in any order and cut anyhow, the same to the bit."""
    vertices = np.concatenate([piece.vertices for piece in pieces])
    starts = np.cumsum([0, *(len(piece.vertices) for piece in pieces)])
    numbers = np.concatenate(
        [piece.faces.astype(np.int64) + n for piece, n in zip(pieces, starts, strict=False)]
    )
    low = vertices.min(axis=0)
    z, y, x = (vertices - low).astype(np.int64).T
    distinct, number = np.unique((z << 2 * BITS) | (y << BITS) | x, return_inverse=True)
    mask = (1 << BITS) - 1
    places = np.stack([distinct >> 2 * BITS, distinct >> BITS & mask, distinct & mask], axis=1)
    return Triangles((places + low).astype(np.int32), _ordered(number[numbers]))


def _ordered(faces: np.ndarray) -> np.ndarray:
    """Faces turned so that their first vertex is the least, in order: uint32."""
    turn = (faces.argmin(axis=1)[:, None] + np.arange(3)) % 3
    faces = np.take_along_axis(faces, turn, axis=1)
    return faces[np.lexsort(faces.T[::-1])].astype(np.uint32)


def placed(surface: Triangles, spacing: Spacing, offset: Spacing, reduction: int = 1) -> PlacedMesh:
    """A whole surface in space.

    Args:
        surface: of an object.
        spacing: length of a voxel along (z, y, x).
        offset: position of the centre of voxel 0.
        reduction: by what the number of triangles is divided, as far as the surface stays within
            about a voxel; it stays closed, and its holes stay.
    """
    low = surface.vertices.min(axis=0)
    places, faces = (surface.vertices - low) / 2, surface.faces
    if reduction > 1:
        places, faces = _simplified(places, faces, reduction)
    points = (places + low / 2) * spacing + offset
    # From z, y, x to x, y, z is a mirror, after which triangles are seen from the other side.
    return PlacedMesh(points[:, ::-1], faces[:, [0, 2, 1]])


def _simplified(
    places: np.ndarray, faces: np.ndarray, reduction: int
) -> tuple[np.ndarray, np.ndarray]:
    from zmesh import Mesh, Mesher  # pyright: ignore[reportAttributeAccessIssue]

    # zmesh divides the error by the diagonal of a voxel and cuts what is behind the point.
    error = (SIMPLIFIER_ERROR + 0.5) * 3**0.5
    mesh = Mesh(places.astype(np.float32), faces)
    simpler = Mesher((1, 1, 1)).simplify(mesh, reduction_factor=reduction, max_error=error)
    return simpler.vertices.astype(np.float64), simpler.faces
