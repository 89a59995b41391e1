import numpy as np
import pytest

from vcmodels.geometry.affine import index_affine
from vcmodels.volumes import Description, Grid, Pyramid, open_volume, write_volume
from vcmodels.volumes.world import geometry_note

PSR = np.array([[0, 0, 0.8, -30], [-0.8, 0, 0, 40], [0, 0.8, 0, -50], [0, 0, 0, 1.0]])
"""x points back, y up, z to the right: the axes of the shared T2 image, with its 0.8 mm."""


def affine_with(spacing, base=PSR):
    """The affine with other voxel sizes, (z, y, x)."""
    steps = base[:3, :3] / np.linalg.norm(base[:3, :3], axis=0)
    affine = base.copy()
    affine[:3, :3] = steps * np.array(spacing[::-1])
    return affine


@pytest.fixture
def store(tmp_path):
    """Writes an image, with its affine, and opens it."""

    def write(
        name, array, spacing=(0.8, 0.8, 0.8), *, affine=True, chunks=(8, 9, 10), unit="millimeter"
    ):
        attributes = (
            {"vcmodels": {"geometry": geometry_note(affine_with(spacing))}} if affine else {}
        )
        place = write_volume(
            str(tmp_path / f"{name}.zarr"),
            array,
            grid=Grid(spacing, unit=unit),
            chunks=chunks,
            pyramid=Pyramid(levels=0),
            description=Description(name, attributes),
        )
        return open_volume(str(place), key=name, channels="any")

    return write


def world(affine, index):
    """Where voxels (n, 3), as (z, y, x), lie: (n, 3) as (S, A, R)."""
    square = index_affine(affine)
    return np.asarray(index) @ square[:3, :3].T + square[:3, 3]
