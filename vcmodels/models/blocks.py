"""The parts of a convolutional network: instance norm, squeeze-and-excitation, residual blocks.

Everything is written as plain tensor arithmetic that `torch.compile` fuses into few passes over
the activations, in any memory format; on a CPU those passes, not the convolutions, are the cost.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vcmodels.geometry.boxes import Shape

SLOPE = 0.01
"""Of the leaky ReLU on the negative side; in place, so that autograd keeps only its result."""
SQUEEZE_RATIO = 16
MIN_SQUEEZED = 4
"""Fewest hidden units of a squeeze-and-excitation gate; 16 features / 16 would leave a single one."""


class InstanceNorm(nn.Module):
    """Instance norm (Ulyanov et al. 2016, arXiv:1607.08022) with an optional gate.

    `torch.nn.InstanceNorm3d` copies a channels-last tensor into channel-first order and back.
    Statistics and arithmetic are float32 under autocast; the result has the input's dtype.
    """

    def __init__(self, features: int, *, gated: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.gate = SqueezeExcitation(features) if gated else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Z, Y, X) -> the same shape and dtype, every (sample, channel) of mean 0."""
        wide = x.float()  # once: autograd keeps it for both uses
        variance, mean = torch.var_mean(wide, dim=(2, 3, 4), correction=0)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        if self.gate is not None:
            gate = self.gate(mean, variance)
            scale, shift = scale * gate, shift * gate
        scale, shift = scale[:, :, None, None, None], shift[:, :, None, None, None]
        return torch.addcmul(shift, wide, scale).to(x.dtype)


class SqueezeExcitation(nn.Module):
    """A gate in (0, 1) per sample and channel (Hu et al. 2018, arXiv:1709.01507, section 3).

    After an instance norm the mean of a channel is its bias whatever the image, so a gate that
    squeezes there, as in the paper, would be constant. This one squeezes the mean and the standard
    deviation that the norm takes away, and scales what the norm returns: what distinguishes one
    patch from another reaches the network again, and no further pass over the activations is needed.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        hidden = squeezed_features(features)
        self.squeeze = nn.Linear(2 * features, hidden)
        self.excite = nn.Linear(hidden, features)

    def forward(self, mean: Tensor, variance: Tensor) -> Tensor:
        """(B, C) float32 statistics of what the norm sees -> (B, C) float32 in (0, 1)."""
        # Autocast would run this in bfloat16, whose sigmoid knows 1 and next 0.996; it costs nothing.
        # The meta device has no autocast, and refuses even to be asked for none.
        with nullcontext() if mean.is_meta else torch.autocast(mean.device.type, enabled=False):
            statistics = torch.cat([mean, torch.sqrt(variance + 1e-5)], dim=1)
            return torch.sigmoid(self.excite(F.relu(self.squeeze(statistics))))


def squeezed_features(features: int) -> int:
    """Hidden units of the gate of `features` channels."""
    return max(features // SQUEEZE_RATIO, MIN_SQUEEZED)


def convolution(inputs: int, outputs: int, kernel: Shape, stride: Shape = (1, 1, 1)) -> nn.Conv3d:
    """A convolution that keeps all lengths, divided by `stride`; without bias, as a norm follows."""
    z, y, x = (k // 2 for k in kernel)
    return nn.Conv3d(inputs, outputs, kernel, stride, (z, y, x), bias=False)


class ConvBlock(nn.Module):
    """Convolution, instance norm, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Shape, stride: Shape = (1, 1, 1)) -> None:
        super().__init__()
        self.conv = convolution(inputs, outputs, kernel, stride)
        self.norm = InstanceNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, Z, Y, X) -> (B, outputs, Z', Y', X')."""
        return F.leaky_relu(self.norm(self.conv(x)), SLOPE, inplace=True)


class ResidualBlock(nn.Module):
    """Two convolutions with a shortcut (He et al. 2016, arXiv:1512.03385), the second one gated.

    Where the length changes, the shortcut averages the voxels that a stride would skip
    (He et al. 2019, arXiv:1812.01187, ResNet-D). nnU-Net normalises a shortcut that changes the number
    of features, too (`BasicBlockD` of dynamic-network-architectures).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Shape,
        stride: Shape = (1, 1, 1),
        *,
        squeeze_excitation: bool,
        normed_shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.first = ConvBlock(inputs, outputs, kernel, stride)
        self.conv = convolution(outputs, outputs, kernel)
        self.norm = InstanceNorm(outputs, gated=squeeze_excitation)
        shortcut: list[nn.Module] = []
        if stride != (1, 1, 1):
            shortcut.append(nn.AvgPool3d(stride, stride))
        if inputs != outputs:
            shortcut.append(convolution(inputs, outputs, (1, 1, 1)))
            if normed_shortcut:
                shortcut.append(InstanceNorm(outputs))
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, Z, Y, X) -> (B, outputs, Z', Y', X')."""
        total = self.norm(self.conv(self.first(x))) + self.shortcut(x)
        return F.leaky_relu(total, SLOPE, inplace=True)


def initialise(network: nn.Module) -> None:
    """Kaiming initialisation (He et al. 2015, arXiv:1502.01852) of every convolution, in place.

    A gate starts near one half with weights that let its gradient through. On the meta device there
    is nothing to draw.
    """
    if next(network.parameters()).is_meta:
        return  # torch would import its compiler for it, 0.8 s
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, a=SLOPE, nonlinearity="leaky_relu")
        elif isinstance(module, nn.ConvTranspose3d):
            # Kernel = stride: every output voxel sees one voxel of all input channels.
            nn.init.normal_(module.weight, std=module.in_channels**-0.5)
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) and module.bias is not None:
            nn.init.zeros_(module.bias)
