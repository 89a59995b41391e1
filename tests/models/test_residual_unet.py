from itertools import pairwise
from math import prod

import pytest
import torch
from pydantic import ValidationError

from vcmodels.models import ResidualUNet

PATCH, SPACING = (8, 16, 24), (1.0, 1.0, 1.0)
HEADS = {"sheet": 1, "normals": 3}
SMALL = {"f_maps": (4, 6, 8), "num_levels": 3}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def build(heads=HEADS, in_channels=2, patch=PATCH, spacing=SPACING, **options):
    config = ResidualUNet(**{**SMALL, **options})
    return config, config.build(in_channels, heads, patch, spacing)


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def parameters_by_hand(config: ResidualUNet, in_channels, heads, patch, spacing) -> int:
    """The sum of weights, layer by layer, from the plan alone."""
    levels = config.plan(patch, spacing).levels
    hidden = [max(level.features // 16, 4) for level in levels]
    total, inputs = 0, in_channels
    for level, h, blocks in zip(levels, hidden, config.blocks(len(levels)), strict=True):
        f, taps = level.features, prod(level.kernel)
        for _ in range(blocks):
            total += taps * inputs * f + taps * f * f + 2 * f + 2 * f
            total += inputs * f if inputs != f else 0
            total += (2 * f * h + h) + (h * f + f) if config.squeeze_excitation else 0
            inputs = f
    for level, deeper in pairwise(levels):
        f, taps = level.features, prod(level.kernel)
        up = deeper.features * f * prod(deeper.stride)
        convolutions = taps * (2 * f) * f + (config.decoder_blocks - 1) * taps * f * f
        decoders = len(heads) if config.decoder == "separate" else 1
        total += decoders * (up + convolutions + config.decoder_blocks * 2 * f)
    supervised = levels[: max(len(levels) - 2, 1)] if config.deep_supervision else levels[:1]
    return total + sum((level.features + 1) * c for c in heads.values() for level in supervised)


@pytest.mark.parametrize(
    ("options", "patch", "spacing"),
    [
        ({}, PATCH, SPACING),
        ({"f_maps": None, "num_levels": None, "base_features": 20}, (16, 32, 48), (5.0, 1.0, 1.0)),
        ({"blocks_per_level": (1, 2, 3), "squeeze_excitation": False}, PATCH, SPACING),
        ({"decoder": "shared", "decoder_blocks": 2}, PATCH, SPACING),
        ({"f_maps": (4, 4, 4, 4), "num_levels": None, "deep_supervision": True}, PATCH, SPACING),
        ({"f_maps": (4, 4, 8, 8), "num_levels": None, "preset": "M"}, PATCH, SPACING),
    ],
    ids=["small", "planned", "deep encoder", "shared", "supervised", "preset"],
)
def test_the_table_counts_every_parameter(options, patch, spacing):
    config, network = build(patch=patch, spacing=spacing, **options)
    summary = config.describe(2, HEADS, patch, spacing)
    assert count(network) == parameters_by_hand(config, 2, HEADS, patch, spacing)
    assert summary.memory.parameters == count(network)
    assert sum(row.parameters for row in summary.rows) == count(network)


def test_the_table_names_every_part_from_input_to_logits():
    summary = ResidualUNet(**SMALL).describe(2, HEADS, PATCH, SPACING)
    assert [(row.name, row.features, row.shape) for row in summary.rows] == [
        ("encoder 0", 4, (8, 16, 24)),
        ("encoder 1", 6, (4, 8, 12)),
        ("encoder 2", 8, (4, 4, 6)),
        ("sheet 1", 6, (4, 8, 12)),
        ("sheet 0", 4, (8, 16, 24)),
        ("normals 1", 6, (4, 8, 12)),
        ("normals 0", 4, (8, 16, 24)),
        ("sheet head", 1, (8, 16, 24)),
        ("normals head", 3, (8, 16, 24)),
    ]
    assert [row.kernel for row in summary.rows[-2:]] == [(1, 1, 1)] * 2


def test_describing_a_huge_network_allocates_nothing():
    huge = ResidualUNet(base_features=4096, max_features=4096)  # A terabyte of weights.
    assert huge.describe(1, HEADS, (256, 256, 256), SPACING).memory.parameters > 5e9


@pytest.mark.parametrize("decoder", ["separate", "shared"])
def test_every_head_has_its_channels_at_full_resolution(decoder):
    _, network = build(decoder=decoder)
    outputs = network(torch.randn(2, 2, *PATCH))
    assert {name: [tuple(x.shape) for x in maps] for name, maps in outputs.items()} == {
        "sheet": [(2, 1, *PATCH)],
        "normals": [(2, 3, *PATCH)],
    }


def test_other_lengths_than_the_planned_fit_when_the_strides_divide_them():
    _, network = build()
    assert network(torch.randn(1, 2, 12, 8, 32))["sheet"][0].shape == (1, 1, 12, 8, 32)
    with pytest.raises(ValueError, match="10 along x is not a multiple of 4"):
        network(torch.randn(1, 2, 12, 8, 10))


def test_anisotropic_kernels_do_not_mix_slices_far_apart():
    """With spacing (9, 1, 1) and two levels no kernel ever reaches along z, but the norms do."""
    _, network = build(spacing=(9.0, 1.0, 1.0), f_maps=(4, 6), num_levels=2)
    assert {m.kernel_size[0] for m in network.modules() if isinstance(m, torch.nn.Conv3d)} == {1}


@pytest.mark.parametrize("decoder", ["separate", "shared"])
def test_asking_for_one_head_gives_the_same_logits_and_runs_no_other(decoder):
    _, network = build(decoder=decoder)
    network.eval()
    image = torch.randn(1, 2, *PATCH)
    everything = network(image)
    ran = []
    for name in HEADS:
        network.heads[name][0].register_forward_hook(lambda *_, name=name: ran.append(name))
    alone = network(image, ["normals"])
    assert list(alone) == ran == ["normals"]
    torch.testing.assert_close(alone["normals"][0], everything["normals"][0], atol=0, rtol=0)
    with pytest.raises(KeyError, match="distance"):
        network(image, ["distance"])


def test_coarser_logits_come_in_training_only():
    _, network = build(f_maps=(4, 4, 4, 4), num_levels=4, deep_supervision=True)
    image = torch.randn(1, 2, *PATCH[:1], 16, 24)
    shapes = [tuple(x.shape[2:]) for x in network.train()(image)["sheet"]]
    assert shapes == [(8, 16, 24), (4, 8, 12)]
    assert len(network.eval()(image)["sheet"]) == 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decoder": "shared"},
        {"f_maps": (4, 4, 4, 4), "num_levels": 4, "deep_supervision": True},
        {"squeeze_excitation": False, "blocks_per_level": 2, "decoder_blocks": 2},
    ],
    ids=["separate", "shared", "supervised", "plain"],
)
def test_every_parameter_gets_a_gradient(options):
    """The original project trained, saved and decayed 22.6 % of weights that nothing used."""
    _, network = build(**options)
    outputs = network(torch.randn(2, 2, *PATCH))
    sum(x.square().mean() for maps in outputs.values() for x in maps).backward()
    unused = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert unused == []


