"""Which patches of a volume without labels are looked at, against every voxel of each."""

import numpy as np
import pytest
import zarr

from vcmodels.geometry.boxes import Box
from vcmodels.patches import unlabelled
from vcmodels.patches.density import patch_grid
from vcmodels.patches.unlabelled import MOST, stored_places, worth_seeing
from vcmodels.volumes import open_volume

SHAPE, CHUNKS = (24, 40, 56), (8, 8, 8)
PATCH, STRIDE = (16, 12, 20), (8, 6, 10)


@pytest.fixture
def volume(tmp_path):
    """Noise in one corner, air that is stored beside it, and nothing stored in the rest."""
    array = zarr.create_array(tmp_path / "ct", shape=SHAPE, chunks=CHUNKS, dtype="u1", fill_value=0)
    array[:16, :16, :24] = np.random.default_rng(0).integers(1, 255, (16, 16, 24), np.uint8)
    array[16:24, :16, :24] = 7
    return open_volume(str(tmp_path / "ct"), key="v")


def grid_of(volume, region=None, stride=STRIDE):
    return patch_grid(volume.box, region or volume.box, PATCH, stride, (1, 1, 1))


@pytest.mark.parametrize("region", [None, Box((2, 3, 5), (22, 30, 40))], ids=str)
def test_candidates_over_chunks_that_are_not_stored_are_left_out(volume, region):
    grid = grid_of(volume, region, (3, 5, 7))
    wanted = [
        volume.is_stored(Box(tuple(origin), PATCH).intersect(grid.region))
        for origin in grid.rows(np.arange(np.prod(grid.counts))).tolist()
    ]
    assert 0 < sum(wanted) < len(wanted)
    np.testing.assert_array_equal(stored_places([volume], grid), wanted)


def test_patches_whose_middle_has_no_contrast_are_left_out(volume):
    grid = grid_of(volume)
    chosen = grid.rows(worth_seeing([volume], grid)).tolist()
    every = grid.rows(np.arange(np.prod(grid.counts))).tolist()
    deviations = {}
    for origin in every:
        # A cube of 16 voxels, or as many as the patch has.
        low = [o + (p - min(p, 16)) // 2 for o, p in zip(origin, PATCH, strict=True)]
        box = Box(tuple(low), tuple(min(p, 16) for p in PATCH))
        deviations[tuple(origin)] = volume.read(box).astype(float).std()
    least = 0.1 * np.median([one for one in deviations.values() if one > 0])
    assert [list(o) for o, one in deviations.items() if one >= least and one > 0] == chosen
    assert 0 < len(chosen) < len(every)


def test_of_too_many_some_are_drawn_the_same_ones_each_time(volume, monkeypatch):
    monkeypatch.setattr(unlabelled, "MOST", 9)
    grid = grid_of(volume, stride=(2, 2, 2))
    first, again = worth_seeing([volume], grid), worth_seeing([volume], grid)
    assert len(first) <= 9 < np.count_nonzero(stored_places([volume], grid)) < MOST
    np.testing.assert_array_equal(first, again)


def test_a_volume_that_shows_nothing_has_no_patch(tmp_path):
    zarr.create_array(tmp_path / "ct", shape=SHAPE, chunks=CHUNKS, dtype="f4", fill_value=0)
    volume = open_volume(str(tmp_path / "ct"), key="v")
    assert not len(worth_seeing([volume], grid_of(volume)))
