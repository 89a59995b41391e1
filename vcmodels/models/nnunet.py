"""The networks of nnU-Net, layer by layer, so that its weights fit.

`PlainConvUNet` and `ResidualEncoderUNet` of dynamic-network-architectures 0.4 (Isensee et al. 2021,
doi:10.1038/s41592-020-01008-z; 2024, arXiv:2404.09556). Strides and kernels stand in the plans of a
training, and are given; where they are not, they are planned as those of `plain_unet`. A convolution
has no bias here: the instance norm behind it takes that away.
"""

from itertools import accumulate
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from vcmodels.errors import FaultError
from vcmodels.geometry.boxes import Shape, Spacing, divide, triple
from vcmodels.models.blocks import ConvBlock, ResidualBlock
from vcmodels.models.plan import Level, Topology, check_divisible, total_stride
from vcmodels.models.unet import RESENC_BLOCKS, Repeats, UNet

Stride = Annotated[int, Field(ge=1, le=8)]
Edge = Annotated[int, Field(ge=1, le=15)]
PLAIN_BLOCKS = 2


class NnUNet(UNet):
    """nnU-Net's own network, plain or with a residual encoder (ResEnc), as its plans say it."""

    biased_upsampling: ClassVar[bool] = True

    name: Literal["nnunet"] = "nnunet"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which network."""
    residual: bool = False
    """A residual encoder behind a convolution, as ResEnc has it; else two convolutions per level."""
    strides: Annotated[tuple[tuple[Stride, Stride, Stride], ...], Field(min_length=2)] | None = None
    """(z, y, x) of each level, [1, 1, 1] first; planned when left out, as `kernels` then is."""
    kernels: Annotated[tuple[tuple[Edge, Edge, Edge], ...], Field(min_length=2)] | None = None
    """(z, y, x) of the convolutions of each level, odd."""
    blocks_per_level: tuple[Repeats, ...] | None = None
    """Convolutions, or residual blocks, of each level of the encoder; 2, or (1, 3, 4, 6, 6 ...)."""
    decoder: Literal["separate", "shared"] = "shared"
    """One decoder for all targets with a 1x1x1 head per target, as nnU-Net has it, or one for each."""
    decoder_blocks: Repeats = 2
    """Convolutions per level of a decoder; ResEnc has 1."""

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        if (self.strides is None) != (self.kernels is None):
            raise FaultError("strides and kernels belong together", "give both, or none")
        given = {"strides": self.strides, "kernels": self.kernels, "f_maps": self.f_maps}
        given["blocks_per_level"] = self.blocks_per_level
        lengths = {key: len(values) for key, values in given.items() if values is not None}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{key} {n}" for key, n in lengths.items())
            raise FaultError(f"lists of different lengths: {listed}", "give one entry per level")
        if any(k % 2 == 0 for kernel in self.kernels or () for k in kernel):
            raise FaultError(f"kernels {self.kernels} are not all odd", "give odd lengths")
        return self

    def blocks(self, levels: int) -> tuple[int, ...]:
        if self.blocks_per_level is None:
            deep = (*RESENC_BLOCKS, *RESENC_BLOCKS[-1:] * levels)[:levels]
            return deep if self.residual else (PLAIN_BLOCKS,) * levels
        if len(self.blocks_per_level) != levels:
            found = f"blocks_per_level has {len(self.blocks_per_level)} entries for {levels} levels"
            raise FaultError(found, "give one per level")
        return self.blocks_per_level

    def block(self, inputs: int, outputs: int, kernel: Shape, stride: Shape) -> nn.Module:
        if not self.residual:
            return ConvBlock(inputs, outputs, kernel, stride)
        return ResidualBlock(
            inputs, outputs, kernel, stride, squeeze_excitation=False, normed_shortcut=True
        )

    def stem(self, in_channels: int, first: Level) -> list[nn.Module]:
        return [ConvBlock(in_channels, first.features, first.kernel)] if self.residual else []

    def plan(self, patch: Shape, spacing: Spacing) -> Topology:
        if self.strides is None or self.kernels is None:
            return super().plan(patch, spacing)
        check_divisible(patch, total_stride(self.strides))
        count = len(self.strides)
        doubled = accumulate([2] * (count - 1), lambda n, by: n * by, initial=self.base_features)
        features = self.f_maps or [min(n, self.max_features) for n in doubled]
        shapes = [divide(patch, total_stride(self.strides[: i + 1])) for i in range(count)]
        rows = zip(features, self.strides, self.kernels, shapes, strict=True)
        return Topology(tuple(Level(f, triple(s), triple(k), shape) for f, s, k, shape in rows))
