import numpy as np
import pytest
import torch
from pydantic import ValidationError

from vcmodels.geometry.symmetries import CUBE_SYMMETRIES, mirror, quarter_turn
from vcmodels.targets import AffinitiesTarget

SHAPE = (6, 7, 8)
SPACING = (1.0, 1.0, 1.0)


def turned(symmetry, target, label, valid):
    moved = [torch.from_numpy(symmetry(a.numpy()).copy()) for a in (label, valid)]
    return target.turn(*moved, torch.from_numpy(symmetry.matrix).float(), SPACING)


def test_channels_are_counted_from_the_offsets():
    assert AffinitiesTarget().channels == AffinitiesTarget().stored_channels == 3
    with pytest.raises(ValidationError, match="2 offsets make as many channels, got channels=3"):
        AffinitiesTarget(offsets=((1, 0, 0), (0, 1, 0)), channels=3)
    assert AffinitiesTarget(offsets=((1, 0, 0), (0, 1, 0))).channels == 2


@pytest.mark.parametrize(
    "offsets", [((0, 0, 0),), ((1, 0, 0), (1, 0, 0)), ((0, 2, -1), (0, -2, 1))], ids=str
)
def test_offsets_that_say_nothing_new_are_refused(offsets):
    with pytest.raises(ValidationError, match="offsets must differ"):
        AffinitiesTarget(offsets=offsets)


def test_each_channel_of_a_stored_label_is_ignored_on_its_own():
    stored = np.ones((3, *SHAPE), np.int16)
    stored[1, 2, 3, 4] = -1
    label, valid = AffinitiesTarget(ignore_label=-1).read_label(stored)
    assert np.argwhere(~valid).tolist() == [[1, 2, 3, 4]]
    assert label.sum() == stored.size - 1


def test_a_mirrored_pair_is_named_by_its_other_voxel():
    target = AffinitiesTarget(offsets=((0, 0, -3),))
    label = torch.arange(8.0).view(1, 1, 1, 8) + 1
    found, valid = turned(mirror(2), target, label, torch.ones_like(label).bool())
    # Voxel x of the mirrored patch was 7 - x; its partner x - 3 was 10 - x, which names the pair.
    assert found.flatten().tolist() == [0, 0, 0, 8, 7, 6, 5, 4]
    assert valid.flatten().tolist() == [False] * 3 + [True] * 5


@pytest.mark.parametrize("symmetry", CUBE_SYMMETRIES, ids=str)
def test_channels_without_a_counterpart_do_not_count(symmetry):
    """Turned labels are those of the turned ids, wherever they count; and few are lost in vain."""
    offsets = ((0, 0, -1), (2, 0, 0), (1, 1, 0), (0, -7, 0))
    target = AffinitiesTarget(offsets=offsets, derive="cells")
    margin = target.source_margin(SPACING)
    ids = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.float32)

    def derive(volume):
        around = [(m, m) for m in margin]
        source = torch.from_numpy(np.pad(volume, around))[None]
        known = torch.from_numpy(np.pad(np.ones(volume.shape, bool), around))[None]
        return target.derive_label(source, known, SPACING)

    found, valid = turned(symmetry, target, *derive(ids))
    wanted, certain = derive(symmetry(ids).copy())
    assert torch.equal(found, torch.where(valid, wanted, 0.0))
    for channel, offset in enumerate(offsets):
        before = tuple(int(v) for v in symmetry.matrix @ offset)
        has_source = before in offsets or tuple(-v for v in before) in offsets
        assert torch.equal(valid[channel], certain[channel] & has_source)


def test_a_quarter_turn_changes_channels():
    label = torch.rand(3, *SHAPE)
    found, valid = turned(
        quarter_turn(1, 2), AffinitiesTarget(), label, torch.ones(1, *SHAPE).bool()
    )
    assert found.shape == valid.shape == (3, 6, 8, 7)
    moved = np.rot90(label.numpy(), axes=(2, 3))
    assert np.array_equal(found[0], moved[0])
    assert valid[0].all()


def test_a_rotation_of_stored_affinities_is_an_error():
    jacobian = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    with pytest.raises(ValueError, match='cannot be rotated or warped; use "derive"'):
        AffinitiesTarget().turn(
            torch.zeros(3, *SHAPE), torch.ones(3, *SHAPE).bool(), jacobian, SPACING
        )
