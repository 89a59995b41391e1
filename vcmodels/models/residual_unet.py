"""A residual U-Net with squeeze-and-excitation.

Isensee et al. 2024 (arXiv:2404.09556, "ResEnc") for a deep residual encoder with light decoders,
Hu et al. 2018 (arXiv:1709.01507) for the gates.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import nn

from vcmodels.geometry.boxes import Shape, Spacing
from vcmodels.models.blocks import ResidualBlock
from vcmodels.models.plan import StepMemory, step_memory
from vcmodels.models.unet import Repeats, UNet

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