def test_a_decoder_of_its_own_is_not_touched_by_another_targets_loss():
    _, network = build()
    network(torch.randn(2, 2, *PATCH))["sheet"][0].square().mean().backward()
    assert all(p.grad is None for p in network.decoders["normals"].parameters())


def test_channels_last_and_bfloat16_change_little():
    _, network = build(f_maps=(16, 24, 32))
    network.eval()
    image = torch.randn(1, 2, *PATCH)
    expected = network(image)["normals"][0]
    network.to(memory_format=torch.channels_last_3d)
    image = image.to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(network(image)["normals"][0], expected, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(image)["normals"][0]
    assert (rounded - expected).abs().mean() < 0.03 * expected.std()


def test_fresh_logits_are_of_order_one():
    """So that neither a sigmoid is saturated nor a cosine divides by almost nothing."""
    _, network = build(heads={"a": 8}, f_maps=(16, 32, 64))
    logits = network(torch.randn(2, 2, *PATCH))["a"][0]
    assert 0.2 < logits.std() < 2


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ('{"f_maps": [4, 8], "num_levels": 3}', "f_maps has 2 entries and num_levels is 3"),
        ('{"f_maps": [4]}', "at least 2"),
        ('{"num_levels": 1}', "greater than or equal to 2"),
        ('{"decoder": "both"}', "'separate' or 'shared'"),
        ('{"fmaps": [4, 8]}', "Extra inputs"),
    ],
)
def test_a_wrong_block_is_refused(block, message):
    with pytest.raises(ValidationError, match=message):
        ResidualUNet.model_validate_json(block)


def test_blocks_must_be_listed_for_every_level():
    config = ResidualUNet(f_maps=(4, 6, 8), blocks_per_level=(1, 2))
    with pytest.raises(ValueError, match="blocks_per_level has 2 entries but the network has 3"):
        config.check_patch(PATCH, SPACING)


def test_a_trained_network_keeps_its_levels_for_other_patches():
    config = ResidualUNet()
    config.check_patch((48, 48, 48), SPACING)
    with pytest.raises(ValueError, match=r"40 along x is not a multiple of 16 \(nearest: 32, 48\)"):
        config.check_patch((48, 96, 40), SPACING, planned=(64, 64, 64))
    config.check_patch((48, 96, 32), SPACING, planned=(64, 64, 64))
    with pytest.raises(ValueError, match="leaves the deepest level one voxel"):
        config.check_patch((16, 16, 16), SPACING, planned=(64, 64, 64))
    with pytest.raises(ValueError, match=r"9 along z is not a multiple of 16 \(nearest: 16\)"):
        config.check_patch((9, 32, 32), SPACING, planned=(64, 64, 64))


def test_the_network_is_traced_whole():
    """One graph, forward and backward; "aot_eager" leaves out the minutes of code generation."""
    _, network = build(f_maps=(4, 6), num_levels=2)
    image = torch.randn(2, 2, *PATCH)
    expected = network(image)
    traced = torch.compile(network, backend="aot_eager", fullgraph=True)(image)
    for name, (logits,) in expected.items():
        torch.testing.assert_close(traced[name][0], logits, atol=1e-4, rtol=1e-4)
    sum(maps[0].square().mean() for maps in traced.values()).backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_compiled_network_agrees():
    _, network = build(heads={"sheet": 1}, f_maps=(4, 6), num_levels=2)
    image = torch.randn(1, 2, *PATCH)
    compiled = torch.compile(network, fullgraph=True)(image)
    torch.testing.assert_close(
        compiled["sheet"][0], network(image)["sheet"][0], atol=1e-4, rtol=1e-4
    )


def test_a_preset_sets_the_depth_unless_it_is_given():
    assert ResidualUNet().blocks(6) == (1,) * 6
    assert ResidualUNet(preset="M").blocks(6) == (1, 3, 4, 6, 6, 6)
    assert ResidualUNet(preset="L").blocks(2) == (1, 3)
    assert ResidualUNet(preset="L", blocks_per_level=2).blocks(3) == (2, 2, 2)
    targets = [ResidualUNet(preset=preset).memory_target_gb for preset in ("S", "M", "L")]
    assert targets == [8, 8, 24]  # nnU-Net's default, ResEnc M and ResEnc L
