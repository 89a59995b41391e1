"""Levels of a network, memory of its step, and the patch and batch size that fit a budget.

The rule is nnU-Net's (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, and
`experiment_planning/experiment_planners/network_topology.py` there):

- between two levels an axis is halved when at least `MIN_EDGE` voxels are left after it, and its
  spacing is less than twice the finest spacing among the axes that can still be halved;
- a kernel is 3 along an axis once that axis has come within 2x of the finest, and 1 before;
- along an axis of one voxel, that of a patch which is a slice, nothing is halved and kernels are 1;
- features double from level to level up to a cap.

So a thin or coarsely sampled z is neither pooled nor mixed until the other axes have caught up.

An axis of `m * 2^k` voxels with m of 4 to 7 is what `plan_strides` halves k times, so these lengths, four
to an octave, are the only ones tried. From the patch that covers the volume, the physically longest
axes are cut one length at a time, together where they tie, until a step fits: nnU-Net's rule (Isensee
et al. 2021), but with physically cubic patches where that one keeps the proportions of the volume.
Which patches are tried does not depend on the budget, so more memory never makes one shorter.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vcmodels.errors import FaultError
from vcmodels.geometry.boxes import Shape, Spacing, divide, triple
from vcmodels.geometry.symmetries import AXES
from vcmodels.models.blocks import squeezed_features

MIN_EDGE = 4
"""Voxels that halving must leave along an axis."""
MIN_EDGE_ASKED = 2
"""The same where `num_levels` asks for more levels than `MIN_EDGE` allows."""


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of the network."""

    features: int
    stride: Shape
    """Reduction from the level above; (1, 1, 1) at the first."""
    kernel: Shape
    """Edges of the convolutions, 1 or 3 per axis."""
    shape: Shape
    """Length along (z, y, x) of the planned patch at this level."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The levels of a network, full resolution first."""

    levels: tuple[Level, ...]

    @property
    def divisor(self) -> Shape:
        """What the length of an input along (z, y, x) must be a multiple of."""
        return total_stride([level.stride for level in self.levels])


def plan_topology(
    patch: Shape,
    spacing: Spacing,
    *,
    num_levels: int | None = None,
    features: Sequence[int] | None = None,
    base_features: int = 32,
    max_features: int = 320,
) -> Topology:
    """Plan the levels for one patch size.

    Args:
        patch: length along (z, y, x), in voxels.
        spacing: voxel size along (z, y, x), in any one unit.
        num_levels: how many levels, at least 2; as many as the rule allows when None.
        features: features per level, one number per level.
        base_features: features of the first level where `features` is None.
        max_features: cap of the doubling where `features` is None.

    Raises:
        ValueError: the patch is too small, too small for that many levels, or not a multiple of
            what the pooling needs; the message names the axis and the nearest good lengths.
    """
    if not all(isfinite(s) and s > 0 for s in spacing):
        raise ValueError(f"spacing must be positive, found {spacing}")
    if num_levels is None and features is not None:
        num_levels = len(features)
    strides = plan_strides(patch, spacing, num_levels)
    check_divisible(patch, total_stride(strides))
    if features is None:
        features = [min(base_features * 2**i, max_features) for i in range(len(strides))]
    kernels = plan_kernels(strides, spacing, patch)
    shapes = [divide(patch, total_stride(strides[: i + 1])) for i in range(len(strides))]
    parts = zip(features, strides, kernels, shapes, strict=True)
    return Topology(tuple(Level(*part) for part in parts))


def plan_strides(patch: Shape, spacing: Spacing, num_levels: int | None) -> list[Shape]:
    """The stride into every level; the first is (1, 1, 1)."""
    strides: list[Shape] = [(1, 1, 1)]
    while num_levels is None or len(strides) < num_levels:
        pooled = total_stride(strides)
        stride = next_stride(patch, spacing, pooled, MIN_EDGE)
        if stride == (1, 1, 1) and num_levels is not None:
            stride = next_stride(patch, spacing, pooled, MIN_EDGE_ASKED)
        if stride == (1, 1, 1):
            break
        strides.append(stride)
    if num_levels is not None and len(strides) < num_levels:
        raise ValueError(
            f"patch_size {list(patch)} is too small for num_levels {num_levels}: "
            f"it allows at most {len(strides)}, because every halving must leave "
            f"{MIN_EDGE_ASKED} voxels along an axis"
        )
    if len(strides) < 2:
        raise ValueError(
            f"patch_size {list(patch)} is too small to be pooled even once: "
            f"one axis must be at least {2 * MIN_EDGE} voxels long"
        )
    return strides


