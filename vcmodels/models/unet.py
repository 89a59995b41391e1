"""U-Nets planned per axis, with one decoder per target or one for all: the plain one and the residual one.

Ronneberger et al. 2015 (arXiv:1505.04597) for the shape, Isensee et al. 2021
(doi:10.1038/s41592-020-01008-z) for the plan, the supervision of coarser levels and the plain network:
convolution, instance norm and leaky ReLU, twice per level on both sides, strided convolutions down,
transposed ones up. Isensee et al. 2024 (arXiv:2404.09556, "ResEnc") for a deep residual encoder with
light decoders, Hu et al. 2018 (arXiv:1709.01507) for its gates.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vcmodels.geometry.boxes import Shape, Spacing
from vcmodels.models.base import (
    FeatureMix,
    LevelSummary,
    Logits,
    Model,
    NetworkSummary,
    mix_samples,
)
from vcmodels.models.blocks import ConvBlock, ResidualBlock, initialise
from vcmodels.models.narrowing import narrower
from vcmodels.models.plan import (
    Level,
    StepMemory,
    Topology,
    check_divisible,
    check_thickness,
    plan_topology,
    step_memory,
)

Features = Annotated[int, Field(ge=1, le=4096)]
Repeats = Annotated[int, Field(ge=1, le=32)]
MakeBlock = Callable[[int, int, Shape, Shape], nn.Module]
"""From input features, output features, kernel and stride."""


class UNet(Model):
    """The keys and the plan of a U-Net; its members say what a level of the encoder is made of."""

    mixes_features: ClassVar[bool] = True
    biased_upsampling: ClassVar[bool] = False
    """Whether the transposed convolutions have a bias. The norm after the next convolution takes it
    away again, but for the border of a patch, around which that convolution sees zeros."""

    f_maps: Annotated[tuple[Features, ...], Field(min_length=2)] | None = None
    """Features per level, full resolution first; `base_features` doubled per level when left out."""
    num_levels: Annotated[int, Field(ge=2, le=12)] | None = None
    """Levels; as many as patch size and spacing allow when left out."""
    base_features: Features = 32
    """Features of the first level where `f_maps` is left out."""
    max_features: Features = 320
    """Cap of the doubling where `f_maps` is left out."""
    decoder: Literal["separate", "shared"] = "separate"
    """One decoder per target, or one for all with a 1x1x1 head per target."""
    decoder_blocks: Repeats = 1
    """Convolutions per level of a decoder."""
    deep_supervision: bool = False
    """Also return coarser logits in training, from all but the two deepest levels."""

    @abstractmethod
    def blocks(self, levels: int) -> tuple[int, ...]:
        """How many blocks each of so many levels of the encoder has.

        Raises:
            ValueError: the task lists another number of levels.
        """

    @abstractmethod
    def block(self, inputs: int, outputs: int, kernel: Shape, stride: Shape) -> nn.Module:
        """A block of the encoder; the first one of a level has the level's stride."""

    def stem(self, in_channels: int, first: Level) -> list[nn.Module]:
        """What comes before the first level, and gives its features; nothing by default."""
        del in_channels, first
        return []

    @model_validator(mode="after")
    def _levels_agree(self) -> "UNet":
        if self.f_maps and self.num_levels and len(self.f_maps) != self.num_levels:
            raise ValueError(
                f"f_maps has {len(self.f_maps)} entries and num_levels is {self.num_levels}: "
                "they must be equal, or leave one out"
            )
        return self

    def idle_keys(self) -> Mapping[str, str]:
        if self.f_maps is None:
            return {}
        reason = "f_maps gives the features"
        found = {"base_features": reason, "max_features": reason}
        if self.supervised(len(self.f_maps)) == 1:
            found["deep_supervision"] = (
                f"a network of {len(self.f_maps)} levels has no coarser logits"
            )
        return found

    def plan(self, patch: Shape, spacing: Spacing) -> Topology:
        """The levels for one patch size and voxel spacing.

        Raises:
            ValueError: as `check_patch`.
        """
        return plan_topology(
            patch,
            spacing,
            num_levels=self.num_levels,
            features=self.f_maps,
            base_features=self.base_features,
            max_features=self.max_features,
        )

    def narrowed(self, share: float, patch: Shape, spacing: Spacing) -> "UNet":
        levels = self.plan(patch, spacing).levels
        return self.changed(f_maps=tuple(narrower(level.features, share) for level in levels))

    def check_patch(self, patch: Shape, spacing: Spacing, planned: Shape | None = None) -> None:
        planned = planned or patch
        topology = self.plan(planned, spacing)
        self.blocks(len(topology.levels))
        check_thickness(patch, planned)
        check_divisible(patch, topology.divisor)

    def build(
        self, in_channels: int, heads: Mapping[str, int], patch: Shape, spacing: Spacing
    ) -> "UNetNetwork":
        network = UNetNetwork(self, in_channels, heads, self.plan(patch, spacing))
        initialise(network)
        return network

    def describe(
        self, in_channels: int, heads: Mapping[str, int], patch: Shape, spacing: Spacing
    ) -> NetworkSummary:
        topology = self.plan(patch, spacing)
        network = cast(UNetNetwork, self.outline(in_channels, heads, patch, spacing))
        pairs = zip(topology.levels, network.encoder.levels, strict=True)
        rows = [_summarise(f"encoder {i}", *pair) for i, pair in enumerate(pairs)]
        for name, decoder in network.decoders.items():
            upward = list(enumerate(reversed(cast(Decoder, decoder).levels)))[::-1]
            rows += [_summarise(f"{name} {i}", topology.levels[i], part) for i, part in upward]
        for name, head in network.heads.items():
            level = replace(topology.levels[0], features=heads[name], kernel=(1, 1, 1))
            rows.append(_summarise(f"{name} head", level, head))
        return NetworkSummary(tuple(rows), self.estimate(in_channels, heads, patch, spacing))

    def supervised(self, levels: int) -> int:
        """Of so many levels, those that have logits in training."""
        # The two deepest levels see too little detail to be worth a loss (nnU-Net weighs them 0).
        return max(levels - 2, 1) if self.deep_supervision else 1


