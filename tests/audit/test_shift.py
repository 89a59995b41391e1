import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vcmodels.audit.shift import REACH, find_shift, judge
from vcmodels.geometry.boxes import Box
from vcmodels.phantom import make_phantom
from vcmodels.targets import BinaryTarget
from vcmodels.volumes import ArrayVolume

SHAPE = (48, 56, 64)


def blobs(seed=0):
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=SHAPE), 3)
    mask = (smooth > 0.6 * smooth.std()).astype(np.uint8)
    return (100 * gaussian_filter(mask.astype(float), 0.7) + rng.normal(size=SHAPE) * 9), mask


def shift(image, label, rule=None):
    one, other = (ArrayVolume.of(a, (1.0, 1.0, 1.0), n) for a, n in ((image, "i"), (label, "l")))
    found = find_shift(one, other, other.box, rule or BinaryTarget())
    return found and found.voxels


@pytest.mark.parametrize("moved", [(1, 0, 0), (0, -2, 3), (-5, 4, 0), (0, 0, -1)])
def test_a_label_that_was_moved_is_found_to_the_voxel(moved):
    image, label = blobs()
    back = tuple(-n for n in moved)
    assert shift(image, np.roll(label, moved, (0, 1, 2))) == back


def test_nothing_is_said_of_a_label_that_fits():
    assert shift(*blobs()) is None


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_said_where_borders_of_the_label_are_no_edges(seed):
    assert shift(blobs(seed)[0], blobs(seed + 50)[1]) is None


def test_nothing_is_said_of_a_label_that_follows_one_of_two_edges():
    """The lower half of each sheet: half of its border is in the middle of the sheet."""
    rng = np.random.default_rng(0)
    z = np.arange(48)[:, None, None] + 2 * np.sin(np.arange(56) / 9)[:, None] + np.zeros(64)
    sheet, half = z % 16 < 8, z % 16 < 4
    image = 100 * gaussian_filter(sheet.astype(float), 0.7) + rng.normal(size=SHAPE) * 5
    assert shift(image, half.astype(np.uint8)) is None


def test_ignored_voxels_have_no_border():
    image, label = blobs()
    moved = np.roll(label, (0, 3, 0), (0, 1, 2)) * 255
    assert shift(image, moved) == (0, -3, 0)
    assert shift(image, moved, BinaryTarget(ignore_label=255)) is None


def test_a_moved_sheet_of_the_phantom_is_found():
    box = Box((0, 0, 0), (64, 128, 112))
    phantom = make_phantom((64, 128, 112), box)
    image, sheet = np.squeeze(phantom[0]), (np.squeeze(phantom[1]) == 1).astype(np.uint8)
    assert shift(image, sheet) is None
    assert shift(image, np.roll(sheet, (0, 3, -2), (0, 1, 2))) == (0, -3, 2)


def test_averages_at_random_prove_nothing():
    rng = np.random.default_rng(0)
    side = 2 * REACH + 1
    assert not any(judge(rng.normal(size=(12, side, side, side))) for _ in range(50))


def test_two_halves_that_disagree_prove_nothing():
    maps = np.zeros((12, 9, 9, 9))
    maps[:, 4, 4, 6] = 0.5
    maps[::2, 4, 4, 6], maps[1::2, 4, 4, 2] = 1.0, 0.9
    assert judge(maps) is None
    maps[:, 4, 4, 6] = 1.0
    found = judge(maps)
    assert found is not None
    assert found.voxels == (0, 0, 2)