def next_stride(patch: Shape, spacing: Spacing, pooled: Shape, min_edge: int) -> Shape:
    """The axes to halve after `pooled`: those long enough and within 2x of the finest of them."""
    long_enough = [n >= 2 * min_edge * p for n, p in zip(patch, pooled, strict=True)]
    coarse = [s * p for s, p in zip(spacing, pooled, strict=True)]
    finest = min((s for s, ok in zip(coarse, long_enough, strict=True) if ok), default=0.0)
    return triple(
        2 if ok and s < 2 * finest else 1 for s, ok in zip(coarse, long_enough, strict=True)
    )


def plan_kernels(strides: Sequence[Shape], spacing: Spacing, patch: Shape) -> list[Shape]:
    """The kernel of every level: 3 along an axis from the level where it is within 2x of the finest.

    An axis along which the patch is one voxel long has 1 throughout, and is not the finest.
    """
    spacing = triple(s if n > 1 else inf for s, n in zip(spacing, patch, strict=True))
    kernels: list[Shape] = []
    z = y = x = 1
    for i in range(len(strides)):
        pooled = total_stride(strides[: i + 1])
        coarse = [s * p for s, p in zip(spacing, pooled, strict=True)]
        near = [3 if s < 2 * min(coarse) else 1 for s in coarse]
        z, y, x = max(z, near[0]), max(y, near[1]), max(x, near[2])
        kernels.append((z, y, x))
    return kernels