class PlainUNet(UNet):
    """nnU-Net's plain U-Net (Isensee et al. 2021); levels are planned from patch and spacing."""

    name: Literal["plain_unet"] = "plain_unet"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which network."""
    convolutions_per_level: Repeats = 2
    """Convolutions per level of the encoder."""
    decoder_blocks: Repeats = 2
    """Convolutions per level of a decoder."""

    def blocks(self, levels: int) -> tuple[int, ...]:
        return (self.convolutions_per_level,) * levels

    def block(self, inputs: int, outputs: int, kernel: Shape, stride: Shape) -> nn.Module:
        return ConvBlock(inputs, outputs, kernel, stride)


MEMORY_TARGETS_GB = {"S": 8.0, "M": 8.0, "L": 24.0}
"""nnU-Net's, for its default plan, ResEnc M and ResEnc L."""
RESENC_BLOCKS = (1, 3, 4, 6)
"""The deeper levels have as many as the last."""


class ResidualUNet(UNet):
    """A residual U-Net with squeeze-and-excitation; levels are planned from patch and spacing."""

    name: Literal["residual_unet"] = "residual_unet"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which network."""
    preset: Literal["S", "M", "L"] = "S"
    """How deep, and for how much memory a patch is planned: S one block per level, 8 GB; M the
    encoder of nnU-Net's ResEnc, 8 GB; L the same, 24 GB. The other keys, and `tr_params.memory_gb`,
    have the last word."""
    blocks_per_level: Repeats | tuple[Repeats, ...] | Literal["resenc"] = Field(
        default_factory=lambda given: 1 if given.get("preset", "S") == "S" else "resenc"
    )
    """Residual blocks per level of the encoder: one number, one per level, or `resenc` (1, 3, 4, 6,
    6, ...); `resenc` when left out with preset M or L."""
    squeeze_excitation: bool = True
    """Gate every residual block by the statistics of its patch."""

    def blocks(self, levels: int) -> tuple[int, ...]:
        if self.blocks_per_level == "resenc":
            return (*RESENC_BLOCKS, *RESENC_BLOCKS[-1:] * levels)[:levels]
        if isinstance(self.blocks_per_level, int):
            return (self.blocks_per_level,) * levels
        if len(self.blocks_per_level) != levels:
            raise ValueError(
                f"blocks_per_level has {len(self.blocks_per_level)} entries "
                f"but the network has {levels} levels: list one number per level, or give one for all"
            )
        return self.blocks_per_level

    def block(self, inputs: int, outputs: int, kernel: Shape, stride: Shape) -> nn.Module:
        return ResidualBlock(
            inputs, outputs, kernel, stride, squeeze_excitation=self.squeeze_excitation
        )

    @property
    def memory_target_gb(self) -> float:
        return MEMORY_TARGETS_GB[self.preset]

    def estimate(
        self, in_channels: int, heads: Mapping[str, int], patch: Shape, spacing: Spacing
    ) -> StepMemory:
        topology = self.plan(patch, spacing)
        levels = len(topology.levels)
        return step_memory(
            topology,
            self.blocks(levels),
            self.decoder_blocks,
            in_channels,
            heads,
            is_shared=self.decoder == "shared",
            squeeze_excitation=self.squeeze_excitation,
            supervised=self.supervised(levels),
        )


def _summarise(name: str, level: Level, part: nn.Module) -> LevelSummary:
    parameters = sum(p.numel() for p in part.parameters())
    return LevelSummary(name, parameters, level.features, level.stride, level.kernel, level.shape)


class UNetNetwork(nn.Module):
    """The network of a `UNet`; every length must be a multiple of the plan's divisor."""

    def __init__(
        self, config: UNet, in_channels: int, heads: Mapping[str, int], topology: Topology
    ) -> None:
        super().__init__()
        levels = topology.levels
        self.divisor = topology.divisor
        self.shared_decoder = config.decoder == "shared"
        blocks, stem = config.blocks(len(levels)), config.stem(in_channels, levels[0])
        self.encoder = Encoder(in_channels, levels, blocks, config.block, stem)
        names = ["decoder"] if self.shared_decoder else list(heads)
        self.decoders = nn.ModuleDict(
            {
                name: Decoder(levels, config.decoder_blocks, bias=config.biased_upsampling)
                for name in names
            }
        )
        supervised = config.supervised(len(levels))
        self.heads = nn.ModuleDict(
            {
                name: nn.ModuleList(head(level.features, channels) for level in levels[:supervised])
                for name, channels in heads.items()
            }
        )

    @property
    def encoder_levels(self) -> int:
        """How many levels the encoder has."""
        return len(self.encoder.levels)

    def forward(
        self, image: Tensor, targets: Collection[str] | None = None, mix: FeatureMix | None = None
    ) -> Logits:
        """(B, C, Z, Y, X) -> logits (B, channels, Z, Y, X) by target.

        Args:
            image: float32, or the autocast dtype; lengths that the plan's divisor divides.
            targets: the heads to compute; all of them when None. The others cost nothing.
            mix: the features of the encoder to mix between samples.

        Raises:
            ValueError: a length along (z, y, x) is not a multiple of the divisor.
            KeyError: a target has no head.
        """
        check_divisible((image.shape[2], image.shape[3], image.shape[4]), self.divisor)
        skips = self.encoder(image, mix)
        shared = self.decoders["decoder"](skips) if self.shared_decoder else None
        outputs: Logits = {}
        for name in self.heads if targets is None else targets:
            maps = self.decoders[name](skips) if shared is None else shared
            heads = cast(nn.ModuleList, self.heads[name])
            used = heads if self.training else heads[:1]
            outputs[name] = tuple(head(x) for head, x in zip(used, maps, strict=False))
        return outputs


