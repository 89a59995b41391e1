"""The same network in fewer passes over the activations, for prediction on a CPU.

Every convolution on a CPU runs near the peak of its arithmetic units, so what can be saved is
arithmetic, and passes over what lies between. Both need no compiler:

- Upsampling and the convolution that follows it are linear, so they are one transposed convolution
  with composed weights: 8 products in place of 29 for each voxel and pair of channels.
- Pooling and the 1x1x1 convolution after it are one strided convolution.
- Instance norm of a single sample is batch norm, which torch computes channels-last in two passes.

And on one thread torch computes small convolutions without oneDNN, in up to 3.5 times the time.
"""

from copy import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcmodels.models.blocks import SLOPE, ConvBlock, InstanceNorm, ResidualBlock
from vcmodels.models.unet import DecoderLevel


def fused(module: nn.Module) -> nn.Module:
    """A module of the same function up to rounding, for one sample at a time and without gradients.

    It shares the weights of `module`, except the composed ones. A module without any of our blocks is
    returned itself. Tensors must be channels-last.
    """
    for kind, fuse in _FUSED.items():
        if isinstance(module, kind):
            return fuse(module)
    parts = {name: fused(part) for name, part in module.named_children()}
    if all(part is module.get_submodule(name) for name, part in parts.items()):
        return module
    twin = copy(module)  # which shares all else with the original
    twin._modules = {**module._modules, **parts}
    return twin


class FusedNorm(nn.Module):
    """`InstanceNorm` of one sample."""

    def __init__(self, norm: InstanceNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, Z, Y, X) -> the same shape and dtype."""
        assert len(x) == 1, "batch norm would mix samples"
        x = x.contiguous(memory_format=torch.channels_last_3d)  # small float32 convolutions are not
        mean, variance = moments(x)
        weight, bias = self.norm.weight, self.norm.bias
        if self.norm.gate is not None:
            gate = self.norm.gate(mean[None], variance[None])[0]
            weight, bias = weight * gate, bias * gate
        return F.batch_norm(x, mean, variance, weight, bias, eps=self.norm.eps)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel, (C,) float32, of a channels-last (1, C, Z, Y, X).

    Those of each plane of constant x are taken first, as if its voxels were channels, and merged:
    torch adds up all voxels of a channel one by one, which for 64^3 is off by 3e-4, and slower.
    """
    channels, length = x.shape[1], x.shape[4]
    planes = x.movedim(1, -1).flatten(3).movedim(-1, 1)
    unused = torch.zeros(length * channels)  # float32, so that the result is
    means, variances = torch.batch_norm_update_stats(planes, unused, unused, 0.0)
    means, variances = means.view(length, channels), variances.view(length, channels)
    between, mean = torch.var_mean(means, dim=0, correction=0)
    return mean, variances.mean(0) + between


