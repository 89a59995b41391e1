import pytest
import torch
from monai.losses import SoftclDiceLoss
from monai.losses.cldice import soft_skel
from scipy import ndimage

from vcmodels.losses.overlap import SMOOTH
from vcmodels.losses.shape import cldice, skeleton_recall, soft_skeleton, tubed_skeleton

SHAPE = (11, 12, 13)


def everywhere(array):
    return torch.ones_like(array, dtype=torch.bool)


def sheet(thickness, shape=SHAPE):
    mask = torch.zeros(1, 1, *shape)
    mask[:, :, 4 : 4 + thickness] = 1
    return mask


@pytest.mark.parametrize("iterations", [0, 3])
def test_the_skeleton_is_that_of_monai(iterations):
    torch.manual_seed(0)
    region = torch.rand(2, 3, *SHAPE)
    found, _ = soft_skeleton(region, everywhere(region), iterations)
    torch.testing.assert_close(found, soft_skel(region, iterations))


@pytest.mark.parametrize("iterations", [1, 3])
def test_cldice_is_that_of_monai(iterations):
    torch.manual_seed(0)
    logits = ndimage.gaussian_filter(torch.randn(SHAPE).numpy(), 1.5) * 20
    logits = torch.from_numpy(logits)[None, None]
    label = (logits + torch.randn_like(logits) > 0).float()
    oracle = SoftclDiceLoss(iter_=iterations, sigmoid=True, smooth=1e-12)
    found = cldice(logits, label, everywhere(label), iterations=iterations)
    torch.testing.assert_close(found, oracle(logits, label))


@pytest.mark.parametrize("thickness", [1, 3, 5])
def test_the_skeleton_of_a_sheet_is_its_middle(thickness):
    mask = sheet(thickness)
    skeleton, left = soft_skeleton(mask, everywhere(mask), 3)
    middle = torch.zeros_like(mask)
    middle[:, :, 4 + thickness // 2] = 1
    assert torch.equal(skeleton, middle)
    assert (left == 0).all()


def test_what_is_not_valid_does_not_erode():
    mask = sheet(5)
    valid = everywhere(mask)
    valid[..., 8:] = False
    valid[:, :, :6] = False
    found, _ = soft_skeleton(mask * valid, valid, 3)
    alone = mask[:, :, 6:, :, :8]
    wanted, _ = soft_skeleton(alone, everywhere(alone), 3)
    assert torch.equal(found[:, :, 6:, :, :8], wanted)
    assert found.sum() == wanted.sum()


def test_cldice_sees_a_gap_and_not_a_rough_surface():
    label = sheet(3)
    gap, rough = label.clone(), label.clone()
    gap[..., 5] = 0
    rough[:, :, 4, ::2, ::2] = 0  # about as many voxels, but never the middle
    assert abs((label - rough).sum() - (label - gap).sum()) <= 10
    costs = [
        cldice(100 * (2 * p - 1), label, everywhere(label)).item() for p in (label, rough, gap)
    ]
    assert costs[:2] == pytest.approx([0, 0], abs=1e-6)
    assert costs[2] > 0.03


def test_skeleton_recall_by_hand():
    label = sheet(1)
    logits = torch.full_like(label, torch.logit(torch.tensor(0.25)).item())
    voxels = label.sum().item()
    found = skeleton_recall(logits, label, everywhere(label)).item()
    assert found == pytest.approx(1 - (0.25 * voxels + SMOOTH) / (voxels + SMOOTH))


@pytest.mark.parametrize(("thickness", "iterations"), [(2, 8), (5, 8), (7, 8), (9, 1)])
def test_the_tube_is_five_voxels_of_the_label_or_all_that_is_too_thick(thickness, iterations):
    shape = (20, 6, 7)
    mask = sheet(thickness, shape)
    tube = tubed_skeleton(mask, everywhere(mask), iterations)
    thick = {2: 2, 5: 5, 7: 5, 9: 9}[thickness]
    assert tube.sum() == thick * 6 * 7
    assert (tube <= mask).all()


def test_the_tube_of_a_blob_with_fibres_is_as_connected_as_the_blob():
    smooth = ndimage.gaussian_filter(torch.randn(40, 44, 48, generator=torch.manual_seed(3)), 3)
    mask = torch.from_numpy(smooth > 0.02)[None, None].float()
    tube = tubed_skeleton(mask, everywhere(mask), 8)
    whole, parts = (
        ndimage.label(m[0, 0].numpy(), ndimage.generate_binary_structure(3, 3))[1]
        for m in (mask, tube)
    )
    assert parts == whole
    assert tube.sum() < mask.sum()


def test_foreground_classes_are_averaged():
    label = sheet(3)
    label[:, :, 8:10] = 2
    predicted = torch.where(label == 2, 0.0, label)  # class 2 is missed
    logits = 100 * torch.cat([predicted == 0, predicted == 1, predicted == 2], 1).float()
    for loss in (cldice, skeleton_recall):
        assert loss(logits, label, everywhere(label)).item() == pytest.approx(0.5, abs=0.01)