class Encoder(nn.Module):
    """The path down; every level is entered by a strided convolution."""

    def __init__(
        self,
        in_channels: int,
        levels: tuple[Level, ...],
        blocks: tuple[int, ...],
        block: MakeBlock,
        stem: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        inputs = levels[0].features if stem else in_channels
        for level, repeats in zip(levels, blocks, strict=True):
            stages = [] if len(self.levels) else [*stem]
            for i in range(repeats):
                stride = level.stride if i == 0 else (1, 1, 1)
                stages.append(block(inputs, level.features, level.kernel, stride))
                inputs = level.features
            self.levels.append(nn.Sequential(*stages))

    def forward(self, x: Tensor, mix: FeatureMix | None = None) -> list[Tensor]:
        """(B, C, Z, Y, X) -> the features of every level, full resolution first.

        Features are mixed at one level and, for the decoders, at all above it: what those see is
        then of both samples everywhere.
        """
        maps: list[Tensor] = []
        for depth, level in enumerate(self.levels):
            x = level(x)
            maps.append(x)
            if mix is not None and depth == mix.level:
                maps = [mix_samples(features, mix.share) for features in maps]
                x = maps[-1]
        return maps


class Decoder(nn.Module):
    """The path up, from the deepest level to full resolution."""

    def __init__(self, levels: tuple[Level, ...], blocks: int, *, bias: bool = False) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            DecoderLevel(deeper, level, blocks, bias=bias)
            for deeper, level in reversed(list(zip(levels[1:], levels[:-1], strict=True)))
        )

    def forward(self, skips: list[Tensor]) -> list[Tensor]:
        """The encoder's features -> the decoder's of every level but the deepest, finest first."""
        x = skips[-1]
        maps: list[Tensor] = []
        for level, skip in zip(self.levels, reversed(skips[:-1]), strict=True):
            x = level(x, skip)
            maps.append(x)
        return maps[::-1]


class DecoderLevel(nn.Module):
    """Bring the deeper features up, put the encoder's next to them, and mix both."""

    def __init__(self, deeper: Level, level: Level, blocks: int, *, bias: bool = False) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(
            deeper.features, level.features, deeper.stride, deeper.stride, bias=bias
        )
        mixed = [
            ConvBlock((2 if i == 0 else 1) * level.features, level.features, level.kernel)
            for i in range(blocks)
        ]
        self.mix = nn.Sequential(*mixed)

    def forward(self, deeper: Tensor, skip: Tensor) -> Tensor:
        """(B, deeper, Z/s, ...), (B, C, Z, Y, X) -> (B, C, Z, Y, X)."""
        return self.mix(torch.cat([self.up(deeper), skip], dim=1))


def head(features: int, channels: int) -> nn.Conv3d:
    """The 1x1x1 convolution to the logits of one target."""
    return nn.Conv3d(features, channels, 1)