class OneDnnConvolution(nn.Module):
    """A convolution without bias, by oneDNN where it is there, however small the input is.

    On one thread torch takes its own kernel for inputs of at most 20480 values in all but the last axis
    (`use_mkldnn` in aten/src/ATen/native/Convolution.cpp, torch 2.13): 64 features of 16^3 take 46 ms in
    place of 13.
    """

    def __init__(self, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> None:
        super().__init__()
        self.weight, self.stride, self.padding = weight, stride, padding

    @classmethod
    def of(cls, conv: nn.Conv3d) -> "OneDnnConvolution":
        """The same convolution."""
        assert conv.bias is None, "a norm follows"
        assert not isinstance(conv.padding, str)
        weight = conv.weight
        assert isinstance(weight, nn.Parameter)
        return cls(weight, conv.stride, conv.padding)

    def forward(self, x: Tensor) -> Tensor:
        """(1, inputs, Z, Y, X) -> (1, outputs, Z', Y', X')."""
        is_half = x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
        if torch.backends.mkldnn.is_available() and not is_half:
            return torch.mkldnn_convolution(
                x, self.weight, None, self.padding, self.stride, (1, 1, 1), 1
            )
        return F.conv3d(x, self.weight, None, self.stride, self.padding)


class FusedConvBlock(nn.Module):
    """`ConvBlock` of one sample."""

    def __init__(self, block: ConvBlock) -> None:
        super().__init__()
        self.conv, self.norm = OneDnnConvolution.of(block.conv), fused(block.norm)

    def forward(self, x: Tensor) -> Tensor:
        """(1, inputs, Z, Y, X) -> (1, outputs, Z', Y', X')."""
        return F.leaky_relu_(self.norm(self.conv(x)), SLOPE)


class FusedResidualBlock(nn.Module):
    """`ResidualBlock` of one sample."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.first, self.norm = fused(block.first), fused(block.norm)
        self.conv = OneDnnConvolution.of(block.conv)
        self.shortcut: nn.Module = block.shortcut
        match list(block.shortcut):
            case [nn.Conv3d() as mix, *norm]:
                self.shortcut = nn.Sequential(ChannelsLastMix(mix), *map(fused, norm))
            case [nn.AvgPool3d() as pool, nn.Conv3d() as mix, *norm]:
                self.shortcut = nn.Sequential(_pooling_convolution(pool, mix), *map(fused, norm))

    def forward(self, x: Tensor) -> Tensor:
        """(1, inputs, Z, Y, X) -> (1, outputs, Z', Y', X')."""
        total = self.norm(self.conv(self.first(x))).add_(self.shortcut(x))
        return F.leaky_relu_(total, SLOPE)


class ChannelsLastMix(nn.Module):
    """A 1x1x1 convolution whose result is channels-last, also with a single channel.

    Torch cannot tell in which order the voxels of one channel lie, and adding a contiguous result to
    a channels-last tensor takes 15 times as long.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """(1, inputs, Z, Y, X) -> (1, outputs, Z, Y, X)."""
        return F.linear(x.movedim(1, -1), self.conv.weight.flatten(1)).movedim(-1, 1)


def _pooling_convolution(pool: nn.AvgPool3d, mix: nn.Conv3d) -> OneDnnConvolution:
    """One convolution for a pooling and the 1x1x1 convolution that follows it."""
    stride = pool.kernel_size
    conv = nn.Conv3d(mix.in_channels, mix.out_channels, stride, stride, bias=False)
    weight = mix.weight.detach() / conv.weight[0, 0].numel()
    conv.weight = _frozen(weight.expand_as(conv.weight))
    return OneDnnConvolution.of(conv)


class FusedDecoderLevel(nn.Module):
    """`DecoderLevel` of one sample."""

    def __init__(self, level: DecoderLevel) -> None:
        super().__init__()
        first = cast(ConvBlock, level.mix[0])
        conv = first.conv
        self.stride = level.up.stride
        self.padding = tuple(k // 2 for k in conv.kernel_size)
        raised = level.up.out_channels
        of_deeper, of_skip = conv.weight.detach().tensor_split([raised], dim=1)
        # (deeper, raised, s...) as a batch of images, each seen by the filters (outputs, raised, k...).
        reach = [k - 1 for k in conv.kernel_size]
        self.up = _frozen(F.conv3d(level.up.weight.detach(), of_deeper, padding=reach))
        self.skip = OneDnnConvolution(_frozen(of_skip), (1, 1, 1), self.padding)
        self.rim = None if level.up.bias is None else _rim(level.up.bias.detach(), of_deeper)
        self.plain = None if self.rim is None else level
        self.norm, self.rest = fused(first.norm), fused(level.mix[1:])

    def forward(self, deeper: Tensor, skip: Tensor) -> Tensor:
        """(1, deeper, Z/s, ...), (1, C, Z, Y, X) -> (1, C, Z, Y, X)."""
        if self.plain and any(n < 2 * p for n, p in zip(skip.shape[2:], self.padding, strict=True)):
            return self.plain(deeper, skip)  # a voxel sees the zeros of both ends
        x = F.conv_transpose3d(deeper, self.up, stride=self.stride, padding=self.padding)
        x += self.skip(skip)
        if self.rim is not None:
            _add_rim(x, self.rim)
        return self.rest(F.leaky_relu_(self.norm(x), SLOPE))


def _rim(bias: Tensor, weight: Tensor) -> nn.Parameter:
    """What a bias becomes in the convolution after it, less what it becomes inside, which the norm drops.

    Args:
        bias: (raised,), the same in all voxels, and 0 around them.
        weight: (outputs, raised, k...) of that convolution; k is odd.

    Returns:
        (1, outputs, k...): a voxel for each place along an axis that sees other zeros, inside in the
        middle.
    """
    kernel = weight.shape[2:]
    image = bias[None, :, None, None, None].expand(1, -1, *kernel)
    seen = F.conv3d(image, weight, padding=[k // 2 for k in kernel])
    z, y, x = (k // 2 for k in kernel)
    return nn.Parameter(seen - seen[:, :, z, y, x, None, None, None], requires_grad=False)


def _add_rim(x: Tensor, rim: Tensor) -> None:
    """Add `_rim` to (1, outputs, Z, Y, X) in place; only faces change, and no voxel twice."""
    halves = [k // 2 for k in rim.shape[2:]]
    places = [
        torch.tensor([min(i, half) + max(i - (n - 1 - half), 0) for i in range(n)])
        for n, half in zip(x.shape[2:], halves, strict=True)
    ]
    inside: list[slice] = []
    for axis, half in enumerate(halves):
        n = x.shape[2 + axis]
        for face in (slice(0, half), slice(n - half, n)) if half else ():
            part = (*inside, face, *(slice(0, m) for m in x.shape[3 + axis :]))
            at = torch.meshgrid(*(p[s] for p, s in zip(places, part, strict=True)), indexing="ij")
            x[(slice(None), slice(None), *part)] += rim[(slice(None), slice(None), *at)].to(x.dtype)
        inside.append(slice(half, n - half))


def _frozen(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.clone(memory_format=torch.channels_last_3d), requires_grad=False)


_FUSED = {
    InstanceNorm: FusedNorm,
    ConvBlock: FusedConvBlock,
    ResidualBlock: FusedResidualBlock,
    DecoderLevel: FusedDecoderLevel,
}
