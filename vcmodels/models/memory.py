"""What a training step of a U-shaped network keeps in memory, in closed form from its levels."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from vcmodels.models.blocks import squeezed_features
from vcmodels.models.topology import Topology

BYTES_PER_WEIGHT = 22
"""In float32 the weight, its gradient, the two moments of AdamW and the average; autocast's copy."""
PASSING_MAPS = 4
"""float32 maps of the first level's size that live for a moment: gradients on their way back, and
copies in another precision. Measured on a CPU: 2.9 to 3.7, most of it under autocast."""
LOSS_MAPS = 8
"""float32 maps per logit: logits, activation, label, mask and their gradients in the loss."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What a network is estimated to need; the values are those of one patch."""

    parameters: int
    normalised: int
    """Values that autograd keeps as float32 in every precision: what is normalised."""
    convolved: int
    """Values that it keeps in the precision of the convolutions, whose inputs they are."""
    passing: int
    """float32 values that live at the peak, where the backward pass begins."""

    def kept_bytes(self, value_bytes: int = 4) -> int:
        """What autograd keeps of a patch; 2 bytes a value under bf16 or fp16 autocast, else 4."""
        return 4 * self.normalised + value_bytes * self.convolved

    def step_bytes(self, batch_size: int, value_bytes: int = 4) -> int:
        """Peak of an eager training step; a compiled one stays below.

        Not in it: the workspace of convolutions, what the allocator loses, the device's own context.
        """
        patch = self.kept_bytes(value_bytes) + 4 * self.passing
        return batch_size * patch + BYTES_PER_WEIGHT * self.parameters


def step_memory(
    topology: Topology,
    blocks: tuple[int, ...],
    decoder_blocks: int,
    in_channels: int,
    heads: Mapping[str, int],
    *,
    is_shared: bool,
    squeeze_excitation: bool,
    supervised: int,
) -> StepMemory:
    """Count the weights and the kept values of a residual U-Net.

    Args:
        topology: its levels.
        blocks: residual blocks of each level of the encoder.
        decoder_blocks: convolutions per level of a decoder.
        in_channels: channels of the image.
        heads: channels of the logits, by target.
        is_shared: one decoder for all heads.
        squeeze_excitation: whether residual blocks are gated.
        supervised: levels that have logits.
    """
    levels, decoders = topology.levels, 1 if is_shared else len(heads)
    voxels = [prod(level.shape) for level in levels]
    logits, first = sum(heads.values()), levels[0].features * voxels[0]
    parameters = normalised = 0
    convolved, inputs = in_channels * voxels[0], in_channels
    for level, n, repeats in zip(levels, voxels, blocks, strict=True):
        f, taps = level.features, prod(level.kernel)
        normalised += 2 * repeats * f * n
        convolved += 2 * repeats * f * n
        if inputs != f:  # the 1x1x1 shortcut, and, where the length changes, its averaged input
            parameters += inputs * f
            convolved += inputs * n if prod(level.stride) > 1 else 0
        gate = _gate_parameters(f) if squeeze_excitation else 0
        parameters += taps * f * (inputs + (2 * repeats - 1) * f) + repeats * (4 * f + gate)
        inputs = f
    for (level, deeper), n in zip(pairwise(levels), voxels, strict=False):
        f, taps = level.features, prod(level.kernel)
        normalised += decoders * decoder_blocks * f * n
        convolved += decoders * (2 + decoder_blocks) * f * n
        up = deeper.features * f * prod(deeper.stride)
        mixing = taps * (decoder_blocks + 1) * f * f + decoder_blocks * 2 * f
        parameters += decoders * (up + mixing)
    parameters += logits * sum(level.features + 1 for level in levels[:supervised])
    passing = PASSING_MAPS * first + LOSS_MAPS * logits * sum(voxels[:supervised])
    return StepMemory(parameters, normalised, convolved, passing)


def _gate_parameters(features: int) -> int:
    hidden = squeezed_features(features)
    return 2 * features * hidden + hidden + hidden * features + features