def check_divisible(patch: Shape, divisor: Shape) -> None:
    """Refuse a patch that the pooling does not divide, or reduces to a single voxel.

    Raises:
        FaultError: naming every axis that does not fit, its length and the nearest good ones.
    """
    if patch == divisor:
        found = "leaves the deepest level one voxel, which an instance norm cannot take"
        raise FaultError(f"patch_size {list(patch)} {found}", "Use twice that along an axis")
    faults = [
        f"{n} along {axis} is not a multiple of {d} (nearest: {', '.join(map(str, multiples_around(n, d)))})"
        for axis, n, d in zip(AXES, patch, divisor, strict=True)
        if n % d
    ]
    if faults:
        good = [max(d, (n + d // 2) // d * d) for n, d in zip(patch, divisor, strict=True)]
        raise FaultError(
            f"patch_size {list(patch)} does not fit the network: {'; '.join(faults)}",
            f"Use {good}, or fewer levels with model_config.num_levels",
        )


def check_thickness(patch: Shape, planned: Shape) -> None:
    """Refuse several slices at once for a network that was planned for single ones, or the reverse.

    The norms of its blocks would take their statistics over other slices than in training.

    Raises:
        FaultError: naming the axis.
    """
    for axis, n, m in zip(AXES, patch, planned, strict=True):
        if (n == 1) != (m == 1):
            found = f"patch_size {list(patch)} is {n} along {axis}, the network is planned for {m}"
            raise FaultError(found, "Give 1 for slices" if m == 1 else "Give more than one voxel")


def multiples_around(n: int, divisor: int) -> list[int]:
    """The multiples just below and above `n`, without 0."""
    below = n // divisor * divisor
    return [m for m in (below, below + divisor) if m]


def total_stride(strides: Sequence[Shape]) -> Shape:
    """The product of strides along (z, y, x)."""
    return triple(prod(stride[axis] for stride in strides) for axis in range(3))


BYTES_PER_WEIGHT = 22
"""In float32 the weight, its gradient, the two moments of AdamW and the average; autocast's copy."""
PASSING_MAPS = 4
"""float32 maps of the first level's size that live for a moment: gradients on their way back, and
copies in another precision. Measured on a CPU: 2.9 to 3.7, most of it under autocast."""
LOSS_MAPS = 8
"""float32 maps per logit: logits, activation, label, mask and their gradients in the loss."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """An estimate of the memory that a network needs; the values are for one patch."""

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


_PRODUCTS = {
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "einsum"),
    "scaled_dot_product_attention",
}
"""What autocast runs in half precision: convolutions and products of matrices."""


class _Products(TorchFunctionMode):
    """Notes what convolutions and products of matrices read, and the most values that one gives."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, Tensor] = {}  # by storage; alive, so that no key comes twice
        self.most = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if func.__name__ in _PRODUCTS:
            self.read |= {_storage(x): x for x in args if isinstance(x, Tensor)}
            self.most = max(self.most, result.numel())
        return result


def counted_memory(network: nn.Module, in_channels: int, patch: Shape) -> StepMemory:
    """Count the weights of a network, and the values that autograd keeps in a pass.

    What convolutions and products of matrices read is taken to be kept in their precision, the rest
    as it is in a pass in float32.

    Args:
        network: on the meta device, in training mode; a `Model` says what its forward is.
        in_channels: channels of the image.
        patch: length along (z, y, x).
    """
    weights = {_storage(x) for x in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept.setdefault(_storage(x), x)
        return x

    products, image = _Products(), torch.empty(1, in_channels, *patch, device="meta")
    with products, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        logits = network(image)
    sizes = {
        key: x.untyped_storage().nbytes() // 4 for key, x in kept.items() if key not in weights
    }
    convolved = sum(size for key, size in sizes.items() if key in products.read)
    passing = PASSING_MAPS * products.most
    passing += LOSS_MAPS * sum(x.numel() for maps in logits.values() for x in maps)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return StepMemory(parameters, sum(sizes.values()) - convolved, convolved, passing)


def _storage(x: Tensor) -> int:
    """A number for the memory of a tensor, which views share, also where it has no address."""
    return x.untyped_storage()._cdata


LONGEST = 1024
"""Voxels along an axis that are tried at most."""
SHORTEST = 2 * MIN_EDGE
"""Below, an axis is not cut any more."""
BATCH_SIZE = 2
"""Patches of a step, while patches can still grow (nnU-Net's least)."""
BATCH_SHARE = 0.05
"""Share of all voxels that the batch may be where patches cover their volume (nnU-Net's)."""
TIE = 0.99


def length_at_least(extent: int) -> int:
    """The shortest good length that covers `extent`, `LONGEST` at most."""
    extent = min(extent, LONGEST)
    return -(-extent // _step(extent)) * _step(extent)


def length_at_most(extent: int) -> int:
    """The longest good length that `extent` has room for, `LONGEST` at most."""
    extent = min(extent, LONGEST)
    return extent // _step(extent) * _step(extent)


def candidates(longest: Shape, spacing: Spacing) -> Iterator[Shape]:
    """Patches to try, the largest first, each inside the one before.

    Args:
        longest: good lengths along (z, y, x).
        spacing: voxel size along (z, y, x).
    """
    patch = list(longest)
    while True:
        yield triple(patch)
        long = [n * s if n > SHORTEST else 0.0 for n, s in zip(patch, spacing, strict=True)]
        if not any(long):
            return
        cut = [length >= TIE * max(long) for length in long]
        patch = [length_at_most(n - 1) if c else n for n, c in zip(patch, cut, strict=True)]


@dataclass(frozen=True, slots=True)
class PatchTrial:
    """A patch that the network takes, and what a step with it needs."""

    patch: Shape
    step_bytes: int


def plan_patch(
    longest: Shape, spacing: Spacing, budget: int, step_bytes: Callable[[Shape], int | None]
) -> list[PatchTrial]:
    """The candidates up to the first that fits the budget.

    Args:
        longest: good lengths along (z, y, x) that the patch may have at most.
        spacing: voxel size along (z, y, x).
        budget: bytes for a step.
        step_bytes: what a step with a patch needs; None for one that the network cannot take.

    Returns:
        Those that the network takes, the planned one last; if that exceeds the budget, all do.
    """
    tried: list[PatchTrial] = []
    for patch in candidates(longest, spacing):
        needed = step_bytes(patch)
        if needed is not None:
            tried.append(PatchTrial(patch, needed))
            if needed <= budget:
                break
    return tried


def plan_batch(fixed_bytes: int, patch_bytes: int, budget: int, most: int) -> int:
    """Patches of a step that fit: `most` at most, but `BATCH_SIZE` at least.

    Args:
        fixed_bytes: what a step needs without any patch.
        patch_bytes: what each patch adds.
        budget: bytes for a step.
        most: patches that are worth having.
    """
    return max(min((budget - fixed_bytes) // patch_bytes, most), BATCH_SIZE)


def _step(length: int) -> int:
    """The power of two that good lengths around this one are multiples of."""
    return max(1 << length.bit_length() >> MIN_EDGE.bit_length(), 1)
