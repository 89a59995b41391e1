"""Scans of one ball that differ in orientation and voxel size, of tests of `prepare`."""

import numpy as np
import pytest

from tests.prepare.conftest import PSR, affine_with
from vcmodels.volumes import Description, Grid, Pyramid, write_volume
from vcmodels.volumes.world import geometry_note

LAS = np.diag([-1.0, 1, 1, 1])


def ball(shape, spacing, centre_mm, radius_mm):
    away = [n * s - c for n, s, c in zip(np.indices(shape), spacing, centre_mm, strict=True)]
    return np.sqrt(sum(a * a for a in away)) < radius_mm


@pytest.fixture
def folder(tmp_path):
    """Two scans of balls of 9 mm: one as PSR with cubes, one as LAS with thick slices."""

    def write(name, array, spacing, base):
        note = {"vcmodels": {"geometry": geometry_note(affine_with(spacing, base))}}
        write_volume(
            str(tmp_path / name), array, grid=Grid(spacing, unit="millimeter"),
            chunks=(16, 16, 16), pyramid=Pyramid(levels=0), description=Description(name, note),
        )  # fmt: skip

    draw = np.random.default_rng(0)
    for name, shape, spacing, centre, base in (
        ("a", (30, 34, 38), (1.0, 1.0, 1.0), (14, 18, 22), PSR),
        ("b", (12, 50, 44), (3.0, 0.8, 0.8), (15, 21, 16), LAS),
    ):
        mask = ball(shape, spacing, centre, 9.0)
        scan = (mask * 100 + draw.normal(20, 2, shape)).astype(np.float32)
        write(f"{name}.zarr", scan, spacing, base)
        write(f"{name}_seg.zarr", mask.astype(np.uint8), spacing, base)
    return tmp_path
