"""nnU-Net's plain U-Net: convolution, instance norm and leaky ReLU, and nothing else.

Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z), section "Network topology": two such blocks per
level on both sides, strided convolutions down, transposed convolutions up.
"""

from typing import Literal

from torch import nn

from vcmodels.geometry.boxes import Shape
from vcmodels.models.blocks import ConvBlock
from vcmodels.models.unet import Repeats, UNet


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
