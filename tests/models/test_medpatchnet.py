import pytest
import torch
from torch import nn

from vcmodels.config import parse_task
from vcmodels.errors import FaultError, TaskError
from vcmodels.models import MedPatchNet, ResidualUNet
from vcmodels.models.medpatchnet import Pyramid, cut_dilation
from vcmodels.models.plan import Level

PATCH, SPACING, HEADS = (8, 12, 16), (1.0, 1.0, 1.0), {"sheet": 1, "normals": 3}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def build(patch=PATCH, spacing=SPACING, **options) -> nn.Module:
    config = MedPatchNet(**{"f_maps": (6, 8), **options})
    return config.build(4, HEADS, patch, spacing).eval()


def told(image: torch.Tensor, *middles) -> torch.Tensor:
    """The image, once for each middle, with coordinates around it."""
    ramps = torch.stack(
        torch.meshgrid(*(torch.linspace(-0.2, 0.2, n) for n in PATCH), indexing="ij")
    )
    places = [ramps + torch.tensor(middle).view(3, 1, 1, 1) for middle in middles]
    return torch.stack([torch.cat([image, place]) for place in places])


@pytest.mark.parametrize("axis", range(3))
def test_the_result_depends_on_the_middle_of_the_patch(axis):
    """By a change that is the same in all voxels, as far as features are: the filters change."""
    network, image = build(), torch.randn(1, *PATCH)
    far = [0.0, 0.0, 0.0]
    far[axis] = 0.5
    for logits, *_ in network(told(image, (0.0, 0.0, 0.0), far)).values():
        here, there = logits
        assert (here - there).abs().max() > 1e-3


def test_each_sample_of_a_batch_has_its_own_filters():
    network, image = build(), torch.randn(1, *PATCH)
    batch = told(image, (0.0, 0.1, 0.2), (0.5, -0.5, 0.0))
    together = network(batch)["normals"][0]
    for n in range(2):
        alone = network(batch[n : n + 1])["normals"][0][0]
        torch.testing.assert_close(together[n], alone, atol=1e-5, rtol=1e-5)


def test_only_the_weights_that_are_told_the_position_use_it():
    network, image = build(), torch.randn(1, *PATCH)
    nn.init.zeros_(network.heads["sheet"].told.weight)
    found = network(told(image, (0.0, 0.0, 0.0), (0.5, -0.9, 0.3)))
    here, there = found["sheet"][0]
    assert torch.equal(here, there)
    here, there = found["normals"][0]
    assert not torch.equal(here, there)


def test_a_head_is_a_convolution_with_the_filters_of_its_place():
    network = build()
    head, features, middle = network.heads["normals"], torch.randn(1, 6, 3, 4, 5), torch.rand(1, 3)
    made = head.filters(nn.functional.leaky_relu(head.told(middle), 0.01)).view(3, 7)
    weight, bias = made[:, :6, None, None, None], made[:, 6]
    wanted = nn.functional.conv3d(features, weight, bias)
    torch.testing.assert_close(head(features, middle), wanted)


def test_a_pyramid_sums_its_wide_branches_up():
    level = Level(10, (1, 1, 1), (3, 3, 3), (16, 16, 16))
    block, x = Pyramid(10, level), torch.randn(1, 10, 16, 16, 16)
    reduced = block.reduce(x)
    one, two, four, eight = (branch(reduced) for branch in block.branches)
    assert [len(part[0]) for part in (one, two, four, eight)] == [4, 2, 2, 2]
    joined = torch.cat([one, two, two + four, two + four + eight], dim=1)
    wanted = nn.functional.leaky_relu(block.norm(joined) + x, 0.01)
    torch.testing.assert_close(block(x), wanted)


@pytest.mark.parametrize(
    ("dilation", "kernel", "shape", "found"),
    [
        (8, (3, 3, 3), (64, 16, 15), (8, 8, 7)),
        (4, (1, 3, 3), (20, 6, 64), (1, 3, 4)),
        (2, (3, 3, 3), (2, 3, 4), (1, 1, 2)),
    ],
)
def test_dilations_are_cut_along_short_axes(dilation, kernel, shape, found):
    assert cut_dilation(dilation, kernel, shape) == found


@pytest.mark.parametrize(
    ("patch", "spacing"),
    [((1, 32, 48), SPACING), ((32, 1, 48), SPACING), ((8, 64, 32), (5.0, 1.0, 1.0))],
    ids=["a slice", "a slice across y", "coarse along z"],
)
def test_flat_and_coarse_patches_are_taken(patch, spacing):
    network = build(patch, spacing, f_maps=None, base_features=4)
    logits = network(torch.randn(1, 4, *patch))["normals"][0]
    assert logits.shape == (1, 3, *patch)
    assert logits.isfinite().all()


def test_a_slice_is_not_mixed_with_its_neighbours():
    network = build((1, 32, 48))
    kernels = {m.kernel_size[0] for m in network.modules() if isinstance(m, nn.Conv3d)}
    assert kernels == {1}


def test_it_is_light():
    sizes = (4, HEADS, (96, 96, 96), SPACING)
    light, usual = MedPatchNet().estimate(*sizes), ResidualUNet().estimate(*sizes)
    assert light.parameters < usual.parameters / 10
    assert light.step_bytes(2) < usual.step_bytes(2) / 2


def test_it_refuses_to_be_told_nothing(sheet_task):
    with pytest.raises(FaultError, match="an image of 3 channels"):
        MedPatchNet().build(3, HEADS, (32, 32, 32), SPACING)
    sheet_task["model_config"] = {"name": "medpatchnet"}
    with pytest.raises(
        TaskError, match=r"dataset_config.coordinates: is false, and medpatchnet .*; give true"
    ):
        parse_task(sheet_task, "test")
    sheet_task["dataset_config"]["coordinates"] = True
    task, _ = parse_task(sheet_task, "test")
    assert isinstance(task.model, MedPatchNet)


def test_features_and_levels_must_agree():
    with pytest.raises(ValueError, match="f_maps has 2 entries and num_levels is 3"):
        MedPatchNet(f_maps=(4, 8), num_levels=3)
