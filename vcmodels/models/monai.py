"""Networks of MONAI (https://github.com/Project-MONAI/MONAI), of which each gives features to our heads.

What is the same for all of them is here once: a 1x1x1 head for each target on common features; a patch
whose lengths the network cannot halve is filled up with its last voxels, and the logits are cut; a
patch of one slice gets the network of two dimensions. Batch norm becomes instance norm: the two patches
of a step say little of all patches, and one that is not finite would stay in the running means.
"""

from abc import abstractmethod
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from vcmodels.errors import FaultError
from vcmodels.extras import load_extra
from vcmodels.geometry.boxes import Shape, Spacing, triple
from vcmodels.models.base import Logits, Model
from vcmodels.models.encoder_weights import encoder_weights
from vcmodels.models.narrowing import narrower
from vcmodels.models.plan import Topology, plan_topology

Features = Annotated[int, Field(ge=1, le=4096)]
FiveFeatures = Annotated[tuple[Features, ...], Field(min_length=5, max_length=5)]
Levels = Annotated[int, Field(ge=2, le=8)]
Blocks = Annotated[int, Field(ge=1, le=16)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class MonaiModel(Model):
    """What a member says of its network: its body, and how often it halves a length."""

    @abstractmethod
    def body(self, in_channels: int, patch: Shape, spacing: Spacing) -> nn.Module:
        """The network without heads: (B, C, Z, Y, X) -> (B, `width`, Z, Y, X).

        Of a patch with an axis of one voxel, the other two axes: (B, C, Y, X) -> (B, `width`, Y, X).
        """

    @property
    @abstractmethod
    def width(self) -> int:
        """Features that the heads read."""

    @abstractmethod
    def divisor(self, patch: Shape, spacing: Spacing) -> Shape:
        """What the lengths that it takes are multiples of; 1 along an axis of one voxel."""

    def build(
        self, in_channels: int, heads: Mapping[str, int], patch: Shape, spacing: Spacing
    ) -> nn.Module:
        divisor = self.divisor(patch, spacing)
        padded = _filled(patch, divisor)
        if padded == divisor:
            found = f"patch_size {list(patch)} leaves the deepest level of {self.name} one voxel"
            raise FaultError(found, f"use more than {max(divisor)} along an axis")
        body = without_batch_norm(self.body(in_channels, padded, spacing))
        return SharedBody(body, self.width, heads, divisor, flat_axis(patch))


def halved(patch: Shape, times: int) -> Shape:
    """The divisor of a network that halves all axes so often."""
    return triple(2**times if n > 1 else 1 for n in patch)


def _filled(patch: Shape, divisor: Shape) -> Shape:
    return triple(-(-n // d) * d for n, d in zip(patch, divisor, strict=True))


def flat_axis(patch: Shape) -> int | None:
    """The first of (z, y, x) along which a patch has one voxel."""
    return patch.index(1) if 1 in patch else None


def dimensions(patch: Shape) -> int:
    """Of the network for a patch: 2 where it is one slice."""
    return 3 if flat_axis(patch) is None else 2


def without_batch_norm(module: nn.Module) -> nn.Module:
    """The module with an instance norm, with weights, in the place of each batch norm."""
    for name, part in module.named_children():
        setattr(module, name, without_batch_norm(part))
    if isinstance(module, nn.BatchNorm3d):
        return nn.InstanceNorm3d(module.num_features, affine=True)
    if isinstance(module, nn.BatchNorm2d):
        return nn.InstanceNorm2d(module.num_features, affine=True)
    return module


def _nets() -> ModuleType:
    """MONAI's networks, which take seconds to import.

    Raises:
        RefusedError: it is not installed.
    """
    return load_extra("monai.networks.nets", "zoo", "model_config.name", "a network of MONAI")


class SharedBody(nn.Module):
    """A network for all targets, and a head for each."""

    def __init__(
        self,
        body: nn.Module,
        width: int,
        heads: Mapping[str, int],
        divisor: Shape,
        flat: int | None,
    ) -> None:
        super().__init__()
        self.body, self.divisor, self.flat = body, divisor, flat
        self.heads = nn.ModuleDict({name: nn.Conv3d(width, n, 1) for name, n in heads.items()})

    def forward(self, image: Tensor, targets: Collection[str] | None = None) -> Logits:
        """(B, C, Z, Y, X) -> logits (B, channels, Z, Y, X) by target.

        Raises:
            RuntimeError: a patch that the network cannot take.
            KeyError: a target has no head.
        """
        depth, height, width = image.shape[2:]
        excess = [-n % d for n, d in zip((depth, height, width), self.divisor, strict=True)]
        if any(excess):
            image = F.pad(image, (0, excess[2], 0, excess[1], 0, excess[0]), mode="replicate")
        if self.flat is None:
            features = self.body(image)
        else:
            axis = 2 + self.flat
            features = self.body(image.squeeze(axis).contiguous()).unsqueeze(axis)
        names = self.heads if targets is None else targets
        return {n: (self.heads[n](features)[..., :depth, :height, :width],) for n in names}


class SegResNet(MonaiModel):
    """A residual encoder with group norm, which won BraTS 2018 (Myronenko, arXiv:1810.11654)."""

    stays_wide: ClassVar[str] = "its norms take statistics of several channels together"

    name: Literal["segresnet"] = "segresnet"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which network."""
    base_features: Annotated[int, Field(ge=8, le=512, multiple_of=8)] = 32
    """Features of the first level, doubled per level; groups of 8."""
    blocks_down: Annotated[tuple[Blocks, ...], Field(min_length=2, max_length=8)] = (1, 2, 2, 4)
    """Residual blocks per level of the encoder."""
    dropout: Rate = 0.0
    """Share of the features left out in training."""

    @property
    def width(self) -> int:
        return self.base_features

    def divisor(self, patch: Shape, spacing: Spacing) -> Shape:
        return halved(patch, len(self.blocks_down) - 1)

    def body(self, in_channels: int, patch: Shape, spacing: Spacing) -> nn.Module:
        return _nets().SegResNet(
            spatial_dims=dimensions(patch),
            init_filters=self.base_features,
            in_channels=in_channels,
            out_channels=self.width,
            dropout_prob=self.dropout or None,
            blocks_down=self.blocks_down,
            blocks_up=(1,) * (len(self.blocks_down) - 1),
        )


class DynUNet(MonaiModel):
    """MONAI's form of nnU-Net; strides and kernels are planned from patch and spacing."""

    name: Literal["dynunet"] = "dynunet"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which network."""
    num_levels: Levels | None = None
    """Levels; as many as patch size and spacing allow when left out."""
    base_features: Features = 32
    """Features of the first level, doubled per level."""
    max_features: Features = 320
    """Cap of the doubling."""
    residual: bool = False
    """Residual blocks in the encoder."""

    @property
    def width(self) -> int:
        return self.base_features

    def narrowed(self, share: float, patch: Shape, spacing: Spacing) -> "DynUNet":
        return self.changed(
            base_features=narrower(self.base_features, share),
            max_features=narrower(self.max_features, share),
        )

    def divisor(self, patch: Shape, spacing: Spacing) -> Shape:
        return self._plan(patch, spacing).divisor

    def body(self, in_channels: int, patch: Shape, spacing: Spacing) -> nn.Module:
        levels, flat = self._plan(patch, spacing).levels, flat_axis(patch)
        strides, kernels = (
            [[n for axis, n in enumerate(each) if axis != flat] for each in lengths]
            for lengths in ([one.stride for one in levels], [one.kernel for one in levels])
        )
        return _nets().DynUNet(
            spatial_dims=dimensions(patch),
            in_channels=in_channels,
            out_channels=self.width,
            kernel_size=kernels,
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=[level.features for level in levels],
            res_block=self.residual,
        )

    def _plan(self, patch: Shape, spacing: Spacing) -> Topology:
        return plan_topology(
            patch,
            spacing,
            num_levels=self.num_levels,
            base_features=self.base_features,
            max_features=self.max_features,
        )


class VNet(MonaiModel):
    """The V-Net (Milletari et al. 2016, arXiv:1606.04797), which began with the Dice loss."""

    stays_wide: ClassVar[str] = "the features of its levels are fixed"

    name: Literal["vnet"] = "vnet"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which network."""
    dropout: Rate = 0.5
    """Share of the features left out in training, at the deeper levels."""

    @property
    def width(self) -> int:
        return 16  # of the network's first level, which is fixed

    def divisor(self, patch: Shape, spacing: Spacing) -> Shape:
        return halved(patch, 4)

    def body(self, in_channels: int, patch: Shape, spacing: Spacing) -> nn.Module:
        if 16 % in_channels:
            found = f"vnet cannot take {in_channels} channels"
            raise FaultError(found, "give 1, 2, 4, 8 or 16, or choose another network")
        return _nets().VNet(
            spatial_dims=dimensions(patch),
            in_channels=in_channels,
            out_channels=self.width,
            act=("elu", {"inplace": False}),
            dropout_prob_down=self.dropout or None,
            dropout_prob_up=(self.dropout or None, self.dropout),
            dropout_dim=dimensions(patch),
        )


class AttentionUNet(MonaiModel):
    """A U-Net whose skips are gated by what is deeper (Oktay et al. 2018, arXiv:1804.03999)."""

    name: Literal["attention_unet"] = "attention_unet"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which network."""
    num_levels: Levels = 5
    """Levels."""
    base_features: Features = 32
    """Features of the first level, doubled per level."""
    dropout: Rate = 0.0
    """Share of the features left out in training."""

    @property
    def width(self) -> int:
        return self.base_features

    def narrowed(self, share: float, patch: Shape, spacing: Spacing) -> "AttentionUNet":
        return self.changed(base_features=narrower(self.base_features, share))

    def divisor(self, patch: Shape, spacing: Spacing) -> Shape:
        return halved(patch, self.num_levels - 1)

    def body(self, in_channels: int, patch: Shape, spacing: Spacing) -> nn.Module:
        return _nets().AttentionUnet(
            spatial_dims=dimensions(patch),
            in_channels=in_channels,
            out_channels=self.width,
            channels=[self.base_features * 2**n for n in range(self.num_levels)],
            strides=[2] * (self.num_levels - 1),
            dropout=self.dropout,
        )


class SwinUNETR(MonaiModel):
    """Windows of attention in the encoder (Hatamizadeh et al. 2022, arXiv:2201.01266)."""

    stays_wide: ClassVar[str] = "its attention has heads of many channels"

    name: Literal["swin_unetr"] = "swin_unetr"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which network."""
    base_features: Annotated[int, Field(ge=12, le=192, multiple_of=12)] = 24
    """Features of the first level, doubled per level; a multiple of 12."""
    depths: tuple[Levels, Levels, Levels, Levels] = (2, 2, 2, 2)
    """Blocks of attention per level."""
    residual_merging: bool = False
    """A convolution before each level, the second version of the network."""

    @property
    def width(self) -> int:
        return self.base_features

    def divisor(self, patch: Shape, spacing: Spacing) -> Shape:
        return halved(patch, 5)

    def body(self, in_channels: int, patch: Shape, spacing: Spacing) -> nn.Module:
        return _nets().SwinUNETR(
            in_channels=in_channels,
            out_channels=self.width,
            depths=self.depths,
            feature_size=self.base_features,
            spatial_dims=dimensions(patch),
            use_v2=self.residual_merging,
        )


class UNETR(MonaiModel):
    """A transformer as encoder (Hatamizadeh et al. 2021, arXiv:2103.10504), for patches of one size."""

    stays_wide: ClassVar[str] = "its attention has heads of many channels"

    name: Literal["unetr"] = "unetr"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which network."""
    base_features: Features = 16
    """Features of the first level of the decoder, doubled per level."""
    hidden_features: Features = 768
    """Features of the transformer."""
    heads: Annotated[int, Field(ge=1, le=64)] = 12
    """Heads of attention; they divide `hidden_features`."""

    @property
    def width(self) -> int:
        return self.base_features

    def divisor(self, patch: Shape, spacing: Spacing) -> Shape:
        return halved(patch, 4)

    def body(self, in_channels: int, patch: Shape, spacing: Spacing) -> nn.Module:
        if self.hidden_features % self.heads:
            found = f"hidden_features {self.hidden_features} do not divide among {self.heads} heads"
            raise FaultError(found, "give a multiple")
        flat = flat_axis(patch)
        network = _nets().UNETR(
            in_channels=in_channels,
            out_channels=self.width,
            img_size=[n for axis, n in enumerate(patch) if axis != flat],
            feature_size=self.base_features,
            hidden_size=self.hidden_features,
            mlp_dim=4 * self.hidden_features,
            num_heads=self.heads,
            spatial_dims=dimensions(patch),
        )
        for block in network.vit.blocks:  # which attends to itself alone
            block.norm_cross_attn = nn.Identity()
        return network


class MedNeXt(MonaiModel):
    """Convolutions of large kernels in place of attention (Roy et al. 2023, arXiv:2303.09975)."""

    name: Literal["mednext"] = "mednext"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which network."""
    size: Literal["S", "B", "M", "L"] = "S"
    """The paper's: blocks per level and their expansion."""
    base_features: Features = 32
    """Features of the first level, doubled per level."""
    kernel: Literal[3, 5, 7] = 3
    """Length of the kernels; the paper trains 3 first, and 5 from its weights."""

    @property
    def width(self) -> int:
        return self.base_features

    def narrowed(self, share: float, patch: Shape, spacing: Spacing) -> "MedNeXt":
        return self.changed(base_features=narrower(self.base_features, share))

    def divisor(self, patch: Shape, spacing: Spacing) -> Shape:
        return halved(patch, 4)

    def body(self, in_channels: int, patch: Shape, spacing: Spacing) -> nn.Module:
        blocks, expansion = MEDNEXT_SIZES[self.size]
        return _nets().MedNeXt(
            spatial_dims=dimensions(patch),
            init_filters=self.base_features,
            in_channels=in_channels,
            out_channels=self.width,
            encoder_expansion_ratio=expansion,
            decoder_expansion_ratio=expansion[::-1],
            bottleneck_expansion_ratio=MEDNEXT_BOTTLENECKS[self.size],
            kernel_size=self.kernel,
            use_residual_connection=True,
            blocks_down=blocks,
            blocks_bottleneck=blocks[-1],
            blocks_up=blocks[::-1],
        )


MEDNEXT_SIZES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "S": ((2, 2, 2, 2), (2, 2, 2, 2)),
    "B": ((2, 2, 2, 2), (2, 3, 4, 4)),
    "M": ((3, 4, 4, 4), (2, 3, 4, 4)),
    "L": ((3, 4, 8, 8), (3, 4, 8, 8)),
}
"""Blocks and expansion of each level (the paper's table 1, MONAI's `create_mednext`)."""
MEDNEXT_BOTTLENECKS = {"S": 2, "B": 4, "M": 4, "L": 8}


class UNetEncoder(MonaiModel):
    """A U-Net on an EfficientNet (Tan and Le 2019, arXiv:1905.11946), MONAI's FlexibleUNet."""

    stays_wide: ClassVar[str] = "the features of its encoder are fixed"

    name: Literal["unet_encoder"] = "unet_encoder"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which network."""
    encoder: Literal["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"] = "b0"
    """Which EfficientNet."""
    decoder_features: FiveFeatures = (256, 128, 64, 32, 16)
    """Features per level of the decoder, the deepest first."""
    encoder_weights: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """A local file of weights for the encoder, a state dict (`.pth`, `.pt`) or `.safetensors`: an
    EfficientNet by the names of MONAI or of its first PyTorch port. Read where a training begins."""

    def first_weights(self, network: nn.Module) -> dict[str, Tensor]:
        if self.encoder_weights is None:
            return {}
        return encoder_weights(self.encoder_weights, network, "body.encoder.")

    @property
    def width(self) -> int:
        return self.decoder_features[-1]

    def divisor(self, patch: Shape, spacing: Spacing) -> Shape:
        return halved(patch, 5)

    def body(self, in_channels: int, patch: Shape, spacing: Spacing) -> nn.Module:
        network = _nets().FlexibleUNet(
            in_channels=in_channels,
            out_channels=self.width,
            backbone=f"efficientnet-{self.encoder}",
            pretrained=False,
            decoder_channels=self.decoder_features,
            spatial_dims=dimensions(patch),
        )
        for unused in ("_conv_head", "_bn1", "_fc"):  # of the classifier that the encoder was
            setattr(network.encoder, unused, nn.Identity())
        return network


NetworkName = Literal[
    "AttentionUnet", "BasicUNet", "DynUNet", "FlexibleUNet", "HighResNet", "MedNeXt", "SegResNet",
    "SwinUNETR", "UNet", "UNETR", "VNet",
]  # fmt: skip
"""Classes of `monai.networks.nets` that are made of numbers and names alone."""
OWN_OPTIONS = {
    "in_channels": "the volumes say it",
    "out_channels": "give features",
    "spatial_dims": "the patch says it",
    "dimensions": "the patch says it",
    "pretrained": "nothing is downloaded",
}
"""Options of the classes that are said elsewhere."""


class MonaiNetwork(MonaiModel):
    """A class of MONAI with its own options, as a bundle of MONAI describes its network."""

    name: Literal["monai_network"] = "monai_network"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which network."""
    network: NetworkName = "UNet"
    """The class, in `monai.networks.nets`."""
    options: dict[str, JsonValue] = Field(
        default_factory=lambda: {"channels": [32, 64, 128, 256], "strides": [2, 2, 2]}
    )
    """Its arguments by name, but for its channels and dimensions."""
    features: Features = 32
    """Its output channels, which the heads read."""
    axes: Literal["zyx", "xyz"] = "zyx"
    """In which order it sees the axes of a patch: `xyz` for weights that MONAI trained on NIfTI."""

    @field_validator("options")
    @classmethod
    def _check_options(cls, options: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in OWN_OPTIONS.keys() & options.keys():
            raise FaultError(f'holds "{name}"', f"leave it out: {OWN_OPTIONS[name]}")
        return options

    @property
    def width(self) -> int:
        return self.features

    def divisor(self, patch: Shape, spacing: Spacing) -> Shape:
        del patch, spacing
        return (1, 1, 1)

    def build(
        self, in_channels: int, heads: Mapping[str, int], patch: Shape, spacing: Spacing
    ) -> nn.Module:
        """As of the others, with the norms that the options name: weights of others are used to them."""
        body = self.body(in_channels, patch, spacing)
        return SharedBody(body, self.width, heads, (1, 1, 1), flat_axis(patch))

    def body(self, in_channels: int, patch: Shape, spacing: Spacing) -> nn.Module:
        del spacing
        options = dict(self.options)
        if self.network == "FlexibleUNet":
            options["pretrained"] = False
        size = {
            "in_channels": in_channels,
            "out_channels": self.features,
            "spatial_dims": dimensions(patch),
        }
        try:
            network = getattr(_nets(), self.network)(**size, **options)
        except (TypeError, ValueError, KeyError, AttributeError, LookupError) as error:
            said = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            raise FaultError(
                f"{self.network} cannot be built ({said})", "correct its options"
            ) from error
        return Reordered(network, self.axes)


class Reordered(nn.Module):
    """A network that sees the axes of space in an order of its own, and gives one output."""

    def __init__(self, network: nn.Module, axes: str) -> None:
        super().__init__()
        self.network, self.is_reversed = network, axes == "xyz"

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, ...) -> (B, features, ...): the first output, in full resolution."""
        found = self.network(self._turned(image))
        if not isinstance(found, Tensor):
            found = found[0]
        if found.ndim > image.ndim:  # DynUNet's coarser outputs in training, next to each other
            found = found[:, 0]
        return self._turned(found)

    def _turned(self, image: Tensor) -> Tensor:
        if not self.is_reversed:
            return image
        order = (0, 1, *range(image.ndim - 1, 1, -1))
        return image.permute(order).contiguous()
