"""The surfaces of regions: where their elements are, and the area that each stands for.

Two readings of "surface" are in use, and both are local, so that a box with a margin of one voxel
gives the crop of the whole:

- *voxels*: the voxels of a region that have a face to a voxel out of it (the region without its
  erosion by the six neighbours). Each counts 1 and lies at its centre.
- *surfels*: the corners of voxels around which some voxels are in the region and some are not. Each
  counts the area of the surface that marching cubes draws around the corner.

Along an axis on which a volume is one voxel long, a region is taken to go on: the surface of a
picture is its contour, not all of it.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]


def surface_voxels(region: Bools, axes: Sequence[int]) -> Bools:
    """The voxels of a region that have a face to a voxel out of it.

    Args:
        region: (Z, Y, X) bool, with a margin of one voxel on both sides of each of `axes`.
        axes: along which neighbours are looked at.

    Returns:
        The same without the margin.
    """
    inside = region[tuple(slice(1, -1) if axis in axes else slice(None) for axis in range(3))]
    has_face = np.zeros(inside.shape, np.bool_)
    for axis in axes:
        for start in (0, 2):
            where = [slice(1, -1) if a in axes else slice(None) for a in range(3)]
            where[axis] = slice(start, start + inside.shape[axis])
            has_face |= ~region[tuple(where)]
    return inside & has_face


def corner_codes(region: Bools, axes: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Which of the eight voxels around each corner are in a region.

    Args:
        region: (Z, Y, X) bool, with one voxel more before each of `axes`; along the others both
            voxels of a corner are the same one.
        axes: along which a corner lies between two voxels.

    Returns:
        The same without the voxel more, uint8: bit `dz + 2 * dy + 4 * dx` is the voxel `(dz, dy,
        dx)` after (1) or before (0) the corner.
    """
    codes = region.view(np.uint8)
    for axis in range(3):
        along = np.moveaxis(codes, axis, 0)
        before, after = (along[:-1], along[1:]) if axis in axes else (along, along)
        codes = np.moveaxis(before | (after << np.uint8(1 << axis)), 0, axis)
    return codes


def surfel_areas(spacing: Sequence[float]) -> npt.NDArray[np.float64]:
    """The area of the surface around a corner, for each code of `corner_codes`: (256,).

    That of the triangles of Lorensen and Cline 1987, "Marching cubes" (SIGGRAPH 21), in which a cube
    and its complement have the same surface; as the package `surface-distance` (Nikolov et al. 2018,
    arXiv 1809.04430) counts it.

    Args:
        spacing: length of a voxel along (z, y, x).
    """
    z, y, x = spacing
    facing = np.array((y * x, z * x, z * y))
    areas = np.zeros(256)
    for code, normals in enumerate(_surfel_normals()):
        areas[code] = np.linalg.norm(normals * facing, axis=1).sum()
    return areas


@cache
def _surfel_normals() -> tuple[npt.NDArray[np.float64], ...]:
    """For each code, (n, 3): the normals of its triangles in a unit cube, as long as their area."""
    # Late: slow to import, and few need it.
    from skimage.measure import marching_cubes

    normals: list[npt.NDArray[np.float64]] = []
    for code in range(256):
        # The library's table closes its faces differently where more than half is inside.
        shown = code if code.bit_count() <= 4 else 255 - code
        if not shown:
            normals.append(np.zeros((0, 3)))
            continue
        bits = np.array([shown >> bit & 1 for bit in range(8)], np.float32)
        cube = bits.reshape(2, 2, 2).transpose()  # Bit 0 is along z.
        corners, faces, _, _ = marching_cubes(cube, 0.5, method="lorensen")
        a, b, c = corners[faces].astype(np.float64).transpose(1, 0, 2)
        normals.append(np.cross(b - a, c - a) / 2)
    return tuple(normals)
