"""A light network that knows where its patch lies: its last filters are made from the position.

The blocks are spatial pyramids (ESP: Mehta et al. 2018, arXiv:1803.06815, section 3) in three
dimensions: features are reduced by a 1x1x1 convolution, seen by parallel dilated ones, and put next to
each other after sums that fill the gaps of the wide ones. The filters of each head are given out by
a small network that is told the middle of the patch, as in dynamic filter networks (De Brabandere et
al. 2016, arXiv:1605.09673): organs that look alike can be told apart by where they are.
"""

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from itertools import accumulate, pairwise
from typing import Annotated, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from vcmodels.errors import FaultError
from vcmodels.geometry.boxes import Shape, Spacing, triple
from vcmodels.geometry.coordinates import COORDINATES
from vcmodels.models.base import Logits, Model
from vcmodels.models.blocks import SLOPE, InstanceNorm, convolution, initialise
from vcmodels.models.plan import (
    Level,
    Topology,
    check_divisible,
    check_thickness,
    plan_topology,
)

DILATIONS = (1, 2, 4, 8)
"""Of the branches of a block; cut along axes that are too short for them."""
Features = Annotated[int, Field(ge=len(DILATIONS), le=4096)]


class MedPatchNet(Model):
    """A light network of dilated convolutions, whose heads depend on where the patch lies.

    It needs `"coordinates": true` in `dataset_config`.
    """

    needs_coordinates: ClassVar[bool] = True
    stays_wide: ClassVar[str] = "the filters of its heads are made by another network"

    name: Literal["medpatchnet"] = "medpatchnet"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which network."""
    f_maps: Annotated[tuple[Features, ...], Field(min_length=2)] | None = None
    """Features per level, full resolution first; `base_features` doubled per level when left out."""
    num_levels: Annotated[int, Field(ge=2, le=12)] | None = None
    """Levels; as many as patch size and spacing allow when left out."""
    base_features: Features = 16
    """Features of the first level where `f_maps` is left out."""
    max_features: Features = 256
    """Cap of the doubling where `f_maps` is left out."""
    pyramids_per_level: Annotated[int, Field(ge=1, le=32)] = 2
    """Pyramids per level of the encoder; the decoder has one."""
    position_features: Annotated[int, Field(ge=1, le=1024)] = 16
    """Hidden units between the position of a patch and the filters of a head."""

    @model_validator(mode="after")
    def _levels_agree(self) -> "MedPatchNet":
        if self.f_maps and self.num_levels and len(self.f_maps) != self.num_levels:
            raise ValueError(
                f"f_maps has {len(self.f_maps)} entries and num_levels is {self.num_levels}: "
                "they must be equal, or leave one out"
            )
        return self

    def idle_keys(self) -> Mapping[str, str]:
        keys = ("base_features", "max_features") if self.f_maps else ()
        return dict.fromkeys(keys, "f_maps gives the features")

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

    def check_patch(self, patch: Shape, spacing: Spacing, planned: Shape | None = None) -> None:
        planned = planned or patch
        check_thickness(patch, planned)
        check_divisible(patch, self.plan(planned, spacing).divisor)

    def build(
        self, in_channels: int, heads: Mapping[str, int], patch: Shape, spacing: Spacing
    ) -> "MedPatchNetwork":
        if in_channels <= COORDINATES:
            found = f"an image of {in_channels} channels, of which the last three are coordinates"
            raise FaultError(found, 'set "coordinates": true in dataset_config')
        network = MedPatchNetwork(self, in_channels, heads, self.plan(patch, spacing))
        initialise(network)
        for head in network.heads.values():
            cast(PositionHead, head).initialise()
        return network


class MedPatchNetwork(nn.Module):
    """The network of a `MedPatchNet`; every length must be a multiple of the plan's divisor."""

    def __init__(
        self, config: MedPatchNet, in_channels: int, heads: Mapping[str, int], topology: Topology
    ) -> None:
        super().__init__()
        levels, pyramids = topology.levels, config.pyramids_per_level
        self.divisor = topology.divisor
        self.encoder, inputs = nn.ModuleList(), in_channels - COORDINATES
        for level in levels:
            self.encoder.append(_stage(inputs, level, pyramids))
            inputs = level.features
        pairs = list(pairwise(levels))[::-1]
        self.decoder = nn.ModuleList(Joining(deeper, level) for level, deeper in pairs)
        hidden = config.position_features
        self.heads = nn.ModuleDict(
            {name: PositionHead(levels[0].features, n, hidden) for name, n in heads.items()}
        )

    def forward(self, image: Tensor, targets: Collection[str] | None = None) -> Logits:
        """(B, C, Z, Y, X) -> logits (B, channels, Z, Y, X) by target.

        Args:
            image: float32, or the autocast dtype, the last three channels coordinates; lengths
                that the plan's divisor divides.
            targets: the heads to compute; all of them when None. The others cost nothing.

        Raises:
            ValueError: a length along (z, y, x) is not a multiple of the divisor.
            KeyError: a target has no head.
        """
        check_divisible((image.shape[2], image.shape[3], image.shape[4]), self.divisor)
        x, middle = image[:, :-COORDINATES], middle_of(image[:, -COORDINATES:])
        maps: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        for joining, skip in zip(self.decoder, reversed(maps[:-1]), strict=True):
            x = joining(x, skip)
        names = self.heads if targets is None else targets
        return {name: (self.heads[name](x, middle),) for name in names}


