import pytest
import torch
from torch import nn

from vcmodels.models import NnUNet, ResidualUNet
from vcmodels.models.blocks import InstanceNorm
from vcmodels.models.fused import (
    ChannelsLastMix,
    FusedConvBlock,
    FusedDecoderLevel,
    FusedNorm,
    FusedResidualBlock,
    OneDnnConvolution,
    fused,
    moments,
)

HEADS = {"sheet": 1, "normals": 3}
CL = torch.channels_last_3d


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def trained(spacing=(1.0, 1.0, 1.0), in_channels=2, **options) -> nn.Module:
    """A network with weights as after training: no norm or gate is as it begins."""
    config = ResidualUNet(**{"f_maps": (4, 6, 8), **options})
    network = config.build(in_channels, HEADS, (8, 16, 24), spacing).eval()
    for module in network.modules():
        if isinstance(module, InstanceNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
    return network


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"squeeze_excitation": False},
        {"decoder": "shared", "decoder_blocks": 3},
        {"blocks_per_level": 3},
        {"f_maps": (4, 4, 4)},
        {"deep_supervision": True},
        {"spacing": (4.0, 1.0, 1.0)},
        {"spacing": (1.0, 1.0, 2.5), "f_maps": (4, 5, 6, 7), "num_levels": 4},
    ],
    ids=str,
)
def test_a_fused_network_is_the_network(options):
    network = trained(**options)
    image = torch.randn(1, 2, 8, 16, 24)
    with torch.inference_mode():
        expected = network(image, ("normals", "sheet"))
        found = fused(network)(image.to(memory_format=CL), ("normals", "sheet"))
    assert list(found) == ["normals", "sheet"]
    for name, (logits, *_) in expected.items():
        torch.testing.assert_close(found[name][0], logits, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(8, 16, 24), (2, 8, 8), (1, 8, 16)], ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_the_bias_of_an_upsampling_is_kept_where_no_norm_takes_it_away(residual, shape):
    """At the border of a patch, which for the least lengths is everywhere."""
    config = NnUNet(
        residual=residual, f_maps=(4, 6, 8), strides=((1, 1, 1), (1, 2, 2), (1, 2, 2)),
        kernels=((1, 3, 3), (3, 3, 5), (3, 3, 3)),
    )  # fmt: skip
    network = config.build(2, HEADS, shape, (1.0, 1.0, 1.0)).eval()
    for module in network.modules():
        if isinstance(module, InstanceNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
        elif isinstance(module, nn.ConvTranspose3d):
            nn.init.normal_(module.bias, std=2)
    image = torch.randn(1, 2, *shape)
    with torch.inference_mode():
        expected, found = network(image), fused(network)(image.to(memory_format=CL))
    for name, (logits, *_) in expected.items():
        torch.testing.assert_close(found[name][0], logits, atol=3e-5, rtol=1e-5)


def test_all_blocks_are_fused_and_the_network_stays_as_it_was():
    network = trained(decoder_blocks=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    kinds = [type(module) for module in network.modules()]
    twin = fused(network)
    left = {FusedNorm, FusedConvBlock, FusedResidualBlock, FusedDecoderLevel}
    assert left <= {type(module) for module in twin.modules()}
    assert not any(isinstance(module, nn.AvgPool3d) for module in twin.modules())
    assert [type(module) for module in network.modules()] == kinds
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)


def test_the_activations_stay_channels_last():
    """A block that leaves the order is right, and slow: it adds tensors of different orders."""
    results = []

    twin = fused(trained(in_channels=1).to(memory_format=CL))
    for module in twin.modules():
        if isinstance(module, FusedNorm | FusedResidualBlock | FusedDecoderLevel | ChannelsLastMix):
            module.register_forward_hook(lambda _module, _images, result: results.append(result))
    with torch.inference_mode():
        twin(torch.randn(1, 1, 8, 16, 24).to(memory_format=CL))
    assert len(results) > 15
    assert all(x.is_contiguous(memory_format=CL) for x in results)


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 2)], ids=str)
def test_small_convolutions_are_left_to_onednn_and_keep_their_order(stride):
    """On one thread torch's own kernel computes them, channel by channel, in several times the time."""
    conv = nn.Conv3d(32, 16, 3, stride, 1, bias=False).to(memory_format=CL)
    quick, image = OneDnnConvolution.of(conv), torch.randn(1, 32, 6, 7, 8).to(memory_format=CL)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), torch.profiler.profile() as profile:
            found = quick(image)
        kernels = {event.key for event in profile.key_averages()}
        assert "aten::mkldnn_convolution" in kernels
        assert not any("slow_conv" in name for name in kernels)
        assert found.is_contiguous(memory_format=CL)
        with torch.inference_mode():
            torch.testing.assert_close(found, conv(image), atol=1e-5, rtol=1e-5)
            with torch.autocast("cpu", torch.bfloat16):
                assert quick(image).dtype == torch.bfloat16
    finally:
        torch.set_num_threads(threads)


def test_foreign_modules_are_left_alone():
    foreign = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Sequential())
    assert fused(foreign) is foreign


def test_bfloat16_is_as_near_to_float32_as_without_fusing():
    network = trained(f_maps=(16, 32, 32)).to(memory_format=CL)
    image = torch.randn(1, 2, 16, 16, 32)
    with torch.inference_mode():
        exact = network(image)["normals"][0]
        with torch.autocast("cpu", torch.bfloat16):
            errors = [
                (net(image.to(memory_format=CL))["normals"][0].float() - exact).std()
                for net in (network, fused(network))
            ]
    assert errors[1] < 1.2 * errors[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(64, 48, 40), (6, 7, 8), (1, 1, 8), (2, 1, 1)], ids=str)
def test_moments_are_exact(dtype, shape):
    """Summed one by one, 10^5 voxels would be off by 1e-4."""
    x = (torch.randn(1, 3, *shape) + torch.tensor([5.0, 0, -1])[:, None, None, None]).to(dtype)
    mean, variance = moments(x.to(memory_format=CL))
    assert mean.dtype == variance.dtype == torch.float32
    expected = torch.var_mean(x.double(), dim=(0, 2, 3, 4), correction=0)
    torch.testing.assert_close(mean.double(), expected[1], atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(variance.double(), expected[0], atol=2e-6, rtol=5e-6)


def test_several_samples_are_refused():
    with pytest.raises(AssertionError, match="mix samples"):
        FusedNorm(InstanceNorm(2))(torch.zeros(2, 2, 3, 4, 5))
