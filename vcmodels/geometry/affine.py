"""Where voxels lie in the world: affines as NIfTI and nibabel have them.

An affine is (4, 4) float64 and maps the index (x, y, z, 1) of a voxel's centre to millimetres in a
world whose axes point to the right, front and top of a patient (RAS+, nibabel's convention). DICOM
and ITK point left, back and top (LPS+). Arrays here are (z, y, x), so an index is turned round once,
here.
"""

import numpy as np
from numpy.typing import NDArray

from vcmodels.geometry.boxes import Spacing, triple

Affine = NDArray[np.float64]
"""(4, 4), (x, y, z, 1) of a voxel -> mm, RAS+."""

_ENDS = (("L", "R"), ("P", "A"), ("I", "S"))
_SQUARE = 1e-3
"""Cosine between two axes up to which they count as perpendicular."""


def flipped_world(affine: Affine) -> Affine:
    """The same grid in LPS+ for one in RAS+, and the other way."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def spacing_of(affine: Affine) -> Spacing:
    """The length of a voxel along (z, y, x), in mm."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(z), float(y), float(x)


def offset_of(affine: Affine) -> Spacing:
    """The place of voxel 0 along (z, y, x), where all axes run along those of the world; else 0.

    It is what a store without room for an affine can say of the place.
    """
    steps = affine[:3, :3]
    if not np.allclose(steps, np.diag(np.diag(steps))) or np.diag(steps).min() <= 0:
        return 0.0, 0.0, 0.0
    return triple(float(n) for n in affine[2::-1, 3])


def axis_codes(affine: Affine) -> str:
    """Where x, y and z point to, a letter each, such as `LAS`: nibabel's `aff2axcodes`.

    An oblique axis gets the world's axis that it is nearest to, each of them once. The spinal cord
    toolbox names where an axis comes *from*: this is `RPI` there.
    """
    steps = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    left, codes = np.abs(steps), ["", "", ""]
    for _ in range(3):
        world, voxel = np.unravel_index(int(left.argmax()), left.shape)
        codes[voxel] = _ENDS[world][int(steps[world, voxel] > 0)]
        left[world], left[:, voxel] = -1, -1
    return "".join(codes)


def opposite_codes(codes: str) -> str:
    """The codes that name the other end of each axis: `RPI` for `LAS`."""
    other = {a: b for pair in _ENDS for a, b in (pair, pair[::-1])}
    return "".join(other[code] for code in codes)


def edge_codes(affine: Affine, axis: int) -> tuple[str, str, str, str]:
    """What lies above, below, left and right of a slice: a code of one letter each.

    Args:
        affine: of the volume.
        axis: 0, 1 or 2: across z, y or x; of the other two the first runs down, the second right.
    """
    codes = axis_codes(affine)[::-1]
    down, right = (codes[other] for other in range(3) if other != axis)
    return opposite_codes(down), down, opposite_codes(right), right


def is_square(affine: Affine) -> bool:
    """Whether the axes are perpendicular to each other: those of a sheared grid are not."""
    steps = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(steps.T @ steps - np.eye(3)).max() < _SQUARE)


def index_affine(affine: Affine) -> Affine:
    """The same for an index (z, y, x, 1), which gives (S, A, R): its rows and columns turned round."""
    turn = np.eye(4)[[2, 1, 0, 3]]
    return turn @ affine @ turn