def middle_of(coordinates: Tensor) -> Tensor:
    """(B, 3, Z, Y, X) -> (B, 3) float32: the means, of a box the coordinates of its middle."""
    return coordinates.float().mean((2, 3, 4))


def _stage(inputs: int, level: Level, pyramids: int) -> nn.Sequential:
    """The pyramids of one level; the first is entered with the level's stride."""
    following = [Pyramid(level.features, level) for _ in range(pyramids - 1)]
    return nn.Sequential(Pyramid(inputs, level, level.stride), *following)


def cut_dilation(dilation: int, kernel: Shape, shape: Shape) -> Shape:
    """A dilation along (z, y, x), at most half of each length: further out nearly all is padding."""
    pairs = zip(kernel, shape, strict=True)
    return triple(1 if k == 1 else max(min(dilation, n // 2), 1) for k, n in pairs)


class Pyramid(nn.Module):
    """An ESP block: reduce, dilate in parallel, sum up, and put next to each other."""

    def __init__(self, inputs: int, level: Level, stride: Shape = (1, 1, 1)) -> None:
        super().__init__()
        narrow = level.features // len(DILATIONS)
        summed = [narrow] * (len(DILATIONS) - 1)
        widths = [level.features - sum(summed), *summed]
        self.reduce = convolution(inputs, narrow, (1, 1, 1))
        self.pool = nn.AvgPool3d(stride, stride) if stride != (1, 1, 1) else nn.Identity()
        self.branches = nn.ModuleList(
            _dilated(narrow, width, level.kernel, cut_dilation(d, level.kernel, level.shape))
            for d, width in zip(DILATIONS, widths, strict=True)
        )
        self.norm = InstanceNorm(level.features)
        self.is_residual = inputs == level.features and stride == (1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, Z, Y, X) -> (B, features, Z', Y', X')."""
        reduced = self.reduce(self.pool(x))
        first, *wide = [branch(reduced) for branch in self.branches]
        # The sums hide the grid that a wide convolution alone leaves (section 3.2 of the paper).
        found = self.norm(torch.cat([first, *accumulate(wide)], dim=1))
        return F.leaky_relu(found + x if self.is_residual else found, SLOPE, inplace=True)


def _dilated(inputs: int, outputs: int, kernel: Shape, dilation: Shape) -> nn.Conv3d:
    """A convolution that keeps all lengths; without bias, as a norm follows."""
    padding = triple(k // 2 * d for k, d in zip(kernel, dilation, strict=True))
    return nn.Conv3d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)


class Joining(nn.Module):
    """Bring the deeper features up, put the encoder's next to them, and mix both."""

    def __init__(self, deeper: Level, level: Level) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(
            deeper.features, level.features, deeper.stride, deeper.stride, bias=False
        )
        self.mix = Pyramid(2 * level.features, level)

    def forward(self, deeper: Tensor, skip: Tensor) -> Tensor:
        """(B, deeper, Z/s, ...), (B, C, Z, Y, X) -> (B, C, Z, Y, X)."""
        return self.mix(torch.cat([self.up(deeper), skip], dim=1))


class PositionHead(nn.Module):
    """A 1x1x1 convolution whose filters and biases are made from the position of the patch."""

    def __init__(self, features: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.features, self.channels = features, channels
        self.told = nn.Linear(COORDINATES, hidden)
        self.filters = nn.Linear(hidden, channels * (features + 1))

    def initialise(self) -> None:
        """Begin as a plain convolution that the position changes a little."""
        if self.filters.weight.is_meta:
            return
        weights = self.filters.bias.detach().view(self.channels, self.features + 1)
        nn.init.normal_(weights, std=self.features**-0.5)
        nn.init.zeros_(weights[:, -1])

    def forward(self, x: Tensor, middle: Tensor) -> Tensor:
        """(B, features, Z, Y, X) and positions (B, 3) float32 -> (B, channels, Z, Y, X)."""
        # Autocast would round the position to some hundred places.
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            made = self.filters(F.leaky_relu(self.told(middle), SLOPE))
        made = made.view(-1, self.channels, self.features + 1)
        logits = torch.baddbmm(made[..., -1:], made[..., :-1], x.flatten(2))
        return logits.view(-1, self.channels, *x.shape[2:])
